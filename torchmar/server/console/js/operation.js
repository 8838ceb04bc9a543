// A change that is being made, or the last one: its steps as they happen, and what came of it.

import { useState } from "preact/hooks";

import { part, post } from "./api.js";
import * as format from "./format.js";
import { mayChange } from "./state.js";
import { happening } from "./steps.js";
import { Confirm, html, Notice, useNow } from "./ui.js";

const STATES = {
  running: ["busy", "Running"],
  done: ["good", "Done"],
  rejected: ["warn", "Not promoted"],
  failed: ["bad", "Failed"],
  stopped: ["warn", "Stopped"],
  interrupted: ["warn", "Interrupted"],
};
const TITLES = {
  apply: () => "Apply a deployment",
  promote: ({ model, version }) => `Promote ${model} ${version}`,
  rollback: ({ model, version }) => `Roll ${model} back to ${version}`,
};
const APART = ["verify", "undo"]; // steps that no plan has

// Begin a change, and show its steps.
export async function begin(kind, document) {
  await post(`/rollout/${kind}`, document);
  scrollTo({ top: 0, behavior: "smooth" });
}

export function Operation({ operation }) {
  const [asked, setAsked] = useState(false);
  const running = operation.state === "running";
  const [tone, name] = STATES[operation.state];
  const begun = operation.steps.filter(({ verb }) => !APART.includes(verb)).length;
  const undoing = operation.steps.some(({ verb }) => verb === "undo");
  const pending = running && !undoing && !operation.stopping ? operation.planned.slice(begun) : [];
  return html`
    <section class="card operation" aria-labelledby="operation">
      <div class="card-head">
        <h2 id="operation">${TITLES[operation.kind](operation)}</h2>
        <span class=${`pill pill-${tone}`} role="status"><span class="dot" aria-hidden="true"></span>${operation.stopping && running ? "Stopping" : name}</span>
        <${When} operation=${operation} running=${running} />
        ${running &&
        mayChange() &&
        html`
          <div class="card-actions">
            <button class="button small quiet-danger" disabled=${operation.stopping} onClick=${() => setAsked(true)}>Stop</button>
          </div>
        `}
      </div>
      ${(operation.steps.length > 0 || pending.length > 0) &&
      html`
        <ol class="steps">
          ${operation.steps.map((step, index) => html`<${Step} key=${index} step=${step} running=${running} since=${operation.started} />`)}
          ${pending.map((step, index) => html`<li key=${`pending ${index}`} class="pending"><span class="mark" aria-hidden="true">○</span><span>${happening(step)}</span></li>`)}
        </ol>
      `}
      ${running && !operation.steps.length && !pending.length && html`<p class="muted">It begins.</p>`}
      ${operation.outcome && html`<${Outcome} operation=${operation} />`}
      ${asked &&
      running &&
      html`
        <${Confirm} title="Stop this change?" action="Stop" danger onConfirm=${() => post("/rollout/stop", {})} onClose=${() => setAsked(false)}>
          <p>${STOPS[operation.kind]}</p>
        <//>
      `}
    </section>
  `;
}

const STOPS = {
  apply:
    "What was done so far is undone, unless the new versions have the traffic already and old ones are being removed; " +
    "then it stops where it is, and the next difference shows what is left.",
  promote: "The default version stays as it is.",
  rollback: "The default version has probably been switched already; the workers that are being started stay.",
};

function When({ operation, running }) {
  const now = useNow();
  const seconds = (running ? now : operation.ended ?? operation.started) - operation.started;
  return html`
    <span class="muted" title=${format.dateAndTime(operation.started)}>
      ${running ? `for ${format.duration(seconds)}` : `${format.dateAndTime(operation.started)}${operation.ended ? `, took ${format.duration(Math.max(1, seconds))}` : ""}`}
    </span>
  `;
}

function Step({ step, running }) {
  const { seconds, failed, note } = step;
  const now = seconds === null;
  const [mark, kind] = failed ? ["✕", "failed-step"] : now ? [running ? "●" : "○", running ? "current" : "pending"] : ["✓", "done-step"];
  return html`
    <li class=${kind}>
      <span class="mark" aria-hidden="true">${mark}</span>
      <span>
        <span class="prose">${happening(step)}</span>
        <span class="hidden">${failed ? ", failed" : now ? ", running" : ", done"}</span>
        ${note && html`<span class="muted note">${note}</span>`}
      </span>
      <span class="muted took">${seconds >= 0.0005 ? format.milliseconds(Math.round(seconds * 1000)) : ""}</span>
    </li>
  `;
}

function Outcome({ operation }) {
  const { outcome, state, kind, model, version } = operation;
  return html`
    ${state === "done" && html`<p>${DONE[kind](operation, outcome)}</p>`}
    ${state === "stopped" &&
    html`<${Notice} tone="warn">${outcome.undone ? "It was stopped, and everything is as it was before." : "It was stopped in the middle. Show the difference to see what is left to do."}<//>`}
    ${state === "interrupted" &&
    html`<${Notice} tone="warn">${outcome.message} The difference shows what is left to do, or to undo.<//>`}
    ${state === "failed" &&
    html`
      <${Notice} tone="bad">
        <p class="prose">${outcome.message}</p>
        ${outcome.hint && html`<p>${outcome.hint}</p>`}
        ${kind === "apply" && html`<p>${outcome.undone ? "Everything is as it was before." : operation.steps.length ? "Not everything could be undone." : ""}</p>`}
      <//>
    `}
    ${outcome.left.length > 0 &&
    html`
      <${Notice} tone="warn" title="Left as it is:">
        <ul>${outcome.left.map((line, index) => html`<li key=${index}>${line}</li>`)}</ul>
      <//>
    `}
    ${outcome.rest &&
    html`
      <${Notice} tone="warn">
        ${outcome.rest.failing.length
          ? `All is done, but workers of ${outcome.rest.failing.join(", ")} do not answer; their logs have the reason.`
          : "The server is not yet as the deployment says; apply it again to go on from here."}
      <//>
    `}
    ${outcome.evidence && html`<${Evidence} evidence=${outcome.evidence} version=${version} before=${outcome.before} />`}
    ${kind !== "apply" && state !== "running" && html`<p><a href=${`#/models/${part(model)}`}>See ${model}</a></p>`}
  `;
}

const DONE = {
  apply: () => "Every step is done.",
  promote: ({ model, version }, { before, samples }) =>
    `${version} is the default version of ${model} now, in place of ${before}. ` +
    (samples ? `It answered ${format.plural(samples, "sample")} as expected.` : "Its archive has no samples, so only its workers were checked."),
  rollback: ({ model, version }, { before }) => `${version} is the default version of ${model} again, in place of ${before}.`,
};

const times = (value) => `${value.toFixed(3)} times`;

function Evidence({ evidence, version, before }) {
  const { verdict, requests, differences, allowed, ratio_of_medians: ratio, max_regression, latency } = evidence;
  const limit = times(1 + max_regression);
  const reason = {
    pass: `${version} is as good as ${before}: its median is within ${limit}, with 95 % confidence.`,
    "answers differ": `The answers differ for ${format.plural(differences.length, "request")}; ${allowed || "none"} may.`,
    slower: `${version} is slower: its median may be at most ${limit} that of ${before}.`,
    undecided: `It is not decided: the limit, ${limit}, is inside of the interval. More samples in the archive make it narrower.`,
  }[verdict];
  return html`
    <div class="evidence">
      <h3>Evidence</h3>
      <p>${reason}</p>
      <div class="scroll" tabindex="0" role="region" aria-label="Latency of both versions">
        <table class="plain">
          <thead>
            <tr>
              <th scope="col">Version</th>
              <th scope="col" class="right">Answers</th>
              <th scope="col" class="right">Median</th>
              <th scope="col" class="right">90 %</th>
              <th scope="col" class="right">99 %</th>
            </tr>
          </thead>
          <tbody>
            ${latency.map(
              (one) => html`
                <tr key=${one.version}>
                  <th scope="row">${one.version}</th>
                  <td class="right">${format.count(one.answers)}</td>
                  <td class="right">${format.milliseconds(one.p50_ms)}</td>
                  <td class="right">${format.milliseconds(one.p90_ms)}</td>
                  <td class="right">${format.milliseconds(one.p99_ms)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
      <p>
        Its median is ${times(ratio.value)} that of ${before} (${ratio.low.toFixed(3)} to ${ratio.high.toFixed(3)} with
        95 % confidence). ${requests - differences.length} of ${format.plural(requests, "request")} got the same answer.
      </p>
      ${differences.length > 0 &&
      html`
        <details>
          <summary>${format.plural(differences.length, "difference")}</summary>
          <ul class="differences">${differences.map((line) => html`<li key=${line} class="prose">${line}</li>`)}</ul>
        </details>
      `}
    </div>
  `;
}
