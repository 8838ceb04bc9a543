// The archives of the model store: what they contain, and what checks find in them. Nothing of them is run.

import { useEffect, useMemo, useState } from "preact/hooks";

import { get, manage, part, send } from "./api.js";
import * as format from "./format.js";
import { mayChange, models, server } from "./state.js";
import { Badge, Confirm, Copy, Empty, html, Notice } from "./ui.js";

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
                        <td>${one.error ? html`<span class="bad">cannot be opened</span>` : `${one.name} ${one.version}`}</td>
                        <td>${one.registered.length ? one.registered.join(", ") : html`<span class="muted">no</span>`}</td>
                        <td class="right">${one.size == null ? "folder" : format.bytes(one.size)}</td>
                        <td class="right">${format.date(one.modified)}</td>
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

// Drop an archive to check it: it is sent, checked and forgotten.
function Check() {
  const [over, setOver] = useState(false);
  const [busy, setBusy] = useState("");
  const [result, setResult] = useState(null);
  const [error, setError] = useState("");

  async function take(files) {
    const [file] = files;
    if (!file) return;
    setBusy(file.name);
    setResult(null);
    setError("");
    try {
      const response = await send("POST", `/archives/check?file=${part(file.name)}`, {
        body: file,
        headers: { "Content-Type": "application/octet-stream" },
      });
      setResult(await response.json());
    } catch (failure) {
      setError(
        failure.status === 413
          ? `${failure.message} Larger ones can be checked on the server's machine: torchmar check ${file.name}`
          : failure.message,
      );
    }
    setBusy("");
  }

  if (!mayChange()) return null;
  return html`
    <label
      class=${`drop drop-flat ${over ? "over" : ""}`}
      onDragOver=${(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave=${() => setOver(false)}
      onDrop=${(event) => {
        event.preventDefault();
        setOver(false);
        take(event.dataTransfer.files);
      }}
    >
      <input type="file" class="hidden" onChange=${(event) => take(event.currentTarget.files)} />
      <span class="drop-text">
        ${busy ? `Checking ${busy}` : html`<strong>Check an archive</strong>: choose a file or drop it here. It is read, never run, and not kept.`}
      </span>
    </label>
    ${error && html`<${Notice} tone="bad">${error}<//>`}
    ${result &&
    html`
      <section class="card" aria-label=${`What checks find in ${result.file}`}>
        <div class="card-head">
          <h2>${result.file}</h2>
          <button class="button small quiet card-actions" onClick=${() => setResult(null)}>Close</button>
        </div>
        <${Described} archive=${result} />
      </section>
    `}
  `;
}

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
      ${archive && html`<section class="card"><${Described} archive=${archive} /></section>`}
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
          <p>
            ${archive.name} ${archive.version} gets the workers that its configuration names, or one. Their code runs on
            the server's machine.
            ${models.value.has(archive.name)
              ? ` The default version stays ${models.value.get(archive.name).default}.`
              : " It is the first version of the model, and becomes its default."}
          </p>
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
      <${Fact} name="Registered">${archive.registered.join(", ") || "no"}<//>
      <${Fact} name="Handler"><code>${archive.handler || "none"}</code><//>
      <${Fact} name="Weights"><code>${archive.weights || "none"}</code><//>
      <${Fact} name="Samples">${archive.samples || "none"}<//>
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

const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;
