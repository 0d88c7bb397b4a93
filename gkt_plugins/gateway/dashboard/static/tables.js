// The sections that are tables.

import { choosePipeline } from "./controls.js";
import { byId, el, fill, table } from "./dom.js";
import { count, duration, exact, share } from "./format.js";

const PARTS = [
  ["first_token", "First token"],
  ["total", "Whole answer"],
  ["teacher", "of it teacher"],
  ["student", "of it student"],
  ["overhead", "of it own overhead"],
];

const ROUTES = {
  guided: "Guided, finished by the student",
  teacher: "Guided, finished by the teacher",
  student: "Student alone",
  forwarded: "Forwarded to the student",
};

const heading = (id, text) => el("h2", { id: `${id}-title` }, text);

export function drawLatency(latency) {
  const times = (part) => {
    const { p50, p95, p99, requests } = latency.percentiles_s[part];
    return [...[p50, p95, p99].map((value) => (requests ? duration(value) : "–")), count(requests)];
  };
  fill(byId("latency"),
    heading("latency", "Where the time goes"),
    latency.mean_s ? split(latency.mean_s) : null,
    table("Latency of answered requests", ["of answered requests", "p50", "p95", "p99", "requests"],
      PARTS.map(([part, name]) => ({ cells: [name, ...times(part)], className: part === "total" ? "total" : null })), { hideCaption: true }));
}

function split(mean) {
  const parts = ["teacher", "student", "overhead"];
  const whole = parts.reduce((sum, part) => sum + mean[part], 0) || 1;
  const words = parts.map((part) => `${part === "overhead" ? "own overhead" : part} ${duration(mean[part])}`);
  return el("div", {},
    el("div", { class: "split", "aria-hidden": "true" }, parts.map((part) => el("i", { class: part, width: `${(100 * mean[part]) / whole}%` }))),
    el("p", { class: "soft" }, `An answer takes ${duration(mean.total)} on average: ${words.join(", ")}.`));
}

export function drawFallbacks(requests, acceptance, guidance) {
  const of = (part, whole) => [count(part), whole ? share(part / whole) : "–"];
  const rows = Object.entries(requests.routes).map(([route, n]) => ({ cells: [ROUTES[route] ?? `Route: ${route}`, ...of(n, requests.ok)] }));
  rows.push(
    { cells: ["Guidance from the cache", ...of(requests.cached, guidance.requests)] },
    { cells: ["Degraded", ...of(requests.degraded, requests.total)] },
    { cells: ["Tried again", ...of(requests.retried, requests.total)] },
    { cells: ["Refused", ...of(requests.refused, requests.total)] },
    { cells: ["Cancelled by the client", ...of(requests.cancelled, requests.total)] },
  );
  if (acceptance.drafted) rows.push({ cells: ["Drafted tokens accepted", ...of(acceptance.accepted, acceptance.drafted)] });
  fill(byId("fallbacks"), heading("fallbacks", "Routes and fallbacks"),
    table("Routes and fallbacks", ["outcome", "requests", "share"], rows, { hideCaption: true }));
}

export function drawErrors(errors) {
  const rows = errors.rows.map(({ status, code, requests }) => ({ cells: [code || status, status, count(requests)] }));
  if (errors.others) rows.push({ cells: ["others", "", count(errors.others)] });
  fill(byId("errors"), heading("errors", "Errors by code"),
    rows.length ? table("Requests that were not answered, by code", ["code", "what became of it", "requests"], rows, { hideCaption: true })
      : el("p", { class: "soft" }, "None in this time."));
}

export function drawPipelines(rows, chosen) {
  const amounts = (pairs) => {
    const shown = Object.entries(pairs);
    return shown.length ? shown.flatMap(([currency, text], index) => [index ? " + " : "", exact(currency, text)]) : [el("span", { class: "none" }, "–")];
  };
  const saved = (alone) => Object.fromEntries(Object.entries(alone).map(([currency, sums]) => [currency, sums.saved]));
  const money = (row) => el("span", {}, amounts(row.spent), row.unknown_calls ? el("span", { class: "soft" }, ` + ${count(row.unknown_calls)} unknown`) : null);
  fill(byId("pipelines"), heading("pipelines", "Pipelines"),
    rows.length ? table("Pipelines in this time", ["pipeline", "spent", "saved (estimate)", "requests", "guided", "p50", "p95", "not answered"],
      rows.map((row) => ({
        className: row.pipeline === chosen ? "total" : null,
        cells: [
          el("button", { class: "link", type: "button", onclick: () => choosePipeline(row.pipeline) }, row.pipeline || "(none)"),
          money(row), el("span", {}, amounts(saved(row.teacher_alone))),
          count(row.requests), row.share_guided === null ? "–" : share(row.share_guided),
          row.total_p50_s === null ? "–" : duration(row.total_p50_s), row.total_p95_s === null ? "–" : duration(row.total_p95_s),
          count(row.not_answered),
        ],
      })), { hideCaption: true }) : el("p", { class: "soft" }, "The configuration has none."));
}
