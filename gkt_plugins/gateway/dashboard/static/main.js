// Reads the figures now and then, and draws them. A failure is told, and does not end the trying.

import { repaint } from "./chart.js";
import { drawCharts } from "./charts.js";
import { isLive, offer, query, watch } from "./controls.js";
import { byId, el } from "./dom.js";
import { fetchFigures, key } from "./figures.js";
import { time } from "./format.js";
import { drawMoney, drawNumbers } from "./headline.js";
import { drawErrors, drawFallbacks, drawLatency, drawPipelines } from "./tables.js";

const EVERY_S = 5;
const LONGEST_WAIT_S = 60;

let timer = null;
let running = null;
let failures = 0;
let lastFigures = null;

async function refresh() {
  clearTimeout(timer);
  running?.abort();
  const mine = (running = new AbortController());
  try {
    const figures = await fetchFigures(query(), mine.signal);
    if (mine.signal.aborted) return;
    failures = 0;
    draw(figures);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error.locked) return askForKey(error.message);
    failures += 1;
    complain(error.message);
  }
  schedule();
}

function schedule() {
  if (document.hidden || (!isLive() && !failures)) return;
  timer = setTimeout(refresh, 1000 * wait());
}

const wait = () => (failures ? Math.min(LONGEST_WAIT_S, EVERY_S * 2 ** (failures - 1)) : EVERY_S);

function draw(figures) {
  lastFigures = figures;
  byId("notice").hidden = true;
  byId("key").hidden = true;
  byId("content").hidden = false;
  byId("forget").hidden = key.get() === null;
  offer(figures.pipelines);
  byId("more").hidden = !figures.requests.total && !figures.money.calls;
  drawMoney(figures.money, figures.requests);
  drawNumbers(figures);
  drawCharts(figures);
  drawLatency(figures.latency);
  drawFallbacks(figures.requests, figures.acceptance, figures.guidance);
  drawErrors(figures.errors);
  drawPipelines(figures.by_pipeline, figures.pipeline);
  byId("updated").textContent = `Read at ${time(figures.now)}${isLive() ? `, again every ${EVERY_S} seconds` : ""}.`;
}

function complain(message) {
  const since = lastFigures ? `These figures are of ${time(lastFigures.now)}. ` : "";
  byId("notice").replaceChildren(
    `No new figures: ${message}. ${since}Trying again in ${wait()} seconds.`,
    el("button", { type: "button", class: "link", onclick: refresh }, "Try now"));
  byId("notice").hidden = false;
  if (!lastFigures) byId("updated").textContent = "No figures yet.";
}

function askForKey(message) {
  const refused = key.get() !== null;
  key.forget();
  lastFigures = null;
  byId("content").hidden = true;
  byId("forget").hidden = true;
  byId("notice").hidden = !refused;
  if (refused) byId("notice").textContent = `Not let in: ${message}.`;
  byId("updated").textContent = "No figures without a key.";
  byId("key").hidden = false;
  byId("key-text").focus();
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("key-text").value.trim();
  byId("key-text").value = "";
  if (/^[\x20-\x7e]+$/.test(text)) {
    key.set(text);
    refresh();
  } else {
    byId("notice").textContent = "That is no key: a key has only the characters of ASCII.";
    byId("notice").hidden = false;
  }
});
byId("forget").addEventListener("click", () => {
  key.forget();
  refresh();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (isLive() || failures) refresh();
});
watch(refresh, repaint);
refresh();
