// Change what runs: the difference between a deployment and the server, applied step by step; promote and roll back.

import { useEffect, useRef, useState } from "preact/hooks";
import { signal } from "@preact/signals";

import { get, part, post } from "./api.js";
import * as format from "./format.js";
import { begin, Operation } from "./operation.js";
import { Promote } from "./promote.js";
import { connection, mayChange, models, reports, rollout, server } from "./state.js";
import { planned } from "./steps.js";
import { Badge, Confirm, Empty, FileDrop, html, Notice } from "./ui.js";

const PAUSE_MS = 700; // after a change of the models, which seldom comes alone
const LARGEST = 1 << 20; // characters of a deployment

// What was written outlives a look at another page.
const draft = signal({ text: null, touched: false });
const shown = signal(null); // the plan, with the text that it is of

export default function Rollout() {
  if (reports("rollout")) return html`<${Page} />`;
  return html`
    <main class="page" id="main">
      <${Empty} title="Changes are made by the command line">
        <p><code>torchmar plan</code>, <code>apply</code>, <code>promote</code> and <code>rollback</code> work for this server.</p>
      <//>
    </main>
  `;
}

function Page() {
  const [overview, setOverview] = useState(null);
  const [error, setError] = useState("");
  const running = rollout.value?.operation?.state === "running";
  const key = running ? "" : stateKey();

  useEffect(() => {
    if (running || !connection.value.live) return undefined;
    const timer = setTimeout(
      () =>
        get("/rollout/state").then(
          (loaded) => {
            setOverview(loaded);
            setError("");
            if (!draft.value.touched) draft.value = { text: loaded.deployment, touched: false };
          },
          (failure) => setError(failure.message),
        ),
      overview ? PAUSE_MS : 0,
    );
    return () => clearTimeout(timer);
  }, [key, running, connection.value.live]);

  return html`
    <main class="page" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Rollout</h1>
        <p class="muted">See what a change would do before it is made; no request is lost by it.</p>
      </div>
      ${rollout.value?.operation && html`<${Operation} operation=${rollout.value.operation} />`}
      ${error && html`<${Notice} tone="bad" title="The state of the server cannot be read.">${error}<//>`}
      <${Versions} rollbacks=${overview?.rollbacks} running=${running} />
      <${Deployment} overview=${overview} running=${running} />
    </main>
  `;
}

// All of the models that a plan or a rollback depends on; not their load.
const stateKey = () =>
  JSON.stringify(
    [...models.value.values()].map((model) => [
      model.name,
      model.default,
      model.versions.map(({ version, min_workers, max_workers, ready }) => [version, min_workers, max_workers, ready > 0]),
    ]),
  );

// Models with a version to promote, or one to go back to.

function Versions({ rollbacks, running }) {
  const [question, setQuestion] = useState(null);
  const several = [...models.value.values()].filter(({ versions }) => versions.length > 1);
  return html`
    <section class="card" aria-labelledby="versions">
      <h2 id="versions">Versions</h2>
      ${several.length === 0
        ? html`
            <p class="muted">
              ${models.value.size
                ? "Every model has one version. A second one can be promoted here, and a rollback leads back."
                : "No model is registered yet."}
            </p>
          `
        : html`
            <ul class="choices">
              ${several.map(
                (model) => html`
                  <li key=${model.name}>
                    <div>
                      <a class="name" href=${`#/models/${part(model.name)}`}>${model.name}</a>${" "}
                      <span>${model.default}</span> <${Badge} tone="accent">default<//>
                    </div>
                    <div class="choice-actions">
                      <${Choices} model=${model} back=${rollbacks?.[model.name]} running=${running} ask=${setQuestion} />
                    </div>
                  </li>
                `,
              )}
            </ul>
          `}
      ${question?.kind === "promote" && html`<${Promote} ...${question} onClose=${() => setQuestion(null)} />`}
      ${question?.kind === "rollback" && html`<${Back} ...${question} onClose=${() => setQuestion(null)} />`}
    </section>
  `;
}

function Choices({ model, back, running, ask }) {
  const others = model.versions.filter(({ version }) => version !== model.default);
  if (!mayChange()) return html`<span class="muted">beside it: ${others.map(({ version }) => version).join(", ")}</span>`;
  return html`
    ${others.map(
      ({ version, ready }) => html`
        <button
          key=${version}
          class="button small"
          disabled=${running || !ready}
          title=${ready ? undefined : `${version} has no worker that is ready`}
          onClick=${() => ask({ kind: "promote", model, version })}
        >
          Promote ${version}
        </button>
      `,
    )}
    ${back?.version &&
    html`
      <button
        class="button small"
        disabled=${running}
        onClick=${() => ask({ kind: "rollback", model, version: back.version })}
      >
        Roll back to ${back.version}
      </button>
    `}
    ${back?.reason && html`<span class="muted small" title=${back.reason}>nothing to roll back to</span>`}
  `;
}

function Back({ model, version, onClose }) {
  const workers = (name) => model.versions.find((one) => one.version === name)?.min_workers ?? 0;
  const more = workers(model.default) - workers(version);
  return html`
    <${Confirm}
      title=${`Roll ${model.name} back to ${version}?`}
      action="Roll back"
      onConfirm=${() => begin("rollback", { model: model.name, version })}
      onClose=${onClose}
    >
      <p>
        Requests that name no version go to ${version} at once. Version ${model.default} stays registered with its
        workers, and completes the requests that it has.
        ${more > 0 ? ` Then ${format.plural(more, "worker")} of ${version} will be started, so that it has as many.` : ""}
      </p>
    <//>
  `;
}

// The deployment and its plan.

function Deployment({ overview, running }) {
  const { text, touched } = draft.value;
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const [asked, setAsked] = useState(false);
  const current = shown.value?.text === text ? shown.value : null;
  const operation = rollout.value?.operation;
  const before = useRef(operation?.state);

  // After a change the plan says whether all of it is done.
  useEffect(() => {
    if (before.current === "running" && operation && operation.state !== "running" && shown.value) compare();
    before.current = operation?.state;
  }, [operation?.id, operation?.state]);

  const write = (written, isTouched = true) => {
    setError("");
    draft.value = { text: written, touched: isTouched };
  };

  async function compare() {
    const deployment = draft.value.text ?? "";
    setBusy(true);
    setError("");
    try {
      shown.value = { text: deployment, ...(await post("/rollout/plan", { deployment })) };
    } catch (failure) {
      setError(failure.message);
    }
    setBusy(false);
  }

  async function open(file) {
    if (file.size > LARGEST) {
      setError(`${file.name} has ${format.bytes(file.size)}, and is no deployment.`);
      return;
    }
    write(await file.text());
  }

  async function last() {
    try {
      const { deployment } = await get("/rollout");
      write(deployment);
    } catch (failure) {
      setError(failure.message);
    }
  }

  const nothing = text === "" && !touched;
  return html`
    <div class="bench deployment">
      <section class="card bench-form" aria-labelledby="deployment">
        <div class="card-head">
          <h2 id="deployment">Deployment</h2>
          <p class="muted">what should run, as in <code>deployment.yaml</code></p>
        </div>
        <div class="toolbar">
          <button class="button small" disabled=${!overview} onClick=${() => write(overview.deployment, false)}>
            What runs now
          </button>
          ${rollout.value?.applied &&
          mayChange() &&
          html`
            <button class="button small" onClick=${last} title=${format.dateAndTime(rollout.value.applied)}>
              Applied last
            </button>
          `}
          <${FileDrop} compact accept=".yaml,.yml,text/yaml" onFile=${open}>Open a file<//>
        </div>
        <label class="field">
          <span class="hidden">The deployment, in YAML</span>
          <textarea
            class="mono"
            rows="18"
            spellcheck="false"
            autocapitalize="off"
            disabled=${text === null}
            placeholder=${text === null ? "Reading what runs now." : 'models:\n  digits:\n    versions:\n      "1.0":\n        min_workers: 1'}
            value=${text ?? ""}
            aria-describedby="deployment-help"
            aria-invalid=${current?.problems.length ? "true" : undefined}
            onInput=${(event) => write(event.currentTarget.value)}
            onDragOver=${(event) => event.preventDefault()}
            onDrop=${(event) => {
              const [file] = event.dataTransfer.files;
              if (!file) return;
              event.preventDefault();
              open(file);
            }}
          ></textarea>
        </label>
        <p id="deployment-help" class="muted small">
          ${nothing ? "Nothing is registered; write what should run. " : ""}Archives are files of the model store
          (${server.value?.model_store}), or URLs. A file can be dropped into the text.
        </p>
        ${error && html`<${Notice} tone="bad">${error}<//>`}
        <div class="run">
          <button class="button primary" disabled=${busy || !text?.trim()} onClick=${compare}>
            ${busy ? "Comparing" : "Show the difference"}
          </button>
          ${text?.trim() && html`<${Save} text=${text} />`}
        </div>
      </section>
      <section class="card bench-form" aria-labelledby="difference" aria-live="polite">
        <h2 id="difference">Difference</h2>
        ${current && !busy
          ? html`<${Difference} current=${current} running=${running} onApply=${() => setAsked(true)} />`
          : html`
              <${Empty} title=${busy ? "Comparing it with the server" : "Nothing is compared yet"}>
                <p>${busy ? "It takes a moment." : shown.value ? "The deployment has been changed since; show the difference again." : "Change the deployment, and see what would happen."}</p>
              <//>
            `}
      </section>
      ${asked && html`<${Apply} current=${current} onClose=${() => setAsked(false)} />`}
    </div>
  `;
}

function Save({ text }) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(new Blob([text], { type: "text/yaml" }));
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [text]);
  return html`<a href=${url} download="deployment.yaml">Save as a file</a>`;
}

const SIGNS = { add: ["+", "good", "added"], change: ["~", "warn", "changed"], remove: ["−", "bad", "removed"], drift: ["!", "muted", "stays"] };

function Difference({ current, running, onApply }) {
  const { problems, plan } = current;
  if (!plan) {
    return html`
      <${Notice} tone="bad" title=${`This deployment has ${format.plural(problems.length, "problem")}.`}>
        <ul class="problems">
          ${problems.map(
            ({ line, place, message, hint }, index) => html`
              <li key=${index}>
                ${line > 0 && html`<strong>Line ${line}</strong>`} ${place && html`<code>${place}</code>`} <span class="prose">${message}</span>
                ${hint && html`<p>${hint}</p>`}
              </li>
            `,
          )}
        </ul>
      <//>
    `;
  }
  return html`
    ${plan.notes.map((note) => html`<p key=${note} class="muted small">${note}</p>`)}
    ${plan.changes.length > 0 &&
    html`
      <ul class="changes">
        ${inOrder(plan.changes).map(({ kind, what, lines }) => {
          const [sign, tone, name] = SIGNS[kind];
          return html`
            <li key=${`${kind} ${what}`}>
              <span class=${`sign ${tone}`} aria-hidden="true">${sign}</span>
              <div>
                <strong>${arrows(what)}</strong> <span class="muted">${name}</span>
                ${lines.map((line, index) => html`<p key=${index} class="muted">${arrows(line)}</p>`)}
              </div>
            </li>
          `;
        })}
      </ul>
    `}
    ${plan.steps.length === 0
      ? html`
          <p class="good-line">
            ${plan.failing.length
              ? html`<span class="pill pill-warn"><span class="dot"></span>Nothing to do</span> But workers of ${plan.failing.join(", ")} do not answer; see their logs.`
              : html`<span class="pill pill-good"><span class="dot"></span>Nothing to do</span> The server is as this deployment says.`}
          </p>
        `
      : html`
          <h3>${format.plural(plan.steps.length, "step")}</h3>
          <ol class="plan-steps">
            ${plan.steps.map((step, index) => html`<li key=${index}>${planned(step)}</li>`)}
          </ol>
          ${mayChange()
            ? html`
                <div class="run">
                  <button class="button primary" disabled=${running || !mayTake(plan)} onClick=${onApply}>Apply</button>
                  ${!mayTake(plan) &&
                  html`<span class="muted">Registering needs <code>enable_model_api=true</code> in the server's configuration.</span>`}
                  ${running && html`<span class="muted">Another change is being made.</span>`}
                </div>
              `
            : html`<p class="muted">Applying it needs the right to manage models.</p>`}
        `}
  `;
}

const arrows = (text) => text.replaceAll("->", "→");

// What stays as it is comes last.
const inOrder = (changes) => [...changes].sort((one, other) => Number(one.kind === "drift") - Number(other.kind === "drift"));

const mayTake = (plan) =>
  server.value?.may_register || !plan.steps.some(({ step }) => ["register", "remove"].includes(step));

function Apply({ current, onClose }) {
  const { plan, text } = current;
  const removes = plan.steps.filter(({ step }) => step === "remove").length;
  return html`
    <${Confirm}
      title=${`Apply ${format.plural(plan.steps.length, "step")}?`}
      action="Apply"
      danger=${removes > 0}
      wide
      onConfirm=${() => begin("apply", { deployment: text, plan: plan.digest })}
      onClose=${onClose}
    >
      <ol class="plan-steps">
        ${plan.steps.map((step, index) => html`<li key=${index}>${planned(step)}</li>`)}
      </ol>
      <p>
        All archives are checked first. If a step fails, all steps before it are
        undone${removes ? "; only the removal of old versions, which comes last, cannot be undone" : ""}.
      </p>
    <//>
  `;
}
