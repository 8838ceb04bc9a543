// The archives of the model store: what they contain, and what checks find in them. Nothing of them is run.

import { useEffect, useMemo, useState } from "preact/hooks";

import { get, manage, part, send } from "./api.js";
import * as format from "./format.js";
import { mayChange, models, server } from "./state.js";
import { Reports } from "./reports.js";
import { Samples } from "./samples.js";
import { Badge, Confirm, Copy, Empty, Fact, FileDrop, html, Notice } from "./ui.js";

export default function Archives({ names }) {
  return names.length ? html`<${One} key=${names[0]} file=${names[0]} />` : html`<${All} />`;
}

function All() {
  const [known, setKnown] = useState(null);
  const [error, setError] = useState("");
  const [search, setSearch] = useState("");
  const words = search.toLowerCase();

  // Registrations change what is in use.
  useEffect(() => {
    get("/archives").then(setKnown, (failure) => setError(failure.message));
  }, [models.value.size]);

  const shown = useMemo(
    () => known?.archives.filter((one) => `${one.file} ${one.name} ${one.description}`.toLowerCase().includes(words)),
    [known, words],
  );
  return html`
    <main class="page" id="main">
      <div class="page-head">
        <h1 tabindex="-1">Archives</h1>
        <p class="muted">${known ? `${format.plural(known.archives.length, "archive")} in ${known.folder}` : "\u00a0"}</p>
      </div>
      ${error && html`<${Notice} tone="bad">${error}<//>`}
      <${Check} />
      ${known &&
      (known.archives.length
        ? html`
            <div class="toolbar">
              <label class="search">
                <span class="hidden">Search archives</span>
                <input type="search" placeholder="Search by name or file" value=${search}
                  onInput=${(event) => setSearch(event.currentTarget.value)} />
              </label>
            </div>
            <div class="table-card scroll">
              <table class="archives">
                <thead>
                  <tr>
                    <th scope="col">File</th>
                    <th scope="col">Model</th>
                    <th scope="col">Registered</th>
                    <th scope="col" class="right">Size</th>
                    <th scope="col" class="right">Changed</th>
                  </tr>
                </thead>
                <tbody>
                  ${shown.map(
                    (one) => html`
                      <tr key=${one.file}>
                        <th scope="row">
                          <a href=${`#/archives/${part(one.file)}`}>${one.file}</a>
                          ${one.description && html`<span class="description">${one.description}</span>`}
                        </th>
                        <td data-title="Model">${one.error ? html`<span class="bad">cannot be opened</span>` : `${one.name} ${one.version}`}</td>
                        <td data-title="Registered">${one.registered.length ? shownVersions(one.registered) : html`<span class="muted">no</span>`}</td>
                        <td data-title="Size" class="right">${one.size == null ? "folder" : format.bytes(one.size)}</td>
                        <td data-title="Changed" class="right">${format.date(one.modified)}</td>
                      </tr>
                    `,
                  )}
                </tbody>
              </table>
            </div>
            ${!shown.length && html`<p class="muted">No archive matches.</p>`}
            ${known.more > 0 && html`<p class="muted">${format.plural(known.more, "archive")} more are not listed.</p>`}
          `
        : html`
            <${Empty} title="The model store is empty">
              <p><code>torchmar build archives/NAME</code> writes an archive to it.</p>
            <//>
          `)}
    </main>
  `;
}

// Drop an archive to check it: it is sent, checked and forgotten, unless it is then registered.
function Check() {
  const [busy, setBusy] = useState("");
  const [checked, setChecked] = useState(null);
  const [asked, setAsked] = useState(false);
  const [error, setError] = useState("");

  async function take(file) {
    setChecked(null);
    setError("");
    const most = server.value.largest_upload;
    if (file.size > most) {
      setError(
        `${file.name} has ${format.bytes(file.size)}, and this server takes ${format.bytes(most)} (max_request_size). ` +
          `On its machine: torchmar check ${file.name}`,
      );
      return;
    }
    setBusy(file.name);
    try {
      const response = await sendFile("/archives/check", file);
      setChecked({ file, result: await response.json() });
    } catch (failure) {
      setError(failure.message);
    }
    setBusy("");
  }

  async function register() {
    const stored = await (await sendFile("/archives", checked.file)).json();
    await manage("POST", "/models", { url: stored.file, initial_workers: 1 });
    location.hash = `#/models/${part(checked.result.name)}`;
  }

  if (!mayChange()) return null;
  const failed = checked?.result.findings.some(({ severity }) => severity === "error");
  return html`
    <${FileDrop} flat onFile=${take}>
      <span class="drop-text">
        ${busy ? `Checking ${busy}` : html`<strong>Check an archive</strong>: choose a file or drop it here. It is read, never run, and not kept.`}
      </span>
    <//>
    ${error && html`<${Notice} tone="bad">${error}<//>`}
    ${checked &&
    html`
      <section class="card" aria-label=${`What checks find in ${checked.result.file}`}>
        <div class="card-head">
          <h2>${checked.result.file}</h2>
          <div class="card-actions">
            ${server.value.may_upload &&
            html`<button class="button small" disabled=${failed} onClick=${() => setAsked(true)}>Register</button>`}
            <button class="button small quiet" onClick=${() => setChecked(null)}>Close</button>
          </div>
        </div>
        <${Described} archive=${checked.result} />
      </section>
    `}
    ${asked &&
    html`
      <${Confirm} title=${`Register ${checked.result.file}?`} action="Register" onConfirm=${register} onClose=${() => setAsked(false)}>
        <p>It is put into the model store, and stays there. <${Registering} archive=${checked.result} /></p>
      <//>
    `}
  `;
}

const sendFile = (path, file) =>
  send("POST", `${path}?file=${part(file.name)}`, { body: file, headers: { "Content-Type": "application/octet-stream" } });

// What a registration does, in sentences.
const Registering = ({ archive }) => html`
  ${archive.name} ${archive.version} gets the workers that its configuration names, or one. Their code runs on the server's
  machine.
  ${models.value.has(archive.name)
    ? ` The default version stays ${models.value.get(archive.name).default}.`
    : " It is the first version of the model, and becomes its default."}
`;

function One({ file }) {
  const [archive, setArchive] = useState(null);
  const [error, setError] = useState("");
  const [asked, setAsked] = useState(false);

  useEffect(() => {
    get(`/archives/${part(file)}`).then(setArchive, (failure) => setError(failure.message));
  }, [models.value.size]);

  const errors = archive?.findings.filter(({ severity }) => severity === "error").length;
  return html`
    <main class="page" id="main">
      <nav class="back" aria-label="Back"><a href="#/archives">‹ All archives</a></nav>
      <div class="page-head">
        <h1 tabindex="-1">${file}</h1>
        <div class="links">
          ${archive &&
          server.value.may_register &&
          !archive.registered.length &&
          html`<button class="button" disabled=${errors > 0} onClick=${() => setAsked(true)}>Register</button>`}
        </div>
      </div>
      ${error && html`<${Notice} tone="bad">${error}<//>`}
      ${!archive && !error && html`<div class="card skeleton" role="status"><span class="hidden">Checking the archive.</span><div class="skeleton-plot"></div></div>`}
      ${archive &&
      html`
        <section class="card" aria-label="Content and checks"><${Described} archive=${archive} /></section>
        <${Samples} archive=${archive} />
        <${Reports} archive=${archive} />
      `}
      ${asked &&
      html`
        <${Confirm}
          title=${`Register ${file}?`}
          action="Register"
          onConfirm=${async () => {
            await manage("POST", "/models", { url: file, initial_workers: 1 });
            location.hash = `#/models/${part(archive.name)}`;
          }}
          onClose=${() => setAsked(false)}
        >
          <p><${Registering} archive=${archive} /></p>
        <//>
      `}
    </main>
  `;
}

function Described({ archive }) {
  const errors = archive.findings.filter(({ severity }) => severity === "error");
  const warnings = archive.findings.filter(({ severity }) => severity !== "error");
  return html`
    ${archive.description && html`<p>${archive.description}</p>`}
    ${archive.findings.length === 0
      ? html`<p class="good-line"><span class="pill pill-good"><span class="dot"></span>No finding</span> All checks pass.</p>`
      : html`
          <p class="good-line">
            ${errors.length > 0 && html`<span class="pill pill-bad"><span class="dot"></span>${format.plural(errors.length, "error")}</span>`}
            ${" "}
            ${warnings.length > 0 && html`<span class="pill pill-warn"><span class="dot"></span>${format.plural(warnings.length, "warning")}</span>`}
          </p>
          <ul class="findings">
            ${[...errors, ...warnings].map(
              (finding, index) => html`
                <li key=${index}>
                  <${Badge} tone=${finding.severity === "error" ? "bad" : "none"}>${finding.code || finding.severity}<//>
                  <div>
                    ${finding.place && html`<code>${finding.place}</code>`} ${finding.cause}
                    ${finding.remedy && html`<p class="muted">${finding.remedy}</p>`}
                  </div>
                </li>
              `,
            )}
          </ul>
        `}
    <dl class="facts">
      <${Fact} name="Model">${archive.name ? `${archive.name} ${archive.version}` : "not known"}<//>
      <${Fact} name="Registered">${shownVersions(archive.registered) || "no"}<//>
      <${Fact} name="Handler"><code>${archive.handler || "none"}</code><//>
      <${Fact} name="Weights"><code>${archive.weights || "none"}</code><//>
      <${Fact} name="Samples">${archive.samples.length || "none"}<//>
      <${Fact} name="Size">${archive.size == null ? "a folder" : format.bytes(archive.size)}<//>
      <${Fact} name="Digest">
        ${archive.digest
          ? html`<code class="digest" title=${archive.digest}>${archive.digest.slice(0, 12)}</code> <${Copy} text=${archive.digest} />`
          : "none"}
      <//>
    </dl>
    ${archive.config.trim() &&
    html`<details><summary>Configuration</summary><pre class="code" tabindex="0">${archive.config}</pre></details>`}
    ${archive.members.length > 0 &&
    html`
      <details>
        <summary>${format.plural(archive.member_count, "file")}</summary>
        <div class="scroll short-scroll" tabindex="0" role="region" aria-label="Files of the archive">
          <table class="plain">
            <thead><tr><th scope="col">File</th><th scope="col" class="right">Size</th></tr></thead>
            <tbody>
              ${archive.members.map(
                ({ name, size }) => html`<tr key=${name}><th scope="row"><code>${name}</code></th><td class="right">${format.bytes(size)}</td></tr>`,
              )}
            </tbody>
          </table>
        </div>
      </details>
    `}
  `;
}

const shownVersions = (registered) => registered.map(({ model, version }) => `${model} ${version}`).join(", ");
