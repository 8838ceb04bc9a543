// Try a model: a form made from its signature and samples, the answer beside its explanation, two versions side by side.

import { useEffect, useRef, useState } from "preact/hooks";

import { Answer } from "./answer.js";
import { ApiError, get, part, send } from "./api.js";
import { Form, inputOf } from "./form.js";
import { mayChange, models, reports, server } from "./state.js";
import { Snippets } from "./snippets.js";
import { Empty, html, NotReported, Notice } from "./ui.js";

export default function Try({ names }) {
  const all = [...models.value.values()].sort((one, other) => one.name.localeCompare(other.name));
  const model = models.value.get(names[0]) ?? (names[0] ? undefined : firstReady(all));
  const version = model && (model.versions.some((one) => one.version === names[1]) ? names[1] : model.default);

  return html`
    <main class="page" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Try it</h1>
        <p class="muted">Send one request to a model and see what it answers, and why.</p>
      </div>
      ${!all.length
        ? html`<${Empty} title="No model is registered yet"><p>Register an archive; it can be tried at once.</p><//>`
        : html`
            <div class="toolbar">
              <${Choice} label="Model" value=${model?.name ?? ""} options=${all.map(({ name }) => name)}
                onChange=${(name) => (location.hash = `#/try/${part(name)}`)} />
              ${model &&
              html`
                <${Choice} label="Version" value=${version}
                  options=${model.versions.map((one) => one.version)}
                  names=${(one) => (one === model.default ? `${one} (default)` : one)}
                  onChange=${(one) => (location.hash = `#/try/${part(model.name)}/${part(one)}`)} />
              `}
            </div>
            ${model
              ? html`<${Bench} key=${`${model.name}\n${version}`} model=${model} version=${version} />`
              : html`<${Notice} tone="warn">There is no model named ${names[0]} now.<//>`}
          `}
    </main>
  `;
}

const firstReady = (all) => all.find(({ versions }) => versions.some(({ ready }) => ready)) ?? all[0];

export function Choice({ label, value, options, names = (option) => option, onChange }) {
  return html`
    <label class="select">
      <span>${label}</span>
      <select value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
        ${!options.includes(value) && html`<option value=${value}>${value}</option>`}
        ${options.map((option) => html`<option key=${option} value=${option}>${names(option)}</option>`)}
      </select>
    </label>
  `;
}

function Bench({ model, version }) {
  const [form, setForm] = useState(null);
  const [error, setError] = useState("");
  const [input, setInput] = useState(null);
  const [explain, setExplain] = useState(false);
  const [target, setTarget] = useState("");
  const [other, setOther] = useState("");
  const [runs, setRuns] = useState([]);
  const [busy, setBusy] = useState(false);
  const results = useRef(null);
  const described = model.versions.find((one) => one.version === version);

  useEffect(() => {
    get(`/models/${part(model.name)}/${part(version)}/form`).then(
      (loaded) => {
        setForm(loaded);
        setExplain(Boolean(loaded.explains));
      },
      (failure) => setError(failure.message),
    );
  }, []);

  async function run(event) {
    event?.preventDefault();
    const request = inputOf(input);
    if (!request) return;
    setBusy(true);
    const versions = [version, ...(other ? [other] : [])];
    setRuns(versions.map((one) => ({ version: one, request })));
    const asked = versions.flatMap((one, index) => [
      call(model.name, one, "predict", request).then((answer) => put(index, { prediction: answer })),
      form.pictures &&
        call(model.name, one, "predict", request, { Accept: "image/png" }).then((answer) => put(index, { picture: answer })),
      explain &&
        call(model.name, one, "explain", request, explaining(form, target)).then((answer) =>
          put(index, { explanation: answer }),
        ),
    ]);
    await Promise.all(asked);
    setBusy(false);
    results.current?.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  function put(index, part) {
    setRuns((before) => before.map((one, position) => (position === index ? { ...one, ...part } : one)));
  }

  if (error) return html`<${Notice} tone="bad" title="The form could not be made.">${error}<//>`;
  if (!form) return html`<div class="card skeleton" role="status"><span class="hidden">Loading the form.</span><div class="skeleton-plot"></div></div>`;
  const others = model.versions.map((one) => one.version).filter((one) => one !== version);
  const labels = Object.entries(form.labels);
  const ready = described?.ready > 0;
  return html`
    <div class="bench">
      <form class="card bench-form" onSubmit=${run} aria-label="The request">
        ${described?.description && html`<p class="muted">${described.description}</p>`}
        ${!ready &&
        html`<${Notice} tone="warn">This version has no worker that is ready; a request would fail or wait.<//>`}
        ${!reports("samples") && html`<${NotReported}>the samples of an archive<//>`}
        <${Form} form=${form} name=${model.name} version=${version} value=${input} onChange=${setInput} />
        <fieldset class="options">
          <legend class="hidden">Options</legend>
          ${form.explains !== false &&
          html`<label class="check">
            <input type="checkbox" checked=${explain} onChange=${(event) => setExplain(event.currentTarget.checked)} />
            <span>Explain the answer, too</span>
          </label>`}
          ${explain &&
          labels.length > 1 &&
          html`
            <label class="select">
              <span>What speaks for</span>
              <select value=${target} onChange=${(event) => setTarget(event.currentTarget.value)}>
                <option value="">the predicted class</option>
                ${labels.map(([index, label]) => html`<option key=${index} value=${index}>${label}</option>`)}
              </select>
            </label>
          `}
          ${others.length > 0 &&
          html`
            <label class="select">
              <span>Compare with</span>
              <select value=${other} onChange=${(event) => setOther(event.currentTarget.value)}>
                <option value="">no other version</option>
                ${others.map((one) => html`<option key=${one} value=${one}>version ${one}</option>`)}
              </select>
            </label>
          `}
        </fieldset>
        <div class="run">
          <button class="button primary" disabled=${busy || !inputOf(input) || !mayChange()}>
            ${busy ? "Running" : "Run"}
          </button>
          ${!mayChange() && html`<span class="muted small">A reader cannot run requests.</span>`}
        </div>
      </form>
      <div class=${`results ${runs.length > 1 ? "side-by-side" : ""}`} ref=${results} aria-live="polite">
        ${runs.length
          ? runs.map(
              (one) => html`
                <section class="card result" key=${one.version} aria-label=${`Answer of version ${one.version}`}>
                  ${runs.length > 1 && html`<h2>Version ${one.version}</h2>`}
                  <${Answer} run=${one} form=${form} explains=${explain} draws=${form.pictures} />
                </section>
              `,
            )
          : html`<div class="card result placeholder"><p class="muted">The answer will be here.</p></div>`}
      </div>
      <${Snippets} name=${model.name} version=${version} isDefault=${version === model.default} input=${input}
        form=${form} server=${server.value} explain=${explain} />
    </div>
  `;
}

function explaining(form, target) {
  return {
    ...(form.kind === "image" ? { Accept: "image/png" } : { Accept: "application/json" }),
    ...(target ? { "Explain-Target": target } : {}),
  };
}

async function call(name, version, verb, request, headers = {}) {
  const began = performance.now();
  const path = `/models/${part(name)}/${part(version)}/${verb}`;
  try {
    const response = await send("POST", path, {
      body: request.body,
      headers: { ...(request.type ? { "Content-Type": request.type } : {}), ...headers },
    });
    const blob = await response.blob();
    return {
      status: response.status,
      type: response.headers.get("content-type") || "",
      timing: timingOf(response.headers.get("server-timing")),
      id: response.headers.get("x-request-id"),
      total: performance.now() - began,
      blob,
    };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    return {
      error: error.message,
      status: error.status,
      text: error.text,
      id: error.response?.headers.get("x-request-id"),
    };
  }
}

function timingOf(header) {
  const steps = {};
  for (const entry of (header || "").split(",")) {
    const [name, ...parameters] = entry.split(";").map((text) => text.trim());
    const duration = parameters.find((text) => text.startsWith("dur="));
    if (name && duration) steps[name] = Number(duration.slice(4));
  }
  return steps;
}
