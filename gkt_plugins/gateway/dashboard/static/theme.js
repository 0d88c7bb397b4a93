// Loaded before the page is drawn, so that a chosen theme never flashes the other one.
"use strict";
try {
  const chosen = localStorage.getItem("gkt.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // no storage: the system's choice holds
}
