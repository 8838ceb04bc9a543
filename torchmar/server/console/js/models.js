// The list of all models: state, workers and load of each version.

import { useMemo, useState } from "preact/hooks";

import * as format from "./format.js";
import { connection, key, loads, models, reports, server } from "./state.js";
import { Badge, Empty, html, Notice, State, stateName } from "./ui.js";

const FILTERS = [
  ["all", "All", () => true],
  ["ready", "Ready", ({ state }) => state === "ready"],
  ["trouble", "In trouble", ({ state }) => state === "crash_looping" || state === "restarting"],
  ["starting", "Starting", ({ state }) => state === "starting"],
  ["idle", "No workers", ({ state }) => state === "no workers"],
];

// The same words as in the heads of the columns, for narrow screens.
const columns = () => [
  ["name", "Model"],
  ["state", "State"],
  ["workers", "Workers", true],
  ...(reports("requests") ? [["requests", "Requests/s", true], ...latencies()] : []),
  ["memory", "Memory", true],
  ...(reports("size") ? [["size", "Archive", true]] : []),
];
const latencies = () =>
  reports("p50_ms") ? [["p50_ms", "p50", true], ["p99_ms", "p99", true]] : [["mean_ms", "Mean latency", true]];

export function Models() {
  const [search, setSearch] = useState("");
  const [filter, setFilter] = useState("all");
  const all = models.value;
  const rows = useMemo(() => [...all.values()].flatMap(rowsOf).sort(inOrder), [all]);
  const counts = useMemo(() => FILTERS.map(([, , matches]) => rows.filter(matches).length), [rows]);
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = FILTERS.find(([id]) => id === filter)[2];
  const shown = rows.filter((row) => matches(row) && words.every((word) => row.text.includes(word)));

  return html`
    <main class="page" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Models</h1>
        <p class="muted">
          ${rows.length
            ? `${format.plural(all.size, "model")}, ${format.plural(rows.length, "version")}${elsewhere()}`
            : "\u00a0"}
        </p>
      </div>
      <${Startup} />
      ${!connection.value.live && !rows.length
        ? html`<${Skeleton} />`
        : rows.length === 0
          ? html`<${NoModels} />`
          : html`
              <div class="toolbar">
                <label class="search">
                  <span class="hidden">Search models</span>
                  <input
                    type="search"
                    placeholder="Search by name, version or file"
                    value=${search}
                    onInput=${(event) => setSearch(event.currentTarget.value)}
                  />
                </label>
                <div class="segments" role="group" aria-label="Show models by state">
                  ${FILTERS.map(
                    ([id, title], index) =>
                      (counts[index] > 0 || id === "all" || id === filter) &&
                      html`
                        <button
                          key=${id}
                          class=${id === filter ? "selected" : ""}
                          aria-pressed=${id === filter ? "true" : "false"}
                          onClick=${() => setFilter(id)}
                        >
                          ${title} <span class="number">${counts[index]}</span>
                        </button>
                      `,
                  )}
                </div>
              </div>
              ${shown.length
                ? html`
                    <div class="table-card">
                      <table class="models">
                        <thead>
                          <tr>
                            ${columns().map(
                              ([id, title, right]) =>
                                html`<th key=${id} scope="col" class=${right ? "right" : ""}>${title}</th>`,
                            )}
                          </tr>
                        </thead>
                        <tbody>
                          ${shown.map((row) => html`<${Row} key=${row.key} row=${row} />`)}
                        </tbody>
                      </table>
                    </div>
                  `
                : html`
                    <${Empty} title="No model matches">
                      <p>Change the search, or show all models again.</p>
                      <button
                        class="button"
                        onClick=${() => {
                          setSearch("");
                          setFilter("all");
                        }}
                      >
                        Show all
                      </button>
                    <//>
                  `}
            `}
    </main>
  `;
}

// A console that `torchmar console` serves for another server: which one.
const elsewhere = () =>
  server.value && server.value.engine !== "torchmar" ? ` on ${server.value.engine} at ${server.value.addresses.management}` : "";

function rowsOf(model) {
  return model.versions.map((version) => ({
    key: key(model.name, version.version),
    name: model.name,
    version,
    state: version.state,
    isDefault: version.version === model.default,
    alone: model.versions.length === 1,
    text: `${model.name} ${version.version} ${version.url} ${version.description} ${stateName(version.state)}`.toLowerCase(),
    memory: version.workers.reduce((sum, worker) => sum + worker.memory, 0),
  }));
}

const collator = new Intl.Collator("en", { numeric: true });

const inOrder = (one, other) =>
  collator.compare(one.name, other.name) ||
  Number(other.isDefault) - Number(one.isDefault) ||
  collator.compare(other.version.version, one.version.version);

function Row({ row }) {
  const { version } = row;
  const short = version.ready < version.min_workers;
  return html`
    <tr class=${row.isDefault ? "" : "other-version"}>
      <th scope="row" data-title="Model">
        <a href=${`#/models/${encodeURIComponent(row.name)}`}>${row.name}</a>
        <span class="version">${version.version}</span>
        ${row.isDefault && !row.alone && html`<${Badge} tone="accent">default<//>`}
        ${version.description && html`<span class="description">${version.description}</span>`}
      </th>
      <td data-title="State"><${State} state=${version.state} /></td>
      <td data-title="Workers" class=${`right ${short ? "short" : ""}`}>
        ${version.ready}<span class="muted"> of ${version.min_workers}</span>
      </td>
      <${Load} id=${row.key} />
      <td data-title="Memory" class="right">${row.memory ? format.bytes(row.memory) : format.NONE}</td>
      ${reports("size") &&
      html`<td data-title="Archive" class="right">${version.size == null ? "folder" : format.bytes(version.size)}</td>`}
    </tr>
  `;
}

// Only these cells change every second.
function Load({ id }) {
  const load = loads.value.get(id);
  if (!reports("requests")) return null;
  return html`
    <td data-title="Requests/s" class="right">
      ${load ? format.rate(load.requests) : "0"}
      ${load?.failed > 0 && html`<span class="failed" title="failed requests a second">${format.rate(load.failed)} failed</span>`}
    </td>
    ${latencies().map(
      ([id, title]) => html`<td key=${id} data-title=${title} class="right">${format.milliseconds(load?.[id])}</td>`,
    )}
  `;
}

function Startup() {
  const known = server.value;
  if (!known) return null;
  const missing = known.not_loaded.filter(({ model }) => !models.value.has(model));
  return html`
    ${missing.map(
      ({ model, url, message }) => html`
        <${Notice} key=${model} tone="bad" title=${`${model} could not be loaded at the start.`}>
          <p>${url}: ${message}</p>
        <//>
      `,
    )}
    ${known.warnings.map((warning) => html`<${Notice} key=${warning} tone="warn">${warning}<//>`)}
  `;
}

function NoModels() {
  return html`
    <${Empty} title="No model is registered yet">
      <p>Build an archive and register it; it appears here at once.</p>
      <pre class="code"><code>torchmar build archives/NAME${"\n"}torchmar register model_store/NAME-1.0.mar</code></pre>
    <//>
  `;
}

function Skeleton() {
  return html`
    <div class="table-card skeleton" role="status">
      <span class="hidden">Loading the models.</span>
      ${[1, 2, 3, 4, 5].map((row) => html`<div key=${row} class="skeleton-row"></div>`)}
    </div>
  `;
}
