// One chart: uPlot's canvas, a legend, a line that reads out what is pointed at, and the same numbers as a table.

import uPlot from "./vendor/uPlot.esm.js";
import { el, fill, table } from "./dom.js";

const HEIGHT = 190;
const FONT = "12px system-ui, -apple-system, sans-serif";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const drawn = new Map();

/** Repaint all charts, after the colours changed. */
export function repaint() {
  for (const { plot } of drawn.values()) plot?.redraw(false, true);
}

/**
 * Draw into `section`, or bring what is there up to date.
 *
 * `x`: ascending numbers; `series`: [{name, values, colour, dashed, bars, marks, label}], drawn in this order, where
 * `label(index)` is what the readout and the table say (default: `y` of the value); `from`, `to`: ends of the x axis, whose marks are counted from `origin`;
 * `y`, `mark`, `ticks`: what a y value, a mark of the y axis and one of the x axis read; `where(index)`: what an x value is called.
 */
export function chart(section, spec) {
  const kind = JSON.stringify([spec.title, spec.series.map(({ name }) => name)]);
  let state = drawn.get(section.id);
  if (state?.kind !== kind || state.section !== section) {
    state?.stop?.();
    state = build(section, spec, kind);
    drawn.set(section.id, state);
  }
  state.spec = spec;
  const empty = spec.series.every(({ values }) => values.every((value) => !value));
  state.empty.hidden = !empty;
  state.empty.textContent = spec.none;
  state.canvas.hidden = empty;
  state.table.hidden = empty;
  if (state.legend) state.legend.hidden = empty;
  state.canvas.setAttribute("aria-label", `${spec.title}. ${spec.summary} The arrow keys read single values.`);
  fill(state.table, el("summary", {}, "As a table", el("span", { class: "hidden" }, `: ${spec.title}`)), table(spec.title, [spec.xName, ...readable(spec).map(({ name }) => name)], rows(spec)));
  if (empty) {
    state.readout.textContent = "";
    return;
  }
  state.plot ??= plotOf(state);
  const at = state.plot.cursor.idx;
  state.plot.setData([spec.x, ...spec.series.map(({ values }) => values)]);
  readOut(state, at);
}

const readable = (spec) => [...spec.series].sort((a, b) => (a.order ?? 0) - (b.order ?? 0));

function read(spec, series, index) {
  const value = series.values[index];
  return series.label ? series.label(index) : value === null || value === undefined ? "–" : spec.y(value);
}

function rows(spec) {
  const all = spec.x.map((_, index) => index).filter((index) => spec.series.some(({ values }) => values[index]));
  return all.reverse().map((index) => ({ cells: [spec.where(index), ...readable(spec).map((series) => read(spec, series, index))] }));
}

function build(section, spec, kind) {
  const state = { kind, section, spec, plot: null };
  state.readout = el("p", { class: "readout", "aria-live": "polite" });
  state.canvas = el("div", { class: "canvas", role: "img", tabindex: "0", onkeydown: (event) => walk(state, event) });
  state.empty = el("p", { class: "empty" });
  state.table = el("details", {});
  state.legend = spec.series.length > 1
    ? el("ul", { class: "legend" }, readable(spec).map(({ name, colour: series, dashed }) => el("li", { class: dashed ? `${series} dashed` : series }, name)))
    : null;
  section.replaceChildren(el("header", {}, el("h2", {}, spec.title), state.legend ?? ""), el("div", { class: "plot" }, state.canvas, state.empty), state.readout, state.table);
  const observer = new ResizeObserver(() => state.plot?.setSize({ width: widthOf(state), height: HEIGHT }));
  observer.observe(state.canvas);
  state.stop = () => {
    observer.disconnect();
    state.plot?.destroy();
  };
  return state;
}

const widthOf = (state) => Math.max(200, Math.floor(state.canvas.clientWidth));

function plotOf(state) {
  const { spec } = state;
  const axis = { stroke: () => colour("soft"), font: FONT, ticks: { show: false }, labelGap: 0 };
  return new uPlot({
    width: widthOf(state),
    height: HEIGHT,
    padding: [8, 20, 0, 0],
    legend: { show: false },
    scales: {
      x: { time: false, range: () => [state.spec.from, state.spec.to] },
      y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] },
    },
    axes: [
      { ...axis, grid: { show: false }, gap: 6, size: 26, space: 64, incrs: spec.steps, splits: (_, __, from, to, step) => marksOf(from, to, step, state.spec.origin), values: (_, marks) => marks.map((mark) => state.spec.ticks(mark)) },
      { ...axis, grid: { stroke: () => colour("line"), width: 1 }, gap: 4, space: 42,
        size: (self, marks) => (marks ? 14 + Math.max(...marks.map((mark) => mark.length)) * 7 : 40),
        values: (_, marks) => marks.map((mark) => (state.spec.mark ?? state.spec.y)(mark)) },
    ],
    cursor: {
      y: false,
      drag: { x: false, y: false },
      points: { size: 7, fill: (self, index) => colour(spec.series[index - 1].colour), stroke: () => colour("paper"), width: 2, show: !spec.series[0].bars },
      sync: spec.sync ? { key: spec.sync } : undefined,
    },
    hooks: { setCursor: [(self) => readOut(state, self.cursor.idx)] },
    series: [{}, ...spec.series.map(seriesOf)],
  }, [spec.x, ...spec.series.map(({ values }) => values)], state.canvas);
}

/** Multiples of `step`, counted from `origin`: whole hours and days where the reader is, not in Greenwich. */
function marksOf(from, to, step, origin = 0) {
  const first = Math.ceil((from - origin) / step) * step + origin;
  return Array.from({ length: Math.max(0, Math.floor((to - first) / step) + 1) }, (_, number) => first + number * step);
}

function seriesOf({ colour: name, dashed, bars, marks }) {
  const stroke = () => colour(name);
  if (bars) return { stroke, fill: stroke, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.82, 48] }) };
  if (marks) return { stroke, width: 2, points: { show: false }, paths: levels };
  return { stroke, width: 2, dash: dashed ? [5, 4] : undefined, points: { size: 5, filter: alone, fill: stroke } };
}

/** A level over each bar, as wide as it, where there is one. */
function levels(self, index, first, last) {
  const [x, y] = [self.data[0], self.data[index]];
  const between = x.length > 1 ? self.valToPos(x[1], "x", true) - self.valToPos(x[0], "x", true) : self.bbox.width;
  const half = Math.max(3 * devicePixelRatio, Math.min(0.41 * between, 24 * devicePixelRatio));
  const stroke = new Path2D();
  for (let i = first; i <= last; i += 1) {
    if (!y[i]) continue;
    const [left, top] = [self.valToPos(x[i], "x", true), self.valToPos(y[i], "y", true)];
    stroke.moveTo(left - half, top);
    stroke.lineTo(left + half, top);
  }
  return { stroke, fill: null, clip: null, band: null, gaps: null, flags: 0 };
}

/** Points with nothing on either side would be a line without length, so they are drawn as points. */
function alone(self, index, shown) {
  if (shown) return null;
  const values = self.data[index];
  return values.flatMap((value, i) => (value != null && values[i - 1] == null && values[i + 1] == null ? [i] : []));
}

function readOut(state, index) {
  const { spec } = state;
  const known = index !== null && index !== undefined && index < spec.x.length;
  state.readout.textContent = known
    ? `${spec.where(index)}: ${readable(spec).map((series) => (spec.series.length > 1 ? `${series.name.toLowerCase()} ${read(spec, series, index)}` : read(spec, series, index))).join(", ")}`
    : spec.summary;
}

/** The arrow keys go from value to value, as the mouse would. */
function walk(state, event) {
  const last = state.spec.x.length - 1;
  const at = state.plot?.cursor.idx ?? (event.key === "ArrowRight" ? -1 : last + 1);
  const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
  if (next === undefined || !state.plot) return;
  event.preventDefault();
  const index = Math.min(last, Math.max(0, next));
  state.plot.setCursor({ left: state.plot.valToPos(state.spec.x[index], "x"), top: 10 });
}
