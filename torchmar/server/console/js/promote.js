// The question before a promotion: what is compared, and how good the version must be.

import { useState } from "preact/hooks";

import { begin } from "./operation.js";
import { Confirm, html } from "./ui.js";

export function Promote({ model, version, onClose }) {
  const [compare, setCompare] = useState(true);
  const [slower, setSlower] = useState(5);
  const [differing, setDiffering] = useState(0);
  const [tolerance, setTolerance] = useState(0);
  return html`
    <${Confirm}
      title=${`Promote ${model.name} ${version}?`}
      action=${compare ? "Compare and promote" : "Promote"}
      onConfirm=${() =>
        begin("promote", {
          model: model.name,
          version,
          compare,
          max_regression: slower / 100,
          max_differences: differing / 100,
          tolerance,
        })}
      onClose=${onClose}
    >
      <p>
        ${version} gets the samples of its archive, and must answer them as expected.
        ${compare
          ? ` Then it and ${model.default} get about 200 of the same requests in turn.`
          : ""}
        ${" "}If it passes, it becomes the default version in place of ${model.default}, which keeps its workers; if not,
        nothing changes.
      </p>
      <label class="check">
        <input type="checkbox" checked=${compare} onChange=${(event) => setCompare(event.currentTarget.checked)} />
        <span>Only if it is shown to be as good as ${model.default}</span>
      </label>
      ${compare &&
      html`
        <div class="row-form bounds">
          <${Bound} name="Slower by at most" unit="%" most="1000" value=${slower} onChange=${setSlower} />
          <${Bound} name="Other answers to at most" unit="%" most="100" value=${differing} onChange=${setDiffering} />
          <${Bound} name="Numbers may differ by" unit="" most="1000000" value=${tolerance} onChange=${setTolerance} />
        </div>
      `}
    <//>
  `;
}

const Bound = ({ name, unit, most, value, onChange }) => html`
  <label class="field">
    <span>${name}${unit && ` (${unit})`}</span>
    <input
      type="number"
      min="0"
      max=${most}
      step="any"
      value=${value}
      onInput=${(event) => onChange(Math.max(0, Math.min(Number(most), Number(event.currentTarget.value) || 0)))}
    />
  </label>
`;
