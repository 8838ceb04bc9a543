// A drawing as the input of a model for grey pictures: white on black, as scans of digits are.

import { useEffect, useRef, useState } from "preact/hooks";

import { html } from "./ui.js";

const SIZE = 280;

export function Drawing({ onChange }) {
  const canvas = useRef(null);
  const last = useRef(null);
  const [empty, setEmpty] = useState(true);
  function clear() {
    const context = canvas.current.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIZE, SIZE);
    setEmpty(true);
    onChange(null);
  }

  useEffect(clear, []);

  function place(event) {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
  }

  function begin(event) {
    event.preventDefault();
    canvas.current.setPointerCapture(event.pointerId);
    last.current = place(event);
    move(event);
  }

  function move(event) {
    if (!last.current) return;
    const context = canvas.current.getContext("2d");
    const now = place(event);
    context.strokeStyle = "#fff";
    context.lineWidth = SIZE / 13;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...last.current);
    context.lineTo(...now);
    context.stroke();
    last.current = now;
  }

  function end() {
    if (!last.current) return;
    last.current = null;
    setEmpty(false);
    canvas.current.toBlob((file) => onChange({ kind: "file", file, type: "image/png", name: "drawing.png" }));
  }

  return html`
    <div class="drawing">
      <canvas
        ref=${canvas}
        width=${SIZE}
        height=${SIZE}
        role="img"
        aria-label="A field to draw in with the pointer. With a keyboard, choose a sample or a file."
        onPointerDown=${begin}
        onPointerMove=${move}
        onPointerUp=${end}
        onPointerCancel=${end}
      ></canvas>
      <div>
        <p class="muted small">Draw here, then run.</p>
        <button type="button" class="button small" disabled=${empty} onClick=${clear}>Clear</button>
      </div>
    </div>
  `;
}
