// Time range, pipeline, live, theme. The choice is kept in the address, so that a view can be linked to.

import { byId, el } from "./dom.js";

const SECONDS = { "1h": 3600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000 };

const form = byId("controls");

/** What to ask the gateway for. */
export function query() {
  const { range, pipeline, from, to } = form.elements;
  const asked = {};
  if (pipeline.value) asked.pipeline = pipeline.value;
  if (range.value !== "custom") return { ...asked, since: -SECONDS[range.value] };
  if (from.value) asked.since = Date.parse(from.value) / 1000;
  if (to.value) asked.until = Date.parse(to.value) / 1000;
  return asked;
}

export const isLive = () => form.elements.live.checked;

/** Offer `pipelines`; keep the choice. */
export function offer(pipelines) {
  const select = form.elements.pipeline;
  const offered = [...select.options].slice(1).map((option) => option.value);
  if (offered.join("\n") === pipelines.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(select.options[0], ...pipelines.map((name) => el("option", { value: name }, name || "(none)")));
  select.value = pipelines.includes(chosen) ? chosen : "";
}

export function choosePipeline(name) {
  form.elements.pipeline.value = name;
  form.dispatchEvent(new Event("change", { bubbles: true }));
}

/** Call `changed` whenever another view is asked for, and `redraw` when only the colours changed. */
export function watch(changed, redraw) {
  restore();
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => {
    showDates();
    history.replaceState(null, "", `#${remembered()}`);
    changed();
  });
  window.addEventListener("hashchange", () => {
    restore();
    changed();
  });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const recolour = () => {
    byId("theme-name").textContent = isDark() ? "Light" : "Dark";
    redraw();
  };
  byId("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("gkt.theme", theme);
    } catch {
      // no storage: it holds until the page is left
    }
    recolour();
  });
  dark.addEventListener("change", recolour);
  recolour();
}

function remembered() {
  const { range, pipeline, live, from, to } = form.elements;
  const kept = new URLSearchParams({ range: range.value });
  if (pipeline.value) kept.set("pipeline", pipeline.value);
  if (!live.checked) kept.set("live", "no");
  if (range.value === "custom") {
    if (from.value) kept.set("from", from.value);
    if (to.value) kept.set("to", to.value);
  }
  return kept;
}

function restore() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const { range, pipeline, live, from, to } = form.elements;
  range.value = kept.get("range") in SECONDS || kept.get("range") === "custom" ? kept.get("range") : "24h";
  const name = kept.get("pipeline") ?? "";
  if (name && ![...pipeline.options].some((option) => option.value === name)) pipeline.append(el("option", { value: name }, name));
  pipeline.value = name;
  live.checked = kept.get("live") !== "no";
  from.value = kept.get("from") ?? "";
  to.value = kept.get("to") ?? "";
  showDates();
}

function showDates() {
  byId("dates").hidden = form.elements.range.value !== "custom";
}
