"use strict";
/* Puts what the server says now in the place of what is shown, while the page is looked at. */
(() => {
  const seconds = Number(document.body.dataset.refresh);
  if (!seconds) return;
  async function again() {
    if (!document.hidden) {
      try {
        const answer = await fetch(location.href, {cache: "no-store"});
        const next = new DOMParser().parseFromString(await answer.text(), "text/html");
        const old = document.querySelector("main"), fresh = next.querySelector("main");
        const busy = old.contains(document.activeElement) || String(getSelection());
        if (answer.ok && fresh && fresh.innerHTML !== old.dataset.was && !busy) {
          const open = [...old.querySelectorAll("details")].map(block => block.open);
          old.dataset.was = fresh.innerHTML;
          old.innerHTML = fresh.innerHTML;
          old.querySelectorAll("details").forEach((block, i) => { if (i in open) block.open = open[i]; });
        }
        document.body.dataset.refreshed = String(Date.now());
      } catch { /* the server is gone for now; the page stays as it is */ }
    }
    setTimeout(again, 1000 * seconds);
  }
  setTimeout(again, 1000 * seconds);
})();
