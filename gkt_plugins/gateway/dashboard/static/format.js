// Numbers for people. What is not known reads "unknown", never 0.

import { el } from "./dom.js";

const locale = navigator.language;
const whole = new Intl.NumberFormat(locale);
const clock = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const formats = new Map();

function digits(least, most) {
  const key = `${least} ${most}`;
  if (!formats.has(key)) {
    formats.set(key, new Intl.NumberFormat(locale, { minimumFractionDigits: least, maximumFractionDigits: most }));
  }
  return formats.get(key);
}

export const count = (number) => whole.format(number);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A fraction as a percentage: whole ones, one digit below ten, and never 0 % or 100 % of what is neither. */
export function share(fraction) {
  if (fraction === null) return "unknown";
  const percent = 100 * fraction;
  if (percent === 0 || percent === 100) return `${percent} %`;
  if (Math.abs(percent) < 0.1) return "< 0.1 %";
  if (percent > 99.9 && percent < 100) return "> 99.9 %";
  return `${digits(0, Math.abs(percent) < 10 || percent > 99 ? 1 : 0).format(percent)} %`;
}

/** The number of an exact decimal string: two digits after the point, or three that say something. */
export function amount(text) {
  const number = Number(text);
  const size = Math.abs(number);
  if (size >= 1000) return digits(0, 0).format(number);
  if (size >= 0.995 || size === 0) return digits(2, 2).format(number);
  const most = Math.min(9, 2 - Math.floor(Math.log10(size)));
  return digits(2, most).format(number);
}

export const money = (currency, text) => `${currency} ${amount(text)}`;

/** An amount that shows all its digits to whoever points at it. */
export const exact = (currency, text) => el("span", { title: `${currency} ${text}` }, money(currency, text));

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 0.01) return `${digits(0, 1).format(seconds * 1000)} ms`;
  if (seconds < 0.9995) return `${digits(0, 0).format(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${digits(2, 2).format(seconds)} s`;
  if (seconds < 99.95) return `${digits(1, 1).format(seconds)} s`;
  return `${digits(0, 0).format(seconds)} s`;
}

/** As short as the marks of an axis have to be. */
export function shortDuration(seconds) {
  if (seconds === 0) return "0";
  return seconds < 0.9995 ? `${digits(0, 2).format(seconds * 1000)} ms` : `${digits(0, 2).format(seconds)} s`;
}

export const time = (seconds) => clock.format(seconds * 1000);

const sameDay = (a, b) => new Date(a * 1000).toDateString() === new Date(b * 1000).toDateString();

/** The stretch of time of one slice. */
export function stretch(start, length) {
  const day = { weekday: "short", day: "numeric", month: "short" };
  if (length >= 86400) return new Intl.DateTimeFormat(locale, { ...day, year: "numeric" }).format(start * 1000);
  const moment = { hour: "2-digit", minute: "2-digit" };
  const now = sameDay(start, Date.now() / 1000) ? moment : { ...day, ...moment };
  const end = new Intl.DateTimeFormat(locale, moment).format((start + length) * 1000);
  return `${new Intl.DateTimeFormat(locale, now).format(start * 1000)} to ${end}`;
}

/** Names in a sentence: "a", "a and b", "a, b and c". */
export const names = (list) => new Intl.ListFormat("en", { type: "conjunction" }).format(list);
