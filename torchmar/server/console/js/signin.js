// The pages without a server: signed out, and a server that does not answer.

import { useState } from "preact/hooks";

import { check, session, signIn } from "./state.js";
import { html } from "./ui.js";

// The console of another server, served by `torchmar console`: it has no token of its own to paste.
const LINK_ONLY = document.documentElement.dataset.signIn === "link";

export function SignIn() {
  return LINK_ONLY ? html`<${ByLink} />` : html`<${ByToken} />`;
}

function ByLink() {
  const { reason } = session.value;
  return html`
    <main class="gate" id="main">
      <div class="card gate-card">
        <h1>Sign in</h1>
        ${reason && html`<p class="notice notice-warn" role="status">${reason}</p>`}
        <p>
          Open the link that <code>torchmar console</code> printed. It works once, and for ten minutes; press Enter in
          its terminal for another one.
        </p>
      </div>
    </main>
  `;
}

function ByToken() {
  const [token, setToken] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);

  async function submit(event) {
    event.preventDefault();
    setBusy(true);
    setError("");
    try {
      await signIn(token.trim());
    } catch (failure) {
      setError(failure.message);
      setBusy(false);
    }
  }

  const { reason } = session.value;
  return html`
    <main class="gate" id="main">
      <form class="card gate-card" onSubmit=${submit}>
        <h1>Sign in</h1>
        ${reason && html`<p class="notice notice-warn" role="status">${reason}</p>`}
        <p>
          The simplest way is the link that <code>torchmar serve</code> prints when it starts, or that${" "}
          <code>torchmar console</code> prints at any time. It works once, and for ten minutes.
        </p>
        <label class="field">
          <span>Or paste a token</span>
          <input
            type="password"
            autocomplete="off"
            spellcheck="false"
            value=${token}
            onInput=${(event) => setToken(event.currentTarget.value)}
            aria-describedby="token-help"
            aria-invalid=${error ? "true" : undefined}
            required
          />
        </label>
        <p id="token-help" class="muted small">
          The management token is in <code>key_file.json</code> of the server's run folder. With the token of a reader
          you can look and change nothing.
        </p>
        ${error && html`<p class="notice notice-bad" role="alert">${error}</p>`}
        <button class="button primary" disabled=${busy || !token.trim()}>${busy ? "Signing in" : "Sign in"}</button>
      </form>
    </main>
  `;
}

export function Unreachable() {
  return html`
    <main class="gate" id="main">
      <div class="card gate-card" role="alert">
        <h1>The server does not answer</h1>
        <p>
          It may be starting, or it has been stopped. This page tries again every two seconds, and opens when it is
          there.
        </p>
        <p class="muted small">On the server's machine, <code>torchmar status</code> says more.</p>
        <button class="button" onClick=${() => check()}>Try now</button>
      </div>
    </main>
  `;
}
