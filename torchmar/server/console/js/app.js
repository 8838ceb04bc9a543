// The console: navigation, the frame around its pages, and what is shown without a server.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { signal } from "@preact/signals";

import * as format from "./format.js";
import { Model } from "./model.js";
import { Models } from "./models.js";
import { SignIn, Unreachable } from "./signin.js";
import { connection, health, reports, server, session, signOut, start, watch } from "./state.js";
import { html, useNow } from "./ui.js";

// Pages that few people open first are loaded when they are opened.
const PAGES = [
  { id: "models", title: "Models" },
  { id: "live", title: "Live", load: () => import("./live.js") },
  { id: "try", title: "Try it", load: () => import("./try.js") },
  { id: "rollout", title: "Rollout", load: () => import("./rollout.js") },
  { id: "archives", title: "Archives", load: () => import("./archives.js") },
  { id: "logs", title: "Logs", load: () => import("./logs.js") },
];

const route = signal(parse());
const loaded = signal({});

function parse() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "models", ...names] = path.split("/").filter(Boolean).map(decodeURIComponent);
  return { page: PAGES.some(({ id }) => id === page) ? page : "models", names, query: new URLSearchParams(query) };
}

addEventListener("hashchange", () => {
  const before = route.value;
  route.value = parse();
  if (before.page === route.value.page && before.names.join() === route.value.names.join()) return;
  scrollTo(0, 0);
  // Screen readers begin at the top of a new page.
  requestAnimationFrame(() => document.querySelector("#main h1")?.focus());
});

function App() {
  const { state } = session.value;
  const { page, names, query } = route.value;
  const title = PAGES.find(({ id }) => id === page).title;

  useEffect(() => {
    document.title = `${names[0] && page === "models" ? names[0] : title} · torchmar`;
  }, [title, names[0]]);

  useEffect(() => {
    if (state !== "in") return;
    if (page === "live") watch({ model: names[0], version: names[1] });
    else watch({ logs: page === "logs" });
  }, [state, page, names[0], names[1]]);

  if (state === "checking") return html`<p class="boot">Loading the console.</p>`;
  if (state === "out") return html`<${Frame} bare><${SignIn} /><//>`;
  if (state === "unreachable") return html`<${Frame} bare><${Unreachable} /><//>`;
  return html`<${Frame} page=${page}><${Page} page=${page} names=${names} query=${query} /><//>`;
}

function Page({ page, names, query }) {
  const [error, setError] = useState("");
  const { load } = PAGES.find(({ id }) => id === page);
  useEffect(() => {
    setError("");
    if (!load || loaded.value[page]) return;
    load().then(
      (module) => (loaded.value = { ...loaded.value, [page]: module.default }),
      () => setError("This page could not be loaded. The server may have been stopped; reload when it runs again."),
    );
  }, [page]);

  if (page === "models") {
    return names.length ? html`<${Model} key=${names[0]} name=${names[0]} />` : html`<${Models} query=${query} />`;
  }
  const Loaded = loaded.value[page];
  if (Loaded) return html`<${Loaded} names=${names} query=${query} />`;
  return html`<p class="boot" role="status">${error || ""}</p>`;
}

function Frame({ page, bare, children }) {
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to the content</a>
    <header class="top">
      <a class="brand" href="#/models" aria-label="torchmar, all models">
        <img src="/console/icon.svg" alt="" width="24" height="24" />
        <span>torchmar</span>
      </a>
      ${!bare &&
      html`
        <nav aria-label="Pages">
          ${PAGES.filter(({ id }) => id !== "rollout" || reports(id)).map(
            ({ id, title }) => html`
              <a key=${id} href=${`#/${id}`} aria-current=${id === page ? "page" : undefined}>${title}</a>
            `,
          )}
        </nav>
      `}
      <div class="top-end">
        ${!bare && html`<${Health} />`}
        <${Theme} />
        ${!bare &&
        server.value?.tokens &&
        html`<button class="button small quiet" onClick=${signOut}>Sign out</button>`}
      </div>
    </header>
    ${!bare && html`<${Lost} />`} ${!bare && html`<${Reader} />`} ${children}
  `;
}

function skip(event) {
  event.preventDefault();
  const main = document.getElementById("main");
  main.tabIndex = -1;
  main.focus();
}

const HEALTH = {
  Healthy: ["good", "Healthy", "Every model with workers answers."],
  "Partial Healthy": ["warn", "Partly healthy", "Some workers do not load, and others answer for them."],
  Unhealthy: ["bad", "Unhealthy", "A model that the server starts with is not ready, or does not load."],
};

function Health() {
  if (!connection.value.live) return html`<span class="pill pill-none"><span class="dot"></span>No connection</span>`;
  const [tone, name, meaning] = HEALTH[health.value] || ["none", "", ""];
  if (!name) return null;
  return html`<span class=${`pill pill-${tone}`} title=${meaning}><span class="dot"></span>${name}</span>`;
}

// Appears only after a moment: a page that connects again at once needs no warning.
function Lost() {
  const { live, since } = connection.value;
  return !live && since ? html`<${LostNow} since=${since} />` : null;
}

function LostNow({ since }) {
  const seconds = useNow() - since;
  if (seconds < 1) return null;
  return html`
    <div class="strip strip-bad" role="alert">
      The server has not answered for ${format.duration(seconds)}. What you see is what was known then; this page
      connects again by itself.
    </div>
  `;
}

function Reader() {
  if (server.value?.right !== "read") return null;
  return html`<div class="strip">You are signed in as a reader: you see everything, and can change and try nothing.</div>`;
}

function Theme() {
  const root = document.documentElement;
  const [theme, setTheme] = useState(root.dataset.chosenTheme || "system");

  function choose(event) {
    const chosen = event.currentTarget.value;
    setTheme(chosen);
    if (chosen === "system") delete root.dataset.chosenTheme;
    else root.dataset.chosenTheme = chosen;
    try {
      localStorage.setItem("torchmar-theme", chosen);
    } catch {
      // Storage may be disabled; the choice lasts as long as the page then.
    }
    dispatchEvent(new Event("themechosen"));
  }

  return html`
    <label class="theme">
      <span class="hidden">Colours</span>
      <select value=${theme} onChange=${choose}>
        <option value="system">Auto</option>
        <option value="light">Light</option>
        <option value="dark">Dark</option>
      </select>
    </label>
  `;
}

render(html`<${App} />`, document.getElementById("app"));
start();
