// Words and numbers, and elements: text only ever becomes text.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  const node = svg(
    "svg",
    { class: "icon", "aria-hidden": "true", focusable: "false" },
    svg("use", { href: `#${name}` }),
  );
  return node;
}

// JSON has no NaN: the journal writes such numbers as words.
export const number = (value) =>
  typeof value === "number" ? value : value === null || value === undefined ? NaN : Number(value);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function loss(value) {
  if (!isNumber(value)) return value === undefined || value === null ? "–" : String(value);
  const size = Math.abs(value);
  return size >= 100
    ? value.toFixed(1)
    : size >= 10
      ? value.toFixed(2)
      : size >= 0.01 || size === 0
        ? value.toFixed(4)
        : value.toExponential(2);
}

export const percent = (share, digits = 1) => (isNumber(share) ? `${(100 * share).toFixed(digits)}\u202f%` : "–");

export const signedPercent = (share, digits = 1) =>
  isNumber(share) ? `${share > 0 ? "+" : share < 0 ? "−" : ""}${Math.abs(100 * share).toFixed(digits)}\u202f%` : "–";

const UNITS = ["", "k", "M", "G", "T", "P", "E"];

export function count(value) {
  if (!isNumber(value)) return "–";
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return unit === 0 ? String(Math.round(value)) : `${value.toPrecision(3)}${UNITS[unit]}`;
}

export function seconds(value) {
  if (!isNumber(value)) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function small(value) {
  if (!isNumber(value)) return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2) : value.toPrecision(3);
}

export const words = (name) => String(name).replaceAll("_", " ");

export const short = (id) => (id && id.length > 20 ? `${id.slice(0, 15)}…` : (id ?? ""));

export const clock = (iso) => {
  const at = new Date(iso);
  return Number.isNaN(at.getTime())
    ? ""
    : at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
};

export const day = (iso) => {
  const at = new Date(iso);
  return Number.isNaN(at.getTime())
    ? ""
    : at.toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });
};

export const plain = (n) => n.toLocaleString("en");

export const plural = (n, one, many = `${one}s`) => `${plain(n)} ${n === 1 ? one : many}`;

export const STATES = {
  DORMANT: "dormant",
  GERMINATED: "germinated",
  TRAINING: "training",
  BLENDING: "blending",
  HOLDING: "holding",
  FOSSILIZED: "fossilized",
  CULLED: "culled",
  EMBARGOED: "embargoed",
  ERROR_RECOVERY: "error recovery",
};

// A colour of the style sheet for what is drawn on a canvas; looked up once until the colours change.
const colours = new Map();

export function colour(name) {
  if (!colours.has(name))
    colours.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(name);
}

export const coloursChanged = () => colours.clear();

// Replace the children of a node only when what they say has changed: focus and selection stay.
export function redraw(node, key, build) {
  if (node.dataset.key === key) return false;
  node.dataset.key = key;
  node.replaceChildren(...[build()].flat());
  return true;
}
