// Elements from data. Text is always set as text: nothing that came from the ledger is ever read as HTML.

export const byId = (id) => document.getElementById(id);

/** `el("td", {class: "none", title: "…"}, "text", child, …)`; an attribute that is null or false is left out. */
export function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key === "width") element.style.width = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A table that scrolls sideways where it must, and that the keyboard can scroll then. */
export function table(caption, headings, rows, { hideCaption = false } = {}) {
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    el("table", {},
      el("caption", { class: hideCaption ? "hidden" : null }, caption),
      el("thead", {}, el("tr", {}, headings.map((heading) => el("th", { scope: "col" }, heading)))),
      el("tbody", {}, rows.map(({ cells: [first, ...rest], className }) =>
        el("tr", { class: className ?? null }, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell)))))));
}

/** Replace what is inside, unless it would stay the same: focus, selection and open details survive a refresh. */
export function fill(parent, ...children) {
  const fresh = el("div", {}, ...children);
  for (const [index, details] of [...parent.querySelectorAll("details")].entries()) {
    const next = fresh.querySelectorAll("details")[index];
    if (next) next.open = details.open;
  }
  if (parent.innerHTML === fresh.innerHTML) return;
  const focused = focusPath(parent);
  parent.replaceChildren(...fresh.childNodes);
  focused?.();
}

function focusPath(parent) {
  const focused = document.activeElement;
  if (!parent.contains(focused) || focused === parent) return null;
  const path = [];
  for (let node = focused; node !== parent; node = node.parentElement) path.unshift([...node.parentElement.children].indexOf(node));
  return () => path.reduce((node, index) => node?.children[index], parent)?.focus({ preventScroll: true });
}
