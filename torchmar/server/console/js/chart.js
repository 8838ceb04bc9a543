// A chart of values over time, on uPlot: marks for events, zoom by dragging, and a table of the same numbers.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";

import * as format from "./format.js";
import { html, NotReported } from "./ui.js";

const HEIGHT = 190;
const TABLE_ROWS = 60;
const EVENT_COLOURS = { worker_died: "--bad", load_failed: "--bad", default_switched_back: "--warn" };

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Rises when the theme changes: a canvas has no style sheet.
export function useTheme() {
  const [number, setNumber] = useState(0);
  useEffect(() => {
    const change = () => setNumber((before) => before + 1);
    addEventListener("themechange", change);
    return () => removeEventListener("themechange", change);
  }, []);
  return number;
}

/**
 * One chart.
 *
 * series: [{name, key, colour, dash, stepped, fill}]; show: a value with its unit; axis: the same, short.
 * missing: what the server does not report. columns: the API's history; from, to: what is shown, in seconds; zoom: called with the part that was dragged over.
 */
export function TimeChart({ title, note, series, show, axis = show, columns, number, from, to, marks, onZoom, whole, missing }) {
  const box = useRef(null);
  const plot = useRef(null);
  const latest = useRef({});
  const [cursor, setCursor] = useState(null);
  const theme = useTheme();
  latest.current = { from, to, marks, onZoom };

  const data = useMemo(
    () => [columns.time, ...series.map(({ key, values }) => values?.(columns) ?? columns[key])],
    [columns, number],
  );
  const first = useMemo(() => columns.time.findIndex((time) => time >= from), [columns, number, from]);
  const empty = first < 0 || series.every((_, index) => !data[index + 1].slice(first).some((value) => value));

  useEffect(() => {
    const options = {
      width: box.current.clientWidth,
      height: HEIGHT,
      padding: [10, 10, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: "live" },
        drag: { x: true, y: false, setScale: false },
        points: { size: 7 },
      },
      scales: {
        x: { time: true, range: () => [latest.current.from, latest.current.to] },
        y: { range: (_, low, high) => [0, top(high, whole)] },
      },
      axes: [
        {
          stroke: colour("--muted"),
          grid: { stroke: colour("--grid"), width: 1 },
          ticks: { stroke: colour("--grid"), width: 1, size: 4 },
          font: "11px system-ui, sans-serif",
          size: 28,
          space: 70,
          values: (_, times) => times.map(format.timeOfDay),
        },
        {
          stroke: colour("--muted"),
          grid: { stroke: colour("--grid"), width: 1 },
          ticks: { show: false },
          font: "11px system-ui, sans-serif",
          size: 62,
          space: 34,
          values: (_, values) => values.map((value) => (whole && value % 1 ? "" : axis(value))),
        },
      ],
      series: [
        {},
        ...series.map(({ name, colour: variable, dash, stepped, fill }, index) => ({
          label: name,
          stroke: colour(variable),
          fill: fill ? `${colour(variable)}22` : undefined,
          width: 1.75,
          dash,
          paths: stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
          points: { show: true, size: 4, fill: colour(variable), filter: alone(index + 1) },
        })),
      ],
      hooks: {
        drawClear: [(self) => drawMarks(self, latest.current)],
        setCursor: [(self) => setCursor(self.cursor.left >= 0 ? self.cursor.idx : null)],
        setSelect: [
          (self) => {
            const { left, width } = self.select;
            if (width < 8) return;
            latest.current.onZoom?.([self.posToVal(left, "x"), self.posToVal(left + width, "x")]);
            self.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          },
        ],
      },
    };
    plot.current = new uPlot(options, data, box.current);
    const observer = new ResizeObserver(() => {
      if (box.current) plot.current?.setSize({ width: box.current.clientWidth, height: HEIGHT });
    });
    observer.observe(box.current);
    return () => {
      observer.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [theme]);

  useEffect(() => plot.current?.setData(data), [data, from, to, marks]);

  const index = cursor ?? columns.time.length - 1;
  const id = `chart-${title.replaceAll(/\W/g, "-")}`;
  return html`
    <section class="card chart" aria-labelledby=${id}>
      <div class="chart-head">
        <h2 id=${id}>${title}</h2>
        <ul class="legend">
          ${series.map(
            ({ name, colour: variable, dash }, position) => html`
              <li key=${name}>
                <span class=${`swatch ${dash ? "dashed" : ""}`} style=${{ "--swatch": `var(${variable})` }}></span>
                <span>${name}</span>
                <strong>${index < 0 ? format.NONE : show(data[position + 1][index])}</strong>
              </li>
            `,
          )}
        </ul>
      </div>
      <div class="plot-wrap">
        <div class="plot" ref=${box} role="img" aria-label=${`${title} over time. The table below has the numbers.`}></div>
        ${empty && html`<p class="plot-empty">${note}</p>`}
      </div>
      ${missing && html`<${NotReported}>${missing}<//>`}
      <${Numbers} columns=${columns} data=${data} series=${series} show=${show} from=${from} to=${to} title=${title} />
    </section>
  `;
}

function Numbers({ columns, data, series, show, from, to, title }) {
  const [open, setOpen] = useState(false);
  const rows = [];
  if (open) {
    for (let row = columns.time.length - 1; row >= 0 && rows.length < TABLE_ROWS; row -= 1) {
      if (columns.time[row] >= from && columns.time[row] <= to) rows.push(row);
    }
  }
  return html`
    <details class="numbers" onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>Table</summary>
      ${open &&
      html`
        <div class="scroll short-scroll" tabindex="0" role="region" aria-label=${`${title} as a table`}>
          <table class="plain">
            <thead>
              <tr>
                <th scope="col">Time</th>
                ${series.map(({ name }) => html`<th key=${name} scope="col" class="right">${name}</th>`)}
              </tr>
            </thead>
            <tbody>
              ${rows.map(
                (row) => html`
                  <tr key=${columns.time[row]}>
                    <th scope="row">${format.timeOfDay(columns.time[row])}</th>
                    ${series.map(
                      ({ name }, position) => html`<td key=${name} class="right">${show(data[position + 1][row])}</td>`,
                    )}
                  </tr>
                `,
              )}
            </tbody>
          </table>
        </div>
      `}
    </details>
  `;
}

// The upper end of an axis: a round number above the largest value, and some room.
function top(high, whole) {
  if (!(high > 0)) return whole ? 2 : 1;
  const wanted = high * 1.1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= wanted) * power;
  return whole ? Math.max(2, Math.ceil(step)) : step;
}

// Points without a neighbour: no line goes through them, so that they would not be seen.
const alone = (series) => (self) => {
  const values = self.data[series];
  const indices = [];
  for (let index = 0; index < values.length; index += 1) {
    if (values[index] != null && values[index - 1] == null && values[index + 1] == null) indices.push(index);
  }
  return indices;
};

function drawMarks(self, { from, to, marks }) {
  const { ctx, bbox } = self;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const { time, kind } of marks || []) {
    if (time < from || time > to) continue;
    const left = Math.round(self.valToPos(time, "x", true)) + 0.5;
    ctx.strokeStyle = colour(EVENT_COLOURS[kind] || "--mark");
    ctx.beginPath();
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
