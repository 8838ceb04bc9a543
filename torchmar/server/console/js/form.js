// The input of a request by the kind of the model: a picture, a text, a row of a table, JSON or a file.

import { useEffect, useMemo, useState } from "preact/hooks";

import { BASE, part, send } from "./api.js";
import { Drawing } from "./draw.js";
import * as format from "./format.js";
import { FileDrop, html, Segments } from "./ui.js";

const LARGEST = 64 << 20; // bytes of a file

// The request of a form: {body, type, name}, or null while there is none.
export function inputOf(input) {
  if (!input) return null;
  if (input.kind === "file") return { body: input.file, type: input.type, name: input.name };
  if (input.kind === "text") return input.text ? { body: input.text, type: "text/plain; charset=utf-8" } : null;
  if (input.kind === "row") return { body: JSON.stringify(input.row), type: "application/json" };
  if (input.kind === "json") return problemOf(input.text) ? null : { body: input.text, type: "application/json" };
  return null;
}

function problemOf(text) {
  if (!text.trim()) return "Write a document of JSON.";
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `This is not JSON yet: ${error.message}`;
  }
}

export function Form({ form, name, version, value, onChange }) {
  const ways = waysOf(form);
  const [way, setWay] = useState(ways[0][0]);
  const [error, setError] = useState("");
  const samples = useMemo(() => unique(form.samples), [form]);

  // The first sample is there at once: one click shows an answer.
  useEffect(() => {
    if (samples.length) choose(samples[0]);
    else if (form.kind === "table") onChange({ kind: "row", row: emptyRow(form) });
    else onChange(null);
  }, []);

  async function choose(sample) {
    setError("");
    try {
      const response = await send("GET", `/models/${part(name)}/${part(version)}/samples/${sample.number}`);
      const input = await inputOfSample(form, sample, await response.blob());
      setWay(WAY_OF[input.kind]);
      onChange({ ...input, sample: sample.number });
    } catch (failure) {
      setError(failure.message);
    }
  }

  function change(kind) {
    setWay(kind);
    setError("");
    if (kind === "json") {
      const text = value?.kind === "row" ? JSON.stringify(value.row, null, 2) : value?.kind === "json" ? value.text : template(form);
      onChange({ kind: "json", text });
    } else if (kind === "row") {
      onChange({ kind: "row", row: rowOf(value, form) });
    } else if (kind === "text") {
      onChange({ kind: "text", text: value?.kind === "text" ? value.text : "" });
    } else {
      onChange(value?.kind === "file" ? value : null);
    }
  }

  return html`
    ${samples.length > 0 &&
    html`
      <div class="samples" role="group" aria-label="Samples of the archive">
        <span class="samples-title">Samples</span>
        ${samples.map(
          (sample) => html`
            <${Sample}
              key=${sample.number}
              sample=${sample}
              url=${`${BASE}/models/${part(name)}/${part(version)}/samples/${sample.number}`}
              chosen=${value?.sample === sample.number}
              onChoose=${() => choose(sample)}
            />
          `,
        )}
      </div>
    `}
    ${ways.length > 1 && html`<${Segments} label="Kind of input" options=${ways} value=${way} onChange=${change} />`}
    ${way === "file" && html`<${File} form=${form} value=${value} onChange=${onChange} onError=${setError} />`}
    ${way === "draw" && html`<${Drawing} onChange=${onChange} />`}
    ${way === "text" &&
    html`
      <label class="field">
        <span>Text</span>
        <textarea
          rows="8"
          value=${value?.text ?? ""}
          onInput=${(event) => onChange({ kind: "text", text: event.currentTarget.value })}
        ></textarea>
      </label>
    `}
    ${way === "row" && value?.kind === "row" && html`<${Row} form=${form} value=${value} onChange=${onChange} />`}
    ${way === "json" && html`<${Json} value=${value} onChange=${onChange} />`}
    ${error && html`<p class="notice notice-bad" role="alert">${error}</p>`}
  `;
}

const WAY_OF = { file: "file", text: "text", row: "row", json: "json" };

function waysOf(form) {
  // What is drawn is white on black, as models of grey pictures expect it.
  if (form.kind === "image" && form.image.mode === "L") return [["file", "Picture"], ["draw", "Draw"], ["json", "JSON"]];
  if (form.kind === "image") return [["file", "Picture"], ["json", "JSON"]];
  if (form.kind === "text") return [["text", "Text"], ["file", "File"], ["json", "JSON"]];
  if (form.kind === "table") return [["row", "Row"], ["file", "File"], ["json", "JSON"]];
  return [["json", "JSON"], ["text", "Text"], ["file", "File"]];
}

// A sample that is explained, too, stands twice in an archive.
function unique(samples) {
  const seen = new Set();
  return samples.filter((sample) => {
    const known = sample.size == null ? `${sample.number}` : sample.name;
    if (seen.has(known)) return false;
    seen.add(known);
    return true;
  });
}

async function inputOfSample(form, sample, blob) {
  const type = sample.type;
  if (type === "application/json") {
    const text = await blob.text();
    if (form.kind === "table") {
      const row = JSON.parse(text);
      if (isRow(row)) return { kind: "row", row };
    }
    return { kind: "json", text };
  }
  if (type === "text/plain" && form.kind !== "image") return { kind: "text", text: await blob.text() };
  return { kind: "file", file: blob, type, name: sample.name };
}

const isRow = (row) =>
  row && typeof row === "object" && !Array.isArray(row) &&
  Object.values(row).every((value) => value === null || typeof value !== "object");

function emptyRow(form) {
  return Object.fromEntries(form.inputs.map(({ name, datatype }) => [name, datatype === "BYTES" ? "" : 0]));
}

function rowOf(value, form) {
  if (value?.kind === "json") {
    try {
      const row = JSON.parse(value.text);
      if (isRow(row)) return row;
    } catch {
      // What was typed is not a row; the form begins anew.
    }
  }
  return emptyRow(form);
}

function template(form) {
  if (form.kind === "text") return JSON.stringify({ text: "" }, null, 2);
  if (!form.inputs.length) return "{}";
  const tensors = form.inputs.map(({ name, datatype, shape }) => {
    const sizes = shape.map((size) => (size < 0 ? 1 : size));
    const length = Math.min(sizes.reduce((product, size) => product * size, 1), 4096);
    return { name, datatype, shape: sizes, data: Array(length).fill(datatype === "BYTES" ? "" : 0) };
  });
  return JSON.stringify({ inputs: tensors }, null, 2);
}

function Sample({ sample, url, chosen, onChoose }) {
  const image = sample.type.startsWith("image/");
  return html`
    <button
      type="button"
      class=${`sample ${chosen ? "selected" : ""} ${image ? "sample-image" : ""}`}
      aria-pressed=${chosen ? "true" : "false"}
      onClick=${onChoose}
    >
      ${image && html`<img src=${url} alt="" loading="lazy" width="44" height="44" />`}
      <span>${sample.name.replace(/\.[^.]+$/, "")}</span>
    </button>
  `;
}

function File({ form, value, onChange, onError }) {
  const file = value?.kind === "file" ? value : null;
  const url = useObjectUrl(file && file.type.startsWith("image/") ? file.file : null);

  function take(chosen) {
    if (chosen.size > LARGEST) {
      onError(`${chosen.name} has ${format.bytes(chosen.size)}, more than the ${format.bytes(LARGEST)} that this page sends.`);
      return;
    }
    onError("");
    onChange({ kind: "file", file: chosen, type: chosen.type || "application/octet-stream", name: chosen.name });
  }

  return html`
    <${FileDrop} accept=${form.kind === "image" ? "image/*" : undefined} onFile=${take}>
      ${url
        ? html`<img class="preview" src=${url} alt=${`The input, ${file.name}`} />`
        : file
          ? html`<span class="file-name">${file.name}, ${format.bytes(file.file.size)}</span>`
          : ""}
      <span class="drop-text"><strong>Choose a file</strong> or drop it here</span>
    <//>
  `;
}

export function useObjectUrl(blob) {
  const [url, setUrl] = useState("");
  useEffect(() => {
    if (!blob) {
      setUrl("");
      return undefined;
    }
    const made = URL.createObjectURL(blob);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [blob]);
  return url;
}

function Row({ form, value, onChange }) {
  const types = Object.fromEntries(form.inputs.map(({ name, datatype }) => [name, datatype]));
  const set = (name, content) => onChange({ kind: "row", row: { ...value.row, [name]: content } });
  return html`
    <div class="row-form">
      ${Object.entries(value.row).map(([name, content]) => {
        const numeric = types[name] ? types[name] !== "BYTES" : typeof content === "number";
        return html`
          <label key=${name} class="field">
            <span>${name}</span>
            <input
              type=${numeric ? "number" : "text"}
              step="any"
              value=${content ?? ""}
              onInput=${(event) => {
                const typed = event.currentTarget.value;
                set(name, numeric ? (typed === "" ? null : Number(typed)) : typed);
              }}
            />
          </label>
        `;
      })}
    </div>
  `;
}

function Json({ value, onChange }) {
  const text = value?.kind === "json" ? value.text : "";
  const problem = problemOf(text);
  return html`
    <label class="field">
      <span>JSON</span>
      <textarea
        class="mono"
        rows="12"
        spellcheck="false"
        value=${text}
        aria-describedby="json-problem"
        aria-invalid=${problem ? "true" : undefined}
        onInput=${(event) => onChange({ kind: "json", text: event.currentTarget.value })}
      ></textarea>
    </label>
    <p id="json-problem" class="muted small fixed-line">${problem}</p>
  `;
}
