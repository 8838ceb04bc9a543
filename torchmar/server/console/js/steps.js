// The steps of a change, as sentences.

import * as format from "./format.js";

const file = (path) => String(path).split("/").at(-1);
const listed = (names) => (names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", "));

const PLANNED = {
  copy: ({ destination }) => `Copy ${file(destination)} into the model store.`,
  derive: ({ source, destination }) => `Write ${file(destination)}: ${file(source)} with other settings.`,
  register: ({ model, version, min_workers }) =>
    `Register ${model} ${version}${min_workers ? ` and start ${format.plural(min_workers, "worker")}.` : " without workers."}`,
  "scale-up": ({ model, version, before, min_workers, max_workers }) =>
    before === min_workers
      ? `Let ${model} ${version} have up to ${format.plural(max_workers, "worker")}.`
      : `Scale ${model} ${version} up from ${before} to ${format.plural(min_workers, "worker")}.`,
  check: ({ model, version, samples, max_latency }) =>
    samples
      ? `Send ${model} ${version} its samples: every answer must be as expected${max_latency ? `, within ${max_latency} ms` : ""}.`
      : `Warm ${model} ${version} up.`,
  switch: ({ model, version, before }) => `Make ${version} the default version of ${model} in place of ${before}.`,
  "set-route": ({ path, model, version }) => `Make ${path} lead to ${model}${version == null ? "" : ` ${version}`}.`,
  "remove-route": ({ path }) => `Remove the route ${path}.`,
  drain: ({ versions }) =>
    `Wait until ${listed(versions.map(({ model, version }) => `${model} ${version}`))} ${versions.length === 1 ? "has" : "have"} ` +
    `answered all requests, at least ${Math.max(...versions.map(({ seconds }) => seconds))} s.`,
  "scale-down": ({ model, version, before, min_workers }) =>
    `Scale ${model} ${version} down from ${before} to ${format.plural(min_workers, "worker")}.`,
  remove: ({ model, version, file: derived }) =>
    `Unregister ${model} ${version}${derived ? `, and delete ${file(derived)}, which an earlier change wrote` : ""}.`,
};

// A step of a plan, which is still to be done.
export const planned = (step) => PLANNED[step.step]?.(step) ?? step.step;

const VERBS = {
  verify: "Check the archive",
  copy: "Copy",
  derive: "Write",
  register: "Register",
  "scale-up": "Scale up",
  check: "Send the samples to",
  switch: "Switch the default:",
  "set-route": "Route",
  "remove-route": "Remove the route",
  drain: "Wait for the last answers of",
  "scale-down": "Scale down",
  remove: "Unregister",
  undo: "Undo:",
};

// A step that happens: its verb and its objects, as the server names them.
export function happening({ verb, text }) {
  if (verb === "compare" || (verb === "check" && text.startsWith("sending"))) return text[0].toUpperCase() + text.slice(1);
  return `${VERBS[verb] ?? verb} ${text}`;
}
