// Nodes are created once and changed in place, so that the focus and a screen reader's position stay.
const at = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Text in which backquotes enclose commands.
function sayWithCode(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  node.replaceChildren(...text.split("`").map((piece, index) => index % 2 ? el("code", {}, piece) : piece));
}

function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// A node that moves keeps the focus.
function move(parent, node, place) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  parent.insertBefore(node, place);
  focused?.focus({ preventScroll: true });
}

// Keeps one child per item, identified by its key: creates new ones, changes existing ones and removes the others.
function each(parent, items, key, make, change) {
  const old = new Map();
  for (const node of [...parent.children]) {
    // Two items of one key would leave a node behind at each change.
    old.get(node.dataset.key)?.remove();
    old.set(node.dataset.key, node);
  }
  let before = null;
  for (const item of items) {
    const name = String(key(item));
    let node = old.get(name);
    old.delete(name);
    if (!node) {
      node = make(item);
      node.dataset.key = name;
    }
    change?.(node, item);
    const place = before ? before.nextSibling : parent.firstChild;
    if (place !== node) move(parent, node, place);
    before = node;
  }
  for (const node of old.values()) node.remove();
}

const part = (node, name) => node.querySelector(`[data-part="${name}"]`);
const plural = (count, word) => `${count} ${word}${String(count) === "1" ? "" : "s"}`;

function number(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 ? value.toFixed(0) : value.toFixed(1).replace(/\.0$/, "");
}

function time(ms) {
  if (ms == null) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  const short = (value) => value.toFixed(value < 9.95 ? 1 : 0).replace(/\.0$/, "");
  if (ms < 999.5) return `${short(ms)} ms`;
  if (ms < 59_500) return `${short(ms / 1000)} s`;
  const two = (whole, unit, rest, less) => rest ? `${whole} ${unit} ${rest} ${less}` : `${whole} ${unit}`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return two(Math.floor(seconds / 60), "min", seconds % 60, "s");
  const hours = Math.floor(ms / 3_600_000);
  return hours < 48 ? two(hours, "h", Math.floor((ms % 3_600_000) / 60_000), "min") : `${Math.floor(hours / 24)} days`;
}

const bytes = (count) => count == null ? "–" : `${(count / (1 << 20)).toFixed(0)} MiB`;
const clock = (unixMs) => new Date(unixMs).toLocaleTimeString(undefined, { hour12: false });
