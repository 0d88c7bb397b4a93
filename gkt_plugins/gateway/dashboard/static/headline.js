// The money, and the row of numbers: what a person reads first.

import { byId, el, fill } from "./dom.js";
import { amount, count, duration, exact, names, plural, share } from "./format.js";

export function drawMoney(money, requests) {
  const compared = money.teacher_alone.by_currency;
  const blocks = compared.map((comparison) => savedBlock(comparison));
  for (const spent of money.spent) {
    if (!compared.some((comparison) => comparison.currency === spent.currency)) blocks.push(spentBlock(spent, money));
  }
  if (!blocks.length) blocks.push(emptyBlock(money, requests));
  fill(byId("money"), blocks, notes(money, requests));
}

function savedBlock(comparison) {
  const { currency, actual, estimate, saved, saving, teachers, requests } = comparison;
  const dearer = Number(saved) < 0;
  const alone = `the teacher ${names(teachers.map((teacher) => `“${teacher}”`))} alone`;
  const most = Math.max(Number(actual), Number(estimate)) || 1;
  const bar = (label, text, kind) => [
    el("span", {}, label),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: `bar ${kind}`, width: `${(100 * Number(text)) / most}%` })),
    el("span", { class: "value" }, exact(currency, text)),
  ];
  return el("div", { class: "block" },
    el("p", { class: "label" }, dearer ? `Dearer than ${alone} would have been (estimate)` : `Saved, compared with ${alone} (estimate)`),
    el("p", { class: "saved" },
      big(currency, dearer ? saved.slice(1) : saved),
      el("span", { class: dearer ? "share dearer" : "share" },
        saving === null ? "share unknown" : `${share(Math.abs(saving))} ${dearer ? "more" : "less"}`)),
    el("div", { class: "bars" }, bar("Spent", actual, ""), bar("Teacher alone", estimate, "alone")),
    el("p", { class: "soft" }, `On ${plural(requests, "request")} that can be compared.`));
}

function spentBlock({ currency, amount: text }, money) {
  return el("div", { class: "block" },
    el("p", { class: "label" }, money.unknown_calls ? "Spent, as far as it is known" : "Spent"),
    el("p", { class: "saved" }, big(currency, text)),
    el("p", { class: "soft" }, whyNotCompared(money)));
}

function emptyBlock(money, requests) {
  const nothing = money.calls === 0 && requests.total === 0;
  return el("div", { class: "block" },
    el("p", { class: "label" }, nothing ? "Nothing has been asked in this time" : "Spent"),
    el("p", { class: "saved" }, el("span", { class: "amount none" }, nothing ? "No requests" : money.calls ? "Unknown" : "Nothing")),
    nothing ? el("p", { class: "soft" }, "A client of the OpenAI API comes through here with base_url ", el("code", {}, `${location.origin}/v1`),
      " and the model ", el("code", {}, "gkt/default"), ".") : null);
}

const big = (currency, text) =>
  el("span", { class: "amount", title: `${currency} ${text}` }, el("span", { class: "unit" }, currency), amount(text));

function whyNotCompared(money) {
  const reasons = money.teacher_alone.not_compared.map(({ reason, requests }) => `${reason} (${count(requests)})`);
  return reasons.length ? `Saved: unknown. Why requests cannot be compared: ${reasons.join(", ")}.` : "Saved: unknown.";
}

function notes(money, requests) {
  if (!money.calls && !requests.total) return null;
  const lines = money.spent.map(({ currency, amount: text, by_role }) =>
    el("p", {}, "Spent in all: ", exact(currency, text), " (",
      Object.entries(by_role).flatMap(([role, part], index) => [index ? ", " : "", `${role} `, exact(currency, part)]), ")."));
  if (money.unknown_calls) {
    const models = money.unknown.map(({ model, why, calls }) => `${model || "(no name)"}: ${why} (${count(calls)})`);
    lines.push(el("p", {}, el("strong", {}, `Not in these sums: ${plural(money.unknown_calls, "call")} of unknown cost. `), `${models.join(", ")}.`,
      money.unknown.some(({ why }) => why === "price unknown") ? [" Prices are given as ", el("code", {}, "[prices.MODEL]"), "."] : null));
  }
  if (money.open_calls) lines.push(el("p", {}, `${plural(money.open_calls, "call")} under way.`));
  if (money.estimated_calls) lines.push(el("p", {}, `The tokens of ${plural(money.estimated_calls, "call")} are estimated: their engine did not report them.`));
  const alone = money.teacher_alone;
  const left = alone.by_currency.length ? alone.not_compared : [];
  return el("div", { class: "notes" }, lines,
    alone.by_currency.length ? el("details", {},
      el("summary", {}, "What the estimate assumes"),
      el("ul", {},
        alone.assumptions.map((assumption) => el("li", {}, assumption)),
        left.map(({ reason, requests: n }) => el("li", {}, `left out: ${plural(n, "request")}: ${reason}`)))) : null);
}

export function drawNumbers({ requests, guidance, latency, acceptance }) {
  const { first_token: first, total, overhead } = latency.percentiles_s;
  const missed = requests.total - requests.ok;
  const cell = (name, value, note) => el("div", {}, el("dt", {}, name), el("dd", {}, value), el("dd", {}, note));
  const absent = () => el("span", { class: "none" }, "–");
  const timed = (part) => (part.requests ? [duration(part.p50), `median, p95 ${duration(part.p95)}`] : [absent(), "median"]);
  const cells = [
    cell("Requests", count(requests.total), requests.total ? `${share(requests.streamed / requests.total)} streamed` : "none in this time"),
    cell("Guided", requests.ok ? share(requests.share_guided) : absent(), `of ${count(requests.ok)} answered`),
    cell("Guidance", guidance.median === null ? absent() : count(guidance.median), "tokens, median"),
    cell("First token", ...timed(first)),
    cell("Whole answer", ...timed(total)),
    cell("Own overhead", ...timed(overhead)),
    cell("Not answered", requests.total ? share(missed / requests.total) : absent(), plural(missed, "request")),
  ];
  if (acceptance.drafted) cells.splice(3, 0, cell("Drafts accepted", share(acceptance.draft_acceptance_rate), `of ${count(acceptance.drafted)} tokens`));
  fill(byId("numbers"), cells);
}
