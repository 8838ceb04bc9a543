// The answer of a model beside its explanation, and where the time went.

import { useEffect, useState } from "preact/hooks";

import * as format from "./format.js";
import { useObjectUrl } from "./form.js";
import { reports } from "./state.js";
import { Copy, html, NotReported, Notice } from "./ui.js";

const MOST_BARS = 10;
const LONGEST = 200_000; // characters of a text that is shown

export function Answer({ run, form, explains, draws }) {
  const { prediction, explanation, picture } = run;
  return html`
    <div class=${`answers ${explains || draws ? "two" : ""}`}>
      <div class="answer">
        <h3>Prediction</h3>
        ${prediction ? html`<${Content} answer=${prediction} />` : html`<${Waiting} />`}
      </div>
      ${draws &&
      html`
        <div class="answer">
          <h3>Drawn</h3>
          ${picture ? html`<${Content} answer=${picture} />` : html`<${Waiting} />`}
        </div>
      `}
      ${explains &&
      html`
        <div class="answer">
          <h3>Explanation</h3>
          ${explanation ? html`<${Explanation} answer=${explanation} run=${run} form=${form} />` : html`<${Waiting} />`}
        </div>
      `}
    </div>
    ${prediction && !prediction.error && html`<${Timing} steps=${prediction.timing} total=${prediction.total} />`}
    ${prediction?.id && html`<p class="muted small">Request <code>${prediction.id}</code></p>`}
  `;
}

const Waiting = () => html`<p class="muted" role="status">Waiting for the model.</p>`;

function Failed({ answer }) {
  return html`<${Notice} tone="bad" title=${answer.status ? `Status ${answer.status}.` : "No answer."}>
    <p class="failed-text">${answer.error}</p>
  <//>`;
}

function useText(answer) {
  const [text, setText] = useState(null);
  const readable = /json|^text\//.test(answer.type || "");
  useEffect(() => {
    let current = true;
    setText(null);
    if (answer.blob && readable) answer.blob.text().then((read) => current && setText(read));
    return () => {
      current = false;
    };
  }, [answer]);
  return [text, readable];
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function Content({ answer }) {
  const [text, readable] = useText(answer);
  if (answer.error) return html`<${Failed} answer=${answer} />`;
  if (answer.type.startsWith("image/")) return html`<${Picture} blob=${answer.blob} alt="The model's answer, a picture" />`;
  if (!readable) return html`<${Download} answer=${answer} />`;
  if (text === null) return null;
  const document = parsed(text);
  const shown = document === undefined ? text : JSON.stringify(document, null, 2);
  const bars = barsOf(document);
  return html`
    ${bars && html`<${Probabilities} entries=${bars} />`}
    ${bars
      ? html`<details><summary>As JSON</summary><${Code} text=${shown} /></details>`
      : html`<${Code} text=${shown} />`}
  `;
}

const Code = ({ text }) => html`
  <div class="code-box">
    <pre class="code" tabindex="0">${text.slice(0, LONGEST)}</pre>
    <${Copy} text=${text} />
  </div>
`;

function Download({ answer }) {
  const url = useObjectUrl(answer.blob);
  return html`
    <p>
      The answer is ${format.bytes(answer.blob.size)} of ${answer.type || "an unnamed type"}.${" "}
      <a href=${url} download="answer">Save it</a>
    </p>
  `;
}

function Picture({ blob, alt }) {
  const url = useObjectUrl(blob);
  if (!url) return null;
  return html`<a href=${url} target="_blank" rel="noopener" title="Open in full size"><img class="picture" src=${url} alt=${alt} /></a>`;
}

// An object whose values are shares of one: labels with their probabilities.
function barsOf(document) {
  if (!document || typeof document !== "object" || Array.isArray(document)) return null;
  const entries = Object.entries(document);
  const shares = entries.length > 0 && entries.every(([, value]) => typeof value === "number" && value >= 0 && value <= 1);
  return shares ? entries.sort((one, other) => other[1] - one[1]).slice(0, MOST_BARS) : null;
}

function Probabilities({ entries }) {
  return html`
    <table class="bars">
      <caption class="hidden">Labels with their probabilities</caption>
      <tbody>
        ${entries.map(
          ([label, value]) => html`
            <tr key=${label}>
              <th scope="row">${label}</th>
              <td>
                <span class="bar" style=${{ width: `${Math.max(0.5, 70 * value)}%` }}></span>
                <span class="bar-value">${(value * 100).toFixed(1)} %</span>
              </td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

function Explanation({ answer, run, form }) {
  const [text] = useText(answer);
  if (answer.error) return html`<${Failed} answer=${answer} />`;
  if (answer.type.startsWith("image/")) {
    return html`
      <${Picture} blob=${answer.blob} alt="The input with the parts that speak for the class, and those against it" />
    `;
  }
  const document = text === null ? undefined : parsed(text);
  if (document?.tokens && Array.isArray(document.tokens)) {
    return html`<${Words} document=${document} text=${document.text ?? run.request.body} /><${Colours} /><${About} document=${document} />`;
  }
  if (document?.attributions && !Array.isArray(document.attributions)) {
    return html`<${Columns} document=${document} /><${Colours} /><${About} document=${document} />`;
  }
  return html`<${Content} answer=${answer} />`;
}

const Colours = () => html`
  <p class="muted small colours">
    <span class="swatch for"></span> speaks for it <span class="swatch against"></span> speaks against it
  </p>
`;

function About({ document }) {
  const subject = document.label ? `What speaks for ${document.label}` : "What the answer depends on";
  const method = document.method ? `, by ${document.method.replaceAll("_", " ")}` : "";
  const steps = document.n_steps ? ` in ${document.n_steps} steps` : "";
  return html`<p class="muted small">${subject}${method}${steps}.</p>`;
}

function Words({ document, text }) {
  if (typeof text !== "string") return html`<${Code} text=${JSON.stringify(document, null, 2)} />`;
  const tokens = [...document.tokens].sort((one, other) => one.start - other.start);
  const largest = Math.max(1e-12, ...tokens.map(({ value }) => Math.abs(value)));
  // Positions count characters, and a string of JavaScript has two units for some of them.
  const characters = [...text];
  const pieces = [];
  let end = 0;
  for (const { start, end: stop, value } of tokens) {
    if (start < end) continue;
    if (start > end) pieces.push([characters.slice(end, start).join(""), 0]);
    pieces.push([characters.slice(start, stop).join(""), value / largest]);
    end = stop;
  }
  pieces.push([characters.slice(end).join(""), 0]);
  return html`
    <p class="words">
      ${pieces.map(([piece, weight], index) =>
        Math.abs(weight) < 0.03
          ? piece
          : html`<mark
              key=${index}
              class=${weight > 0 ? "for" : "against"}
              style=${{ "--weight": Math.abs(weight).toFixed(2) }}
              title=${`${(weight * largest).toPrecision(3)}`}
              >${piece}</mark
            >`,
      )}
    </p>
  `;
}

function Columns({ document }) {
  const entries = Object.entries(document.attributions).slice(0, MOST_BARS);
  const largest = Math.max(1e-12, ...entries.map(([, value]) => Math.abs(value)));
  const rest = Object.keys(document.attributions).length - entries.length;
  return html`
    <table class="bars signed">
      <caption class="hidden">Columns with what they contribute</caption>
      <tbody>
        ${entries.map(
          ([name, value]) => html`
            <tr key=${name}>
              <th scope="row">
                ${name}
                ${document.row?.[name] !== undefined && html`<span class="muted"> ${String(document.row[name])}</span>`}
              </th>
              <td>
                <span
                  class=${`bar ${value >= 0 ? "for" : "against"}`}
                  style=${{ width: `${Math.max(0.5, (70 * Math.abs(value)) / largest)}%` }}
                ></span>
                <span class="bar-value">${value > 0 ? "+" : ""}${Number(value.toPrecision(3))}</span>
              </td>
            </tr>
          `,
        )}
      </tbody>
    </table>
    ${rest > 0 && html`<p class="muted small">and ${format.plural(rest, "column")} that count for less</p>`}
  `;
}

const STEPS = [
  ["queue", "Queue"],
  ["preprocess", "Preprocess"],
  ["inference", "Inference"],
  ["postprocess", "Postprocess"],
  ["explain", "Explain"],
  ["handle", "Handler"],
];

function Timing({ steps, total }) {
  if (!steps || steps.total === undefined) return null;
  if (!reports("steps")) {
    return html`
      <div class="timing">
        <h3>Time: ${format.milliseconds(steps.total)}</h3>
        <${NotReported}>the time of each step<//>
      </div>
    `;
  }
  const shown = STEPS.filter(([name]) => steps[name] !== undefined);
  const known = shown.reduce((sum, [name]) => sum + steps[name], 0);
  const parts = [...shown.map(([name, title]) => [name, title, steps[name]]), ["rest", "Server", Math.max(0, steps.total - known)]];
  const sum = parts.reduce((all, [, , value]) => all + value, 0) || 1;
  return html`
    <div class="timing">
      <h3>Time: ${format.milliseconds(steps.total)}</h3>
      <div class="timing-bar" aria-hidden="true">
        ${parts.map(
          ([name, , value]) =>
            value > 0 && html`<span key=${name} class=${`step-${name}`} style=${{ width: `${(100 * value) / sum}%` }}></span>`,
        )}
      </div>
      <ul class="legend">
        ${parts.map(
          ([name, title, value]) => html`
            <li key=${name}>
              <span class=${`swatch step-${name}`}></span><span>${title}</span> <strong>${format.milliseconds(value)}</strong>
            </li>
          `,
        )}
      </ul>
    </div>
  `;
}
