// The samples of an archive: what is expected of each, and what a registered version answered last.

import { useEffect, useState } from "preact/hooks";

import { get, part, send } from "./api.js";
import * as format from "./format.js";
import { mayChange, models, reports } from "./state.js";
import { html, Notice, useNow } from "./ui.js";

const LONGEST = 160; // characters of an expectation

export function Samples({ archive }) {
  const versions = archive.registered.filter(({ model }) => models.value.has(model));
  const [chosen, setChosen] = useState(0);
  const version = versions[Math.min(chosen, versions.length - 1)];
  const path = version && reports("answers") && `/models/${part(version.model)}/${part(version.version)}/samples`;
  const [answers, setAnswers] = useState({});
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");

  useEffect(() => {
    setAnswers({});
    if (!path) return;
    get(path).then(
      (known) => setAnswers(Object.fromEntries(known.answers.map((answer) => [answer.number, answer]))),
      () => {},
    );
  }, [path]);

  async function run() {
    setBusy(true);
    setError("");
    try {
      for (const { number } of archive.samples) {
        const answer = await (await send("POST", `${path}/${number}/run`)).json();
        setAnswers((before) => ({ ...before, [number]: answer }));
      }
    } catch (failure) {
      setError(failure.message);
    }
    setBusy(false);
  }

  if (!archive.samples.length) return null;
  const known = Object.values(answers);
  const wrong = known.filter(({ differences }) => differences.length);
  return html`
    <section class="card" aria-labelledby="samples">
      <div class="card-head">
        <h2 id="samples">Samples and their last answers</h2>
        ${known.length > 0 &&
        html`
          <span class=${`pill ${wrong.length ? "pill-bad" : "pill-good"}`}>
            <span class="dot"></span>${wrong.length ? `${wrong.length} of ${known.length} wrong` : `${known.length} of ${archive.samples.length} right`}
          </span>
        `}
        ${path &&
        mayChange() &&
        html`
          <div class="card-actions">
            ${versions.length > 1 &&
            html`
              <label class="select">
                <span>Version</span>
                <select value=${chosen} onChange=${(event) => setChosen(Number(event.currentTarget.value))}>
                  ${versions.map((one, index) => html`<option key=${index} value=${index}>${one.model} ${one.version}</option>`)}
                </select>
              </label>
            `}
            <button class="button small" disabled=${busy} onClick=${run}>
              ${busy ? "Sending" : `Send ${archive.samples.length === 1 ? "it" : "them"} to ${version.model} ${version.version}`}
            </button>
          </div>
        `}
      </div>
      ${!version && html`<p class="muted">It is not registered, so nothing has answered them.</p>`}
      ${error && html`<${Notice} tone="bad">${error}<//>`}
      <div class="scroll" tabindex="0" role="region" aria-label="Samples">
        <table class="plain samples-table">
          <thead>
            <tr>
              <th scope="col">Sample</th>
              <th scope="col">Expected</th>
              <th scope="col">Last answer</th>
              <th scope="col" class="right">Time</th>
            </tr>
          </thead>
          <tbody>
            ${archive.samples.map((sample) => html`<${Row} key=${sample.number} sample=${sample} answer=${answers[sample.number]} />`)}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

function Row({ sample, answer }) {
  return html`
    <tr>
      <th scope="row">${sample.name}${sample.explain && html` <span class="muted">explained</span>`}</th>
      <td><code>${expected(sample)}</code></td>
      <td>${answer ? html`<${Given} answer=${answer} />` : html`<span class="muted">none yet</span>`}</td>
      <td class="right">${answer ? format.milliseconds(answer.milliseconds) : format.NONE}</td>
    </tr>
  `;
}

function expected({ expect, status }) {
  const text = expect == null ? `status ${status}` : JSON.stringify(expect);
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}

function Given({ answer }) {
  const { differences, status, text, type, size, time } = answer;
  const right = differences.length === 0;
  const ago = useNow() - time;
  return html`
    <span class=${right ? "good" : "bad"}>${right ? "right" : "wrong"}</span>
    <span class="muted" title=${format.dateAndTime(time)}>, status ${status}, ${ago < 1 ? "just now" : `${format.duration(ago)} ago`}</span>
    ${differences.length > 0 && html`<ul class="differences">${differences.map((line) => html`<li key=${line} class="prose">${line}</li>`)}</ul>`}
    ${text
      ? html`<details><summary>The answer</summary><pre class="code answer-text" tabindex="0">${pretty(text)}</pre></details>`
      : html`<span class="muted">, ${format.bytes(size)} of ${type || "an unnamed type"}</span>`}
  `;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
