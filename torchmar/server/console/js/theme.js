// Sets the theme before anything is drawn: the one that was chosen last, or else that of the system. A classic script:
// modules run after the first paint.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function apply() {
    root.dataset.theme = root.dataset.chosenTheme || (system.matches ? "dark" : "light");
    dispatchEvent(new Event("themechange"));
  }

  try {
    const chosen = localStorage.getItem("torchmar-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.chosenTheme = chosen;
  } catch {
    // Storage may be disabled; the system's theme is used then.
  }
  apply();
  system.addEventListener("change", apply);
  addEventListener("themechosen", apply);
})();
