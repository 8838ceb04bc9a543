// What the console knows of the server: one stream of events keeps it up to date.

import { signal } from "@preact/signals";

import { ApiError, BASE, get, onSignedOut, post, send } from "./api.js";

const MOST_POINTS = 600;
const MOST_EVENTS = 1000;
const MOST_LOGS = 2000;
const RETRY_MS = 2000;

// state: checking, out (with reason), unreachable, in.
export const session = signal({ state: "checking" });
export const server = signal(null);
// live, or lost since a time: the page then shows what it knew last.
export const connection = signal({ live: false, since: 0 });
export const models = signal(new Map());
export const loads = signal(new Map());
export const health = signal("");
export const events = signal([]);
export const logs = signal([]);
// The last change by the rollout page, of whichever browser, and when a deployment was applied.
export const rollout = signal(null);
// Columns of the API's history, changed in place; the number rises with each change.
export const history = signal({ number: 0, columns: null });

let source = null;
let scope = "";
let retry = 0;

// Other servers than torchmar's report less: the page says so where something is missing.
export const reports = (key) => !server.value?.not_reported.includes(key);

export const mayChange = () => server.value?.right === "management";

export const key = (model, version) => `${model}\n${version}`;

onSignedOut((reason) => {
  close();
  session.value = { state: "out", reason };
});

export async function start() {
  const url = new URL(location.href);
  const code = url.searchParams.get("code");
  if (code) {
    // Out of the address and the history before anything else; it could not be used again anyway.
    url.searchParams.delete("code");
    window.history.replaceState(null, "", url);
    try {
      await post("/sign-in", { code });
    } catch (error) {
      if (error.status !== 409) {
        session.value = { state: "out", reason: error.message };
        return;
      }
    }
  }
  await check();
}

export async function check() {
  // The stream at once, not after the first answer: the models are what takes longest.
  if (session.value.state === "checking" || session.value.state === "in") open();
  try {
    server.value = await get("/server");
    session.value = { state: "in" };
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) return; // onSignedOut has set the session
    close();
    session.value = { state: "unreachable", reason: error.message };
    retryLater(check);
  }
}

export async function signIn(token) {
  await post("/sign-in", { token });
  await check();
}

export async function signOut() {
  close();
  await send("POST", "/sign-out").catch(() => {});
  session.value = { state: "out", reason: "" };
}

// Chooses what the stream is about: the load of one model, and log entries if wanted.
export function watch({ model = "", version = "", logs: withLogs = false } = {}) {
  const query = new URLSearchParams();
  if (model) query.set("model", model);
  if (version) query.set("version", version);
  if (withLogs) query.set("logs", "true");
  const wanted = query.toString();
  if (wanted === scope && source) return;
  const other = wanted !== scope;
  scope = wanted;
  if (other) history.value = { number: history.value.number + 1, columns: null };
  if (session.value.state === "in") open();
}

function open() {
  close();
  source = new EventSource(`${BASE}/stream${scope ? `?${scope}` : ""}`);
  const current = source;
  current.addEventListener("snapshot", (event) => onSnapshot(JSON.parse(event.data)));
  current.addEventListener("tick", (event) => onTick(JSON.parse(event.data)));
  current.addEventListener("rollout", (event) => (rollout.value = JSON.parse(event.data)));
  current.addEventListener("stopping", lost);
  current.addEventListener("lost", lost);
  current.addEventListener("signed-out", () => check());
  current.addEventListener("error", () => {
    if (current !== source) return;
    lost();
    if (current.readyState === EventSource.CLOSED) {
      // An answer that is no stream: the session has ended, or the server is starting.
      close();
      retryLater(check);
    }
  });
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function retryLater(action) {
  clearTimeout(retry);
  retry = setTimeout(action, RETRY_MS);
}

function lost() {
  if (connection.value.live || !connection.value.since) connection.value = { live: false, since: Date.now() / 1000 };
}

function onSnapshot(document) {
  const restarted = connection.value.since && !connection.value.live;
  connection.value = { live: true, since: 0 };
  health.value = document.health;
  models.value = new Map(document.models.map((model) => [model.name, model]));
  loads.value = byVersion(document.loads);
  events.value = document.events;
  rollout.value = document.rollout;
  history.value = { number: history.value.number + 1, columns: document.history };
  if (document.logs) logs.value = document.logs;
  if (restarted) get("/server").then((known) => (server.value = known), () => {});
}

function onTick(document) {
  connection.value.live || (connection.value = { live: true, since: 0 });
  if (health.value !== document.health) health.value = document.health;
  if (document.models.length || document.removed.length) {
    const changed = new Map(models.value);
    for (const name of document.removed) changed.delete(name);
    for (const model of document.models) changed.set(model.name, model);
    models.value = changed;
  }
  if (document.loads.length || loads.value.size) loads.value = byVersion(document.loads);
  if (document.events.length) events.value = [...events.value, ...document.events].slice(-MOST_EVENTS);
  if (document.row && history.value.columns) {
    const { columns } = history.value;
    for (const name of Object.keys(columns)) {
      columns[name].push(document.row[name]);
      if (columns[name].length > MOST_POINTS) columns[name].shift();
    }
    history.value = { number: history.value.number + 1, columns };
  }
  if (document.logs?.length) {
    // An entry that has grown, a traceback, comes again with its number.
    const byNumber = new Map(logs.value.map((entry) => [entry.number, entry]));
    for (const entry of document.logs) byNumber.set(entry.number, entry);
    logs.value = [...byNumber.values()].slice(-MOST_LOGS);
  }
}

const byVersion = (list) => new Map(list.map((load) => [key(load.model, load.version), load]));

// Memory of workers changes all the time, and is not a change that the stream reports.
export async function refresh() {
  if (session.value.state !== "in" || !connection.value.live) return;
  const document = await get("/models").catch(() => null);
  if (document) models.value = new Map(document.models.map((model) => [model.name, model]));
}
