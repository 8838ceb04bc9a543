// Reports on an archive: what optimize, tune, bench and parity have measured.

import { BASE, part } from "./api.js";
import { Badge, html } from "./ui.js";

const KINDS = { optimize: "Optimisation", tune: "Tuning", bench: "Load", parity: "Parity" };

export function Reports({ archive }) {
  if (!archive.reports.length) {
    return html`
      <section class="card" aria-labelledby="reports">
        <h2 id="reports">Reports</h2>
        <p class="muted">
          There are none. A report whose name begins as that of the archive appears here, such as${" "}
          <code>${stem(archive.file)}.bench.json</code> in the model store, and so does the proof of${" "}
          <code>torchmar optimize --write</code>.
        </p>
      </section>
    `;
  }
  return archive.reports.map((report) => html`<${Report} key=${report.name} archive=${archive} report=${report} />`);
}

const stem = (file) => file.replace(/(\.mar|\.model|\.tar\.gz)$/, "");

function Report({ archive, report }) {
  const { kind, name, created, machine, sentences, columns, rows, page, error } = report;
  const id = `report-${name || "proof"}`;
  return html`
    <section class="card" aria-labelledby=${id}>
      <div class="card-head">
        <h2 id=${id}>${KINDS[kind] ?? name}</h2>
        <${Badge}>${name || "in the archive"}<//>
        <span class="muted">${[created && created.slice(0, 10), machine].filter(Boolean).join(", ")}</span>
        ${page &&
        html`
          <div class="card-actions">
            <a class="button small" target="_blank" rel="noopener" href=${`${BASE}/archives/${part(archive.file)}/reports/${part(page)}`}>
              Open the whole report
            </a>
          </div>
        `}
      </div>
      ${error && html`<p class="muted">${error}</p>`}
      ${sentences.length > 0 && html`<ul class="sentences">${sentences.map((sentence, index) => html`<li key=${index}>${sentence}</li>`)}</ul>`}
      ${rows.length > 0 &&
      html`
        <div class="scroll" tabindex="0" role="region" aria-label=${`${KINDS[kind]}, ${name || "in the archive"}`}>
          <table class="plain">
            <thead>
              <tr>${columns.map((column) => html`<th key=${column} scope="col">${column}</th>`)}</tr>
            </thead>
            <tbody>
              ${rows.map(
                (row, number) => html`
                  <tr key=${number}>
                    ${row.map((cell, index) => (index ? html`<td key=${index}>${cell}</td>` : html`<th key=${index} scope="row">${cell}</th>`))}
                  </tr>
                `,
              )}
            </tbody>
          </table>
        </div>
      `}
    </section>
  `;
}
