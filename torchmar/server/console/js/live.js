// The load of the server or of one model, second by second, with what happened on the same axis.

import { useMemo, useState } from "preact/hooks";

import { part } from "./api.js";
import { TimeChart } from "./chart.js";
import * as format from "./format.js";
import { connection, events, history, models, reports, server } from "./state.js";
import { Events, html, NotReported, Notice, Segments } from "./ui.js";

const RANGES = [[60, "1 min"], [300, "5 min"], [600, "10 min"]];
const BATCHES = ["1", "2", "3–4", "5–8", "9–16", "17–32", "33–64", "65–128", "129–256", "more"];
const STATUSES = {
  "4XX": "The request was rejected",
  "5XX": "The model or the server failed",
  400: "The input was rejected",
  404: "Not found",
  408: "It took too long",
  413: "The input is too large",
  422: "The input was rejected",
  429: "Too many requests",
  500: "A worker died, or the model failed",
  503: "The queue was full, no worker was ready, or the model failed",
  507: "A worker had no memory left",
};
export default function Live({ names }) {
  const [range, setRange] = useState(300);
  const [zoom, setZoom] = useState(null);
  const [paused, setPaused] = useState(null);
  const [model, version] = names;
  const { columns: current, number } = history.value;
  const columns = paused?.columns ?? current;
  const own = events.value.filter((event) => !model || !event.model || event.model === model);

  function pause() {
    // A copy: the columns are changed in place.
    setPaused(paused ? null : { columns: structuredClone(current), number });
  }

  const last = columns?.time.at(-1) ?? Date.now() / 1000;
  const [from, to] = zoom ?? [last - range, last];
  const shown = { columns, model, number: paused?.number ?? number, from, to, marks: own, onZoom: setZoom };
  return html`
    <main class="page" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Live</h1>
        <p class="muted">${model ? `${model}${version ? ` ${version}` : ", all versions"}` : "All models"}</p>
      </div>
      <div class="toolbar">
        <${ScopeChoice} model=${model} version=${version} />
        <${Segments}
          label="Time shown"
          options=${RANGES}
          value=${zoom ? 0 : range}
          onChange=${(chosen) => {
            setZoom(null);
            setRange(chosen);
          }}
        />
        <button class="button" aria-pressed=${paused ? "true" : "false"} onClick=${pause} disabled=${!current}>
          ${paused ? "Go on" : "Pause"}
        </button>
        ${zoom &&
        html`
          <button class="button" onClick=${() => setZoom(null)}>
            Show all again <span class="muted">(${format.timeOfDay(from)} to ${format.timeOfDay(to)})</span>
          </button>
        `}
      </div>
      ${model &&
      connection.value.live &&
      !models.value.has(model) &&
      html`<${Notice} tone="warn">There is no model named ${model} now. Its last ten minutes are shown.<//>`}
      ${columns ? html`<${Charts} key=${model ?? ""} ...${shown} />` : html`<${Loading} />`}
      ${columns && html`<${Happened} events=${own} from=${from} to=${to} />`}
      <p class="muted small foot">
        Drag over a chart to see a part of it.${" "}
        ${reports("p50_ms")
          ? "Percentiles are estimated from the histograms at /metrics, as Prometheus does it, so that they lie on a line between two bounds."
          : `All values are from the APIs of ${server.value.engine}, which are read once a second.`}
      </p>
    </main>
  `;
}

function ScopeChoice({ model, version }) {
  const all = [...models.value.values()].sort((one, other) => one.name.localeCompare(other.name));
  const value = model ? `/${part(model)}${version ? `/${part(version)}` : ""}` : "";
  const known = all.some(({ name }) => name === model);
  return html`
    <label class="select">
      <span>Show</span>
      <select value=${value} onChange=${(event) => (location.hash = `#/live${event.currentTarget.value}`)}>
        <option value="">All models</option>
        ${model && !known && html`<option value=${value}>${model}</option>`}
        ${all.map(
          ({ name, versions }) => html`
            <option key=${name} value=${`/${part(name)}`}>${name}</option>
            ${versions.length > 1 &&
            versions.map(
              (one) => html`
                <option key=${`${name} ${one.version}`} value=${`/${part(name)}/${part(one.version)}`}>
                  ${name} ${one.version}
                </option>
              `,
            )}
          `,
        )}
      </select>
    </label>
  `;
}

const perSecond = (value) => (value == null ? format.NONE : `${format.rate(value)}/s`);

function Charts(shown) {
  const { columns, model } = shown;
  const index = columns.time.length - 1;
  const now = (key) => columns[key][index];
  const percentiles = reports("p50_ms");
  const failures = !model || reports("failures");
  if (!reports("requests")) {
    return html`
      <${Notice} tone="warn" title="The load is not known.">${server.value.warnings.join(" ")}<//>
      <div class="charts"><${WorkerChart} ...${shown} /></div>
    `;
  }
  return html`
    <dl class="tiles" aria-label="Now">
      <${Tile} name="Requests">${perSecond(now("requests"))}<//>
      ${failures &&
      html`<${Tile} name="Failed" tone=${now("failed") > 0 ? "bad" : ""}>${perSecond(now("failed"))}<//>`}
      ${percentiles
        ? html`
            <${Tile} name="Latency p50">${format.milliseconds(now("p50_ms"))}<//>
            <${Tile} name="Latency p99">${format.milliseconds(now("p99_ms"))}<//>
          `
        : html`<${Tile} name="Mean latency">${format.milliseconds(now("mean_ms"))}<//>`}
      <${Tile} name="Waiting">${format.count(now("pending") ?? 0)}<//>
      <${Tile} name="Workers" tone=${now("ready") < now("wanted") ? "bad" : ""}>
        ${now("ready") ?? 0}<small> of ${now("wanted") ?? 0}</small>
      <//>
    </dl>
    <div class="charts">
      <${TimeChart}
        ...${shown}
        title="Requests a second"
        note="No request in this time."
        show=${perSecond}
        axis=${format.rate}
        series=${[
          { name: "All", key: "requests", colour: "--series-1", fill: true },
          ...(failures ? [{ name: "Failed", key: "failed", colour: "--bad" }] : []),
        ]}
        missing=${failures ? "" : "failed requests of a single model, only of all together"}
      />
      <${TimeChart}
        ...${shown}
        title="Latency"
        note="No request in this time."
        show=${format.milliseconds}
        series=${percentiles
          ? [
              { name: "p50", key: "p50_ms", colour: "--series-1" },
              { name: "p95", key: "p95_ms", colour: "--series-2" },
              { name: "p99", key: "p99_ms", colour: "--series-3" },
            ]
          : [{ name: "Mean", key: "mean_ms", colour: "--series-1", fill: true }]}
        missing=${percentiles ? "" : "percentiles of the latency, only its sum"}
      />
      <${TimeChart}
        ...${shown}
        title="Time in the queue"
        note="No request in this time."
        show=${format.milliseconds}
        series=${[
          { name: "Mean", key: "queue_ms", colour: "--series-1", fill: true },
          ...(percentiles ? [{ name: "p99", key: "queue_p99_ms", colour: "--series-3" }] : []),
        ]}
      />
      <${WorkerChart} ...${shown} />
      <${Batches} ...${shown} />
      ${failures && html`<${Failures} ...${shown} />`}
    </div>
  `;
}

const WorkerChart = (shown) => html`
  <${TimeChart}
    ...${shown}
    title="Workers"
    note="No worker in this time."
    whole
    show=${(value) => (value == null ? format.NONE : format.count(value))}
    series=${[
      { name: "Ready", key: "ready", colour: "--series-1", stepped: true, fill: true },
      { name: "Wanted", key: "wanted", colour: "--series-3", stepped: true, dash: [5, 4] },
      { name: "Requests waiting", key: "pending", colour: "--series-2", stepped: true },
    ]}
  />
`;

const Tile = ({ name, tone = "", children }) => html`
  <div class=${`tile ${tone}`}><dt>${name}</dt><dd>${children}</dd></div>
`;

function Batches({ columns, number, from, to }) {
  const counts = useMemo(() => {
    const sums = BATCHES.map(() => 0);
    columns.batches.forEach((buckets, index) => {
      if (buckets && columns.time[index] >= from && columns.time[index] <= to) {
        buckets.forEach((value, position) => (sums[position] += value));
      }
    });
    return sums;
  }, [columns, number, from, to]);
  const total = counts.reduce((sum, value) => sum + value, 0);
  const last = counts.findLastIndex((value) => value > 0);
  const most = Math.max(1, ...counts);
  return html`
    <section class="card chart" aria-labelledby="batches">
      <div class="chart-head">
        <h2 id="batches">Batch sizes</h2>
        ${reports("batches") && html`<p class="muted">${format.plural(total, "batch", "batches")}</p>`}
      </div>
      ${!reports("batches")
        ? html`<${NotReported}>the sizes of its batches<//>`
        : total
        ? html`
            <table class="bars">
              <caption class="hidden">Batches by the number of their requests</caption>
              <thead class="hidden">
                <tr><th scope="col">Requests in a batch</th><th scope="col">Batches</th></tr>
              </thead>
              <tbody>
                ${counts.slice(0, Math.max(last + 1, 4)).map(
                  (value, index) => html`
                    <tr key=${index}>
                      <th scope="row">${BATCHES[index]}</th>
                      <td>
                        <span class="bar" style=${{ width: `${(70 * value) / most}%` }}></span>
                        <span class="bar-value">${format.count(value)}</span>
                      </td>
                    </tr>
                  `,
                )}
              </tbody>
            </table>
          `
        : html`<p class="chart-empty">No batch in this time.</p>`}
    </section>
  `;
}

function Failures({ columns, number, from, to }) {
  const rows = useMemo(() => {
    const sums = new Map();
    columns.failures.forEach((failures, index) => {
      if (!failures || columns.time[index] < from || columns.time[index] > to) return;
      for (const [status, value] of Object.entries(failures)) sums.set(status, (sums.get(status) || 0) + value);
    });
    return [...sums].sort((one, other) => other[1] - one[1]);
  }, [columns, number, from, to]);
  return html`
    <section class="card chart" aria-labelledby="failures">
      <div class="chart-head"><h2 id="failures">Failed requests</h2></div>
      ${rows.length
        ? html`
            <table class="plain">
              <thead>
                <tr><th scope="col">Status</th><th scope="col">What it means</th><th scope="col" class="right">Requests</th></tr>
              </thead>
              <tbody>
                ${rows.map(
                  ([status, value]) => html`
                    <tr key=${status}>
                      <th scope="row">${status}</th>
                      <td>${STATUSES[status] || "Set by the handler"}</td>
                      <td class="right">${format.count(value)}</td>
                    </tr>
                  `,
                )}
              </tbody>
            </table>
          `
        : html`<p class="chart-empty good-news">No request failed in this time.</p>`}
    </section>
  `;
}

function Happened({ events: all, from, to }) {
  const shown = all.filter(({ time }) => time >= from && time <= to);
  return html`
    <section class="card" aria-labelledby="happened">
      <h2 id="happened">What happened</h2>
      ${shown.length
        ? html`<${Events} events=${shown} />`
        : html`<p class="muted">Nothing was registered, scaled or restarted in this time.</p>`}
    </section>
  `;
}

const Loading = () => html`
  <div class="charts" role="status">
    <span class="hidden">Loading the history.</span>
    ${[1, 2, 3, 4].map((chart) => html`<div key=${chart} class="card chart skeleton"><div class="skeleton-plot"></div></div>`)}
  </div>
`;
