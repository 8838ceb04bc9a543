// Sets the theme that was chosen last, before anything is drawn. A classic script: modules run after the first paint.
(() => {
  try {
    const chosen = localStorage.getItem("torchmar-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage may be disabled; the system's theme is used then.
  }
})();
