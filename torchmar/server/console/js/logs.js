// The latest log entries of the server and its workers, as they are written.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import * as format from "./format.js";
import { connection, logs, models, reports, server } from "./state.js";
import { Empty, html, NotReported, Segments } from "./ui.js";

const SHOWN = 500;
const LEVELS = [["", "All"], ["WARNING", "Warnings"], ["ERROR", "Errors"]];
const RANKS = { INFO: 0, WARNING: 1, ERROR: 2, CRITICAL: 2 };

export default function Logs({ query }) {
  const [model, setModel] = useState(query.get("model") || "");
  const [worker, setWorker] = useState("");
  const [level, setLevel] = useState("");
  const [search, setSearch] = useState(query.get("search") || "");
  const [follow, setFollow] = useState(true);
  const [kept, setKept] = useState(null);
  const end = useRef(null);
  const all = kept ?? logs.value;

  const names = useMemo(
    () => [...new Set([...models.value.keys(), ...all.map((entry) => entry.model)])].filter(Boolean).sort(),
    [models.value, all],
  );
  const workers = useMemo(
    () => [...new Set(all.filter((entry) => !model || entry.model === model).map((entry) => entry.worker))].filter(Boolean).sort(),
    [all, model],
  );
  const words = search.toLowerCase();
  const matching = all.filter(
    (entry) =>
      (!model || (model === "-" ? !entry.model : entry.model === model)) &&
      (!worker || entry.worker === worker) &&
      (RANKS[entry.level] ?? 0) >= (level ? RANKS[level] : 0) &&
      (!words || entry.text.toLowerCase().includes(words) || entry.request_id.toLowerCase().includes(words)),
  );
  const shown = matching.slice(-SHOWN);

  useEffect(() => {
    if (follow) end.current?.scrollTo({ top: end.current.scrollHeight });
  }, [shown.length && shown.at(-1).number, shown.length, follow]);

  function toggle() {
    setKept(follow ? logs.value : null);
    setFollow(!follow);
  }

  if (!reports("logs")) {
    return html`
      <main class="page" id="main">
        <div class="page-head"><h1 tabindex="-1">Logs</h1></div>
        <${Empty} title="The log is on the server's machine">
          <${NotReported}>its log to clients<//>
          <p>On the machine of ${server.value.engine}, <code>torchmar logs</code> and this console show it.</p>
        <//>
      </main>
    `;
  }
  return html`
    <main class="page page-tall" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Logs</h1>
        <p class="muted">The latest entries of the server and its workers. The files in the run folder have more.</p>
      </div>
      <div class="toolbar">
        <label class="select">
          <span>Model</span>
          <select value=${model} onChange=${(event) => { setModel(event.currentTarget.value); setWorker(""); }}>
            <option value="">All, and the server</option>
            <option value="-">Only the server</option>
            ${names.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
          </select>
        </label>
        <label class="select">
          <span>Worker</span>
          <select value=${worker} onChange=${(event) => setWorker(event.currentTarget.value)}>
            <option value="">All</option>
            ${workers.map((id) => html`<option key=${id} value=${id}>${id}</option>`)}
          </select>
        </label>
        <${Segments} label="Least level" options=${LEVELS} value=${level} onChange=${setLevel} />
        <label class="search">
          <span class="hidden">Search in the text, or a request id</span>
          <input
            type="search"
            placeholder="Search a text or a request id"
            value=${search}
            onInput=${(event) => setSearch(event.currentTarget.value)}
          />
        </label>
        <button class="button" aria-pressed=${follow ? "true" : "false"} onClick=${toggle}>
          ${follow ? "Stop following" : "Follow"}
        </button>
      </div>
      ${shown.length
        ? html`
            <div class="log card" ref=${end} tabindex="0" role="log" aria-live="off" aria-label="Log entries">
              ${matching.length > SHOWN &&
              html`<p class="muted small log-more">${format.plural(matching.length - SHOWN, "older entry", "older entries")} not shown</p>`}
              ${shown.map((entry) => html`<${Entry} key=${entry.number} entry=${entry} />`)}
            </div>
          `
        : html`
            <${Empty} title=${all.length || !connection.value.live ? "No entry matches" : "The log is empty"}>
              <p>${all.length ? "Change the filters to see other entries." : "Entries appear here as they are written."}</p>
            <//>
          `}
    </main>
  `;
}

function Entry({ entry }) {
  const [first, ...rest] = entry.text.split("\n");
  const source = entry.worker ? `${entry.model} ${entry.version}, worker ${entry.worker}` : entry.model || "server";
  const tone = entry.level === "ERROR" || entry.level === "CRITICAL" ? "bad" : entry.level === "WARNING" ? "warn" : "";
  const traceback = rest.length > 0;
  // The last line of a traceback says what happened.
  const summary = traceback && first.startsWith("Traceback") ? rest.filter(Boolean).at(-1) ?? first : first;
  return html`
    <div class=${`entry ${tone && `entry-${tone}`}`}>
      <time title=${format.dateAndTime(entry.time)}>${format.timeOfDay(entry.time)}</time>
      <span class="source">${source}</span>
      <div class="entry-text">
        ${tone && html`<strong class=${tone}>${entry.level === "WARNING" ? "Warning" : "Error"} </strong>`}
        ${traceback
          ? html`<details open=${first.startsWith("Traceback") ? undefined : true}>
              <summary>${summary}</summary>
              <pre tabindex="0">${entry.text}</pre>
            </details>`
          : html`<span>${first}</span>`}
      </div>
    </div>
  `;
}
