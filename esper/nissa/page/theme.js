// Before the first paint: the colours that were chosen here last. A classic script, so that nothing flashes.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("esper.theme");
  } catch {
    /* storage may be closed to us */
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
