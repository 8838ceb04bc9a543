// One model: its versions with their workers, the last failure, and what can be changed.

import { useEffect, useState } from "preact/hooks";

import { get, manage, part } from "./api.js";
import * as format from "./format.js";
import { connection, events, key, loads, mayChange, models, refresh, reports, server } from "./state.js";
import { Age, Badge, Confirm, Copy, Empty, Events, Fact, html, NotReported, Notice, State, useNow } from "./ui.js";

const MEMORY_MS = 5000;
const LAST_LINES = 20;

export function Model({ name }) {
  const model = models.value.get(name);
  const [question, setQuestion] = useState(null);

  useEffect(() => {
    refresh();
    const timer = setInterval(refresh, MEMORY_MS);
    return () => clearInterval(timer);
  }, []);

  if (!model) {
    return html`
      <main class="page" id="main">
        <${Back} />
        ${connection.value.live &&
        html`
          <${Empty} title=${`There is no model named ${name}`}>
            <p>It may have been unregistered.</p>
            <a class="button" href="#/models">All models</a>
          <//>
        `}
      </main>
    `;
  }
  const versions = [...model.versions].sort(
    (one, other) => Number(other.version === model.default) - Number(one.version === model.default),
  );
  return html`
    <main class="page" id="main">
      <${Back} />
      <div class="page-head">
        <h1 tabindex="-1">${name}</h1>
        <div class="links">
          <a class="button" href=${`#/try/${part(name)}`}>Try it</a>
          <a class="button" href=${`#/live/${part(name)}`}>Live</a>
          <a class="button" href=${`#/logs?model=${part(name)}`}>Logs</a>
        </div>
      </div>
      ${Object.keys(model.labels).length > 0 &&
      html`
        <p class="muted">
          Labels:${" "}
          ${Object.entries(model.labels).map(
            ([label, version]) => html`<span key=${label} class="label"><${Badge}>${label}<//> is ${version}</span>`,
          )}
        </p>
      `}
      ${versions.length > 1 && html`<${Comparison} model=${model} versions=${versions} ask=${setQuestion} />`}
      ${versions.map(
        (version) => html`
          <${Version} key=${version.version} model=${model} version=${version} ask=${setQuestion} />
        `,
      )}
      <${Happened} name=${name} />
      ${question && html`<${Question} question=${question} onClose=${() => setQuestion(null)} />`}
    </main>
  `;
}

const COMPARISON_MS = 3000;

// What each version has done in the last ten minutes: the evidence for making one of them the default.
function Comparison({ model, versions, ask }) {
  const [known, setKnown] = useState({});
  useEffect(() => {
    const load = () =>
      get(`/load?model=${part(model.name)}`).then(
        ({ versions: loaded }) => setKnown(Object.fromEntries(loaded.map((one) => [one.version, one]))),
        () => {},
      );
    load();
    const timer = setInterval(load, COMPARISON_MS);
    return () => clearInterval(timer);
  }, [model.name]);
  const before = lastDefault(model, events.value);
  return html`
    <section class="card" aria-labelledby="comparison">
      <div class="card-head">
        <h2 id="comparison">The versions in the last ten minutes</h2>
        ${mayChange() &&
        html`
          <div class="card-actions">
            ${reports("rollout") && html`<a class="button small" href="#/rollout">Promote with evidence</a>`}
            ${before &&
            html`
              <button
                class="button small"
                onClick=${() => ask({ kind: "default", model, version: before, path: versionPath(model, before) })}
              >
                Switch back to ${before.version}
              </button>
            `}
          </div>
        `}
      </div>
      <div class="scroll" tabindex="0" role="region" aria-label="Comparison of the versions">
        <table class="plain comparison">
          <thead>
            <tr>
              <th scope="col">Version</th>
              <th scope="col" class="right">Workers</th>
              <th scope="col" class="right">Requests</th>
              ${reports("failures") && html`<th scope="col" class="right">Failed</th>`}
              ${latencies().map(([id, title]) => html`<th key=${id} scope="col" class="right">${title}</th>`)}
              <th scope="col" class="right">In the queue</th>
            </tr>
          </thead>
          <tbody>
            ${versions.map((version) => {
              const load = known[version.version];
              const share = load?.request_count ? load.failed_count / load.request_count : 0;
              return html`
                <tr key=${version.version}>
                  <th scope="row">
                    ${version.version}${" "}${version.version === model.default && html`<${Badge} tone="accent">default<//>`}
                  </th>
                  <td class="right">${version.ready} of ${version.min_workers}</td>
                  <td class="right">${format.count(load?.request_count ?? 0)}</td>
                  ${reports("failures") &&
                  html`
                    <td class=${`right ${share > 0 ? "bad" : ""}`}>
                      ${load?.request_count ? `${format.count(load.failed_count)} (${format.percent(share)})` : format.NONE}
                    </td>
                  `}
                  ${latencies().map(
                    ([id]) => html`<td key=${id} class="right">${format.milliseconds(load?.[id])}</td>`,
                  )}
                  <td class="right">${format.milliseconds(load?.queue_ms)}</td>
                </tr>
              `;
            })}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

const latencies = () =>
  reports("p50_ms") ? [["p50_ms", "p50"], ["p95_ms", "p95"], ["p99_ms", "p99"]] : [["mean_ms", "Mean latency"]];

const versionPath = (model, version) => `/models/${part(model.name)}/${part(version.version)}`;

// The version that was the default before the last switch, if it is still there.
function lastDefault(model, all) {
  const switches = all.filter((event) => event.model === model.name && event.kind.startsWith("default_switched"));
  const text = switches.at(-1)?.text ?? "";
  return model.versions.find(({ version }) => version !== model.default && text.includes(` from ${version} to `));
}

const Back = () => html`<nav class="back" aria-label="Back"><a href="#/models">‹ All models</a></nav>`;

function Version({ model, version, ask }) {
  const isDefault = version.version === model.default;
  const load = loads.value.get(key(model.name, version.version));
  const id = `version-${version.version}`;
  return html`
    <section class="card version-card" aria-labelledby=${id}>
      <div class="card-head">
        <h2 id=${id}>Version ${version.version}</h2>
        ${isDefault && html`<${Badge} tone="accent">default<//>`}
        <${State} state=${version.state} />
        <div class="card-actions">
          ${mayChange() && html`<${Actions} model=${model} version=${version} ask=${ask} />`}
        </div>
      </div>
      ${version.description && html`<p>${version.description}</p>`}
      ${version.failure && html`<${Failure} name=${model.name} version=${version} />`}
      ${version.state === "no workers" &&
      isDefault &&
      html`
        <${Notice} tone="warn" title="Every request to this model fails.">
          <p>Its default version has no workers. Scale it up, or make a version with workers the default one.</p>
        <//>
      `}
      <dl class="facts">
        <${Fact} name="Requests">
          ${reports("requests") ? `${format.rate(load?.requests ?? 0)} a second` : "not reported"}
        <//>
        ${reports("p50_ms")
          ? html`
              <${Fact} name="Latency p50 / p99">
                ${load ? `${format.milliseconds(load.p50_ms)} / ${format.milliseconds(load.p99_ms)}` : "no request now"}
              <//>
            `
          : html`<${Fact} name="Mean latency">${load ? format.milliseconds(load.mean_ms) : "no request now"}<//>`}
        <${Fact} name="Waiting">${format.count(version.pending)} of at most ${format.count(version.queue_size)}<//>
        <${Fact} name="Batches">up to ${version.batch_size}, at most ${version.max_batch_delay_ms} ms of waiting<//>
        <${Fact} name="Device">${version.device === "gpu" ? "GPU" : "CPU"}<//>
        ${reports("handler") && html`<${Fact} name="Handler"><code>${version.handler || "none"}</code><//>`}
        <${Fact} name="Archive"><code>${version.url}</code>${version.size != null && `, ${format.bytes(version.size)}`}<//>
        ${reports("modified") &&
        html`
          <${Fact} name="File changed">${version.modified ? format.dateAndTime(version.modified) : "not known"}<//>
        `}
        ${version.digest &&
        html`
          <${Fact} name="Digest">
            <code class="digest" title=${version.digest}>${version.digest.slice(0, 12)}</code>
            <${Copy} text=${version.digest} label="Copy" />
          <//>
        `}
      </dl>
      ${!reports("handler") && html`<${NotReported}>the handler, the size and the digest of an archive<//>`}
      <${Workers} version=${version} />
    </section>
  `;
}

function Workers({ version }) {
  const now = useNow();
  if (!version.workers.length) return html`<p class="muted">It has no worker processes.</p>`;
  const staged = version.workers.some(({ stage }) => stage);
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label=${`Workers of version ${version.version}`}>
      <table class="plain">
        <thead>
          <tr>
            <th scope="col">Worker</th>
            ${staged && html`<th scope="col">Stage</th>`}
            <th scope="col">State</th>
            <th scope="col" class="right">Process</th>
            <th scope="col">Device</th>
            <th scope="col" class="right">Memory</th>
            <th scope="col" class="right">Running for</th>
          </tr>
        </thead>
        <tbody>
          ${version.workers.map(
            (worker) => html`
              <tr key=${worker.id}>
                <th scope="row">${worker.id}</th>
                ${staged && html`<td>${worker.stage || "model"}</td>`}
                <td>${WORKER_STATES[worker.state] || worker.state}</td>
                <td class="right">${worker.pid || format.NONE}</td>
                <td>${worker.gpu == null ? "CPU" : `GPU ${worker.gpu}`}</td>
                <td class="right">${worker.memory ? format.bytes(worker.memory) : format.NONE}</td>
                <td class="right">
                  ${worker.state === "READY" ? html`<${Age} since=${worker.started} now=${now} />` : format.NONE}
                </td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}

const WORKER_STATES = { READY: "Ready", LOADING: "Loading the model", UNLOADING: "Not running" };

function Failure({ name, version }) {
  const [lines, setLines] = useState(null);
  const summary = version.failure.trimEnd().split("\n").at(-1);
  const running = version.ready >= version.min_workers && version.min_workers > 0;

  async function load(event) {
    if (!event.currentTarget.open || lines) return;
    const query = new URLSearchParams({ model: name, version: version.version, limit: LAST_LINES });
    const { entries } = await get(`/logs?${query}`).catch(() => ({ entries: [] }));
    setLines(entries);
  }

  return html`
    <div class="notice notice-bad failure" role="alert">
      <strong>${running ? "A worker failed:" : "Its workers do not run:"}</strong>
      <p class="summary">${summary}</p>
      <details>
        <summary>The whole failure</summary>
        <pre class="code traceback" tabindex="0">${version.failure}</pre>
        <${Copy} text=${version.failure} label="Copy the traceback" />
      </details>
      <details onToggle=${load}>
        <summary>The end of its log</summary>
        ${lines &&
        (lines.length
          ? html`<pre class="code traceback" tabindex="0">${lines.map(({ time, text }) => `${format.timeOfDay(time)}  ${text}\n`)}</pre>`
          : html`<p>Its log is empty.</p>`)}
      </details>
    </div>
  `;
}

function Actions({ model, version, ask }) {
  const path = versionPath(model, version);
  const isDefault = version.version === model.default;
  return html`
    <button class="button small" onClick=${() => ask({ kind: "scale", model, version, path })}>Scale</button>
    ${!isDefault &&
    html`
      <button class="button small" onClick=${() => ask({ kind: "default", model, version, path })}>
        Make it the default
      </button>
    `}
    ${server.value.may_register &&
    (!isDefault || model.versions.length === 1) &&
    html`
      <button class="button small quiet-danger" onClick=${() => ask({ kind: "unregister", model, version, path })}>
        Unregister
      </button>
    `}
  `;
}

function Question({ question, onClose }) {
  const { kind, model, version, path } = question;
  const named = `${model.name} ${version.version}`;
  if (kind === "scale") return html`<${Scale} ...${question} named=${named} onClose=${onClose} />`;
  if (kind === "default") {
    return html`
      <${Confirm}
        title=${`Make ${version.version} the default version of ${model.name}?`}
        action="Make it the default"
        onConfirm=${() => manage("PUT", `${path}/set-default`)}
        onClose=${onClose}
      >
        <p>
          Requests that name no version go to ${version.version} from then on. Version ${model.default} keeps its
          workers, so that you can switch back.
        </p>
      <//>
    `;
  }
  const last = model.versions.length === 1;
  return html`
    <${Confirm}
      title=${`Unregister ${named}?`}
      action="Unregister"
      danger
      onConfirm=${async () => {
        await manage("DELETE", path);
        if (last) location.hash = "#/models";
      }}
      onClose=${onClose}
    >
      <p>
        It gets no more requests, completes those that it has, and then its workers end.
        ${last ? ` It is the only version: requests to ${model.name} get status 404 from then on.` : ""} The archive
        stays in the model store.
      </p>
    <//>
  `;
}

function Scale({ version, path, named, onClose }) {
  const [workers, setWorkers] = useState(version.min_workers);
  const each = memoryOfWorker(version);
  const more = workers - version.min_workers;
  return html`
    <${Confirm}
      title=${`Scale ${named}`}
      action=${`Set to ${format.plural(workers, "worker")}`}
      danger=${workers === 0}
      onConfirm=${() => manage("PUT", path, { min_worker: workers, max_worker: workers })}
      onClose=${onClose}
    >
      <label class="field">
        <span>Workers</span>
        <input
          type="number"
          min="0"
          max="1024"
          value=${workers}
          onInput=${(event) => setWorkers(Math.max(0, Math.min(1024, Math.floor(Number(event.currentTarget.value) || 0))))}
        />
      </label>
      <p>
        ${workers === 0
          ? "Without workers every request to this version fails. Requests that it has are completed first."
          : more > 0
            ? `${format.plural(more, "process", "processes")} will be started` +
              (each ? `, about ${format.bytes(each * more)} of memory more.` : ".")
            : more < 0
              ? `${format.plural(-more, "process", "processes")} will end, each when it has answered its requests.`
              : "That is as many as it has now."}
      </p>
    <//>
  `;
}

function memoryOfWorker(version) {
  const used = version.workers.map(({ memory }) => memory).filter(Boolean);
  return used.length ? used.reduce((sum, memory) => sum + memory, 0) / used.length : 0;
}

function Happened({ name }) {
  const own = events.value.filter(({ model }) => model === name);
  if (!own.length) return null;
  return html`
    <section class="card" aria-labelledby="happened">
      <h2 id="happened">What happened</h2>
      <${Events} events=${own} kinds="model" most=${15} />
    </section>
  `;
}
