// What the four charts show.

import { chart } from "./chart.js";
import { byId, el } from "./dom.js";
import { amount, count, duration, money, plural, share, shortDuration, stretch } from "./format.js";

const MINUTE = 60, HOUR = 3600, DAY = 86_400;
const TIME_STEPS = [MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 60 * DAY, 90 * DAY, 180 * DAY, 365 * DAY];

export function drawCharts(figures) {
  const { series, slice_s: length } = figures;
  const x = series.start.map((start) => start + length / 2);
  const overTime = {
    x, from: figures.since, to: figures.until, steps: TIME_STEPS, xName: "time", sync: "time",
    origin: new Date(figures.since * 1000).getTimezoneOffset() * MINUTE,
    ticks: tick(figures.until - figures.since), where: (index) => stretch(series.start[index], length),
  };
  drawMoneyCharts(overTime, figures);
  drawRequests(overTime, figures);
  drawLatencies(overTime, figures);
  drawGuidance(figures.guidance);
}

function tick(range) {
  const hours = new Intl.DateTimeFormat(navigator.language, { hour: "2-digit", minute: "2-digit" });
  const days = new Intl.DateTimeFormat(navigator.language, range > 300 * DAY ? { month: "short", year: "numeric" } : { day: "numeric", month: "short" });
  return (mark) => {
    const at = new Date(mark * 1000);
    return range > 2 * DAY || (at.getHours() === 0 && at.getMinutes() === 0) ? days.format(at) : hours.format(at);
  };
}

/** One chart a currency, because amounts of different ones do not belong on one axis. */
function drawMoneyCharts(overTime, figures) {
  const { teacher_alone: alone, spent } = figures.money;
  const currencies = [...new Set([...alone.by_currency, ...spent].map(({ currency }) => currency))];
  const wanted = (currencies.length ? currencies : [""]).map((currency) => [`chart-money-${currency}`, currency]);
  for (const section of document.querySelectorAll("[id^='chart-money-']")) {
    if (!wanted.some(([id]) => id === section.id)) section.remove();
  }
  for (const [id, currency] of wanted) {
    if (!byId(id)) byId("chart-requests").before(el("section", { class: "chart", id }));
    drawMoneyChart(byId(id), currency, overTime, figures);
  }
}

function drawMoneyChart(section, currency, overTime, { series, money: { teacher_alone: alone, spent } }) {
  const compared = alone.by_currency.find((comparison) => comparison.currency === currency);
  const total = spent.find((sum) => sum.currency === currency);
  const spentBars = (texts) => ({ name: "Spent", values: texts.map(Number), colour: "accent", bars: true, order: 1 });
  chart(section, {
    ...overTime,
    title: currency ? `Money, ${currency}` : "Money",
    series: compared ? [
      spentBars(series.compared[currency].actual),
      { name: "Teacher alone (estimate)", values: series.compared[currency].estimate.map(Number), colour: "ink", marks: true, order: 2 },
    ] : [spentBars(series.spent[currency] ?? overTime.x.map(() => "0"))],
    y: (value) => amount(String(value)),
    none: "No known cost in this time",
    summary: compared ? "Requests that can be compared." : total ? `${money(currency, total.amount)} in all.` : "",
  });
}

function drawRequests(overTime, { series, requests }) {
  // stacked: each bar hides the lower part of the one before it
  const answered = series.guided.map((n, index) => n + series.unguided[index]);
  const bars = (name, values, colour, counts, order) => ({ name, values, colour, order, bars: true, label: (index) => count(counts[index]) });
  chart(byId("chart-requests"), {
    ...overTime,
    title: "Requests",
    series: [
      bars("Not answered", answered.map((n, index) => n + series.not_answered[index]), "ink", series.not_answered, 3),
      bars("Student alone", answered, "rest", series.unguided, 2),
      bars("Guided", series.guided, "accent", series.guided, 1),
    ],
    y: (value) => (Number.isInteger(value) ? count(value) : ""),
    none: "No requests in this time",
    summary: `${plural(requests.total, "request")}, ${requests.ok ? share(requests.share_guided) : "none"} of the answered ones guided.`,
  });
}

function drawLatencies(overTime, { series, latency }) {
  const { total, first_token: first } = latency.percentiles_s;
  chart(byId("chart-latency"), {
    ...overTime,
    title: "Latency of whole answers",
    series: [
      { name: "p99", values: series.total_p99_s, colour: "rest", order: 4 },
      { name: "p95", values: series.total_p95_s, colour: "edge", order: 3 },
      { name: "p50", values: series.total_p50_s, colour: "accent", order: 2 },
      { name: "First token, p50", values: series.first_token_p50_s, colour: "accent", dashed: true, order: 1 },
    ],
    y: duration, mark: shortDuration,
    none: "No answered requests in this time",
    summary: total.requests ? `p50 ${duration(total.p50)}, p95 ${duration(total.p95)}, p99 ${duration(total.p99)}${first.requests ? `; first token ${duration(first.p50)}` : ""}.` : "",
  });
}

function drawGuidance({ bins, requests, median, mean, longest }) {
  const width = bins.length ? bins[0].to : 1;
  chart(byId("chart-guidance"), {
    title: "Length of the guidance",
    x: bins.map(({ from, to }) => (from - 1 + to) / 2),
    from: 0, to: (bins.length + 1) * width,
    steps: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000],
    series: [{ name: "Requests", values: bins.map((bin) => bin.requests), colour: "accent", bars: true }],
    xName: "tokens",
    ticks: (mark) => count(mark),
    where: (index) => (bins[index].from === bins[index].to ? plural(bins[index].to, "token") : `${count(bins[index].from)} to ${count(bins[index].to)} tokens`),
    y: (value) => (Number.isInteger(value) ? count(value) : ""),
    none: "No guided requests in this time",
    summary: requests ? `Tokens: median ${count(median)}, mean ${count(Math.round(mean))}, longest ${count(longest)}.` : "",
  });
}
