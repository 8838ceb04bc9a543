// Small parts that several pages use.

import { h } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";

import * as format from "./format.js";
import { server } from "./state.js";

export const html = htm.bind(h);

const STATES = {
  ready: ["good", "Ready"],
  starting: ["busy", "Starting"],
  restarting: ["warn", "Restarting"],
  crash_looping: ["bad", "Does not load"],
  "no workers": ["none", "No workers"],
};

export const stateName = (state) => (STATES[state] || ["none", state])[1];

export function State({ state }) {
  const [tone, name] = STATES[state] || ["none", state];
  return html`<span class=${`pill pill-${tone}`}><span class="dot" aria-hidden="true"></span>${name}</span>`;
}

export function Badge({ children, tone = "none" }) {
  return html`<span class=${`badge badge-${tone}`}>${children}</span>`;
}

export function Notice({ tone = "info", title, children }) {
  return html`
    <div class=${`notice notice-${tone}`} role=${tone === "bad" ? "alert" : "status"}>
      ${title && html`<strong>${title}</strong>`} ${children}
    </div>
  `;
}

export const NotReported = ({ children }) => html`
  <p class="muted small not-reported">${server.value.engine} does not report ${children}.</p>
`;

export function Empty({ title, children }) {
  return html`
    <div class="empty">
      <h2>${title}</h2>
      ${children}
    </div>
  `;
}

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);

  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without a secure connection browsers have no clipboard for pages.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    setDone(true);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setDone(false), 1500);
  }

  return html`
    <button class="button small quiet copy" onClick=${copy} aria-live="polite">${done ? "Copied" : label}</button>
  `;
}

export function Age({ since, now }) {
  return html`<time datetime=${new Date(since * 1000).toISOString()} title=${format.dateAndTime(since)}
    >${format.duration(now - since)}</time
  >`;
}

// A question before a change: what it will do, in a sentence.
export function Confirm({ title, children, action, danger, wide, onConfirm, onClose }) {
  const dialog = useRef(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  useEffect(() => {
    dialog.current.showModal();
  }, []);

  async function confirm() {
    setBusy(true);
    setError("");
    try {
      await onConfirm();
      onClose();
    } catch (failure) {
      setError(failure.message);
      setBusy(false);
    }
  }

  return html`
    <dialog ref=${dialog} class=${`dialog ${wide ? "dialog-wide" : ""}`} aria-labelledby="dialog-title" onClose=${onClose}>
      <h2 id="dialog-title">${title}</h2>
      <div class="dialog-text">${children}</div>
      ${error && html`<${Notice} tone="bad">${error}<//>`}
      <div class="dialog-actions">
        <button class="button" onClick=${() => dialog.current.close()}>Cancel</button>
        <button class=${`button ${danger ? "danger" : "primary"}`} disabled=${busy} onClick=${confirm}>
          ${busy ? "Working" : action}
        </button>
      </div>
    </dialog>
  `;
}

export const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

// A place to choose a file, or to drop one; compact: a button.
export function FileDrop({ accept, compact, flat, onFile, children }) {
  const [over, setOver] = useState(false);
  const drag = (value) => (event) => {
    event.preventDefault();
    setOver(value);
  };

  function take(files) {
    if (files.length) onFile(files[0]);
  }

  return html`
    <label
      class=${`${compact ? "button small file" : `drop ${flat ? "drop-flat" : ""}`} ${over ? "over" : ""}`}
      onDragOver=${drag(true)}
      onDragLeave=${drag(false)}
      onDrop=${(event) => {
        drag(false)(event);
        take(event.dataTransfer.files);
      }}
    >
      <input
        type="file"
        class="hidden"
        accept=${accept}
        onChange=${(event) => {
          take(event.currentTarget.files);
          event.currentTarget.value = ""; // the same file can be chosen again
        }}
      />
      ${children}
    </label>
  `;
}

// The time now, renewed every second, for ages.
export function useNow() {
  const [now, setNow] = useState(Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

export function Segments({ label, options, value, onChange }) {
  return html`
    <div class="segments" role="group" aria-label=${label}>
      ${options.map(
        ([option, name]) => html`
          <button
            key=${option}
            class=${option === value ? "selected" : ""}
            aria-pressed=${option === value ? "true" : "false"}
            onClick=${() => onChange(option)}
          >
            ${name}
          </button>
        `,
      )}
    </div>
  `;
}

const TROUBLE = ["worker_died", "load_failed"];

// Events, the latest first; one that repeats, as a worker that does not load, stands once with its number.
export function Events({ events, kinds, most = 100 }) {
  const groups = [];
  for (const event of [...events].reverse()) {
    const last = groups.at(-1);
    if (last && ["kind", "model", "version", "worker", "text"].every((name) => last.event[name] === event[name])) {
      last.times += 1;
      last.first = event.time;
    } else if (groups.length < most) {
      groups.push({ event, times: 1, first: event.time });
    } else break;
  }
  return html`
    <ol class="events">
      ${groups.map(
        ({ event, times, first }) => html`
          <li key=${event.number}>
            <time title=${format.dateAndTime(event.time)}>${format.timeOfDay(event.time)}</time>
            <span>
              <strong class=${TROUBLE.includes(event.kind) ? "bad" : ""}>${KINDS[event.kind] || event.kind}</strong>${" "}
              ${[kinds === "model" ? "" : event.model, event.version, event.worker && `worker ${event.worker}`].filter(Boolean).join(" ")}
              <span class="muted">${event.model ? `: ${event.text}` : ` ${event.text}`}</span>
              ${times > 1 && html`<span class="muted">, ${times} times since ${format.timeOfDay(first)}</span>`}
            </span>
          </li>
        `,
      )}
    </ol>
  `;
}

const KINDS = {
  server_started: "Server started",
  registered: "Registered",
  unregistered: "Unregistered",
  scaled: "Scaled",
  default_switched: "Default switched",
  default_switched_back: "Default switched back",
  worker_started: "Worker started",
  worker_died: "Worker died",
  load_failed: "Did not load",
};
