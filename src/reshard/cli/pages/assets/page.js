// What all pages share: data, elements, names and numbers. Texts of data only ever become text nodes and attributes.

const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 12;
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Undoes `differences` of packing.py.
function sums(numbers) {
  let total = 0;
  return numbers.map((number) => (total += number));
}

// Names by template: only those that are asked for are put together.
class Names {
  constructor(column) {
    this.templates = column.templates;
    this.of = column.of;
    this.numbers = column.numbers;
    this.starts = new Uint32Array(column.of.length + 1);
    column.of.forEach((template, index) => {
      this.starts[index + 1] = this.starts[index] + column.templates[template].length - 1;
    });
  }

  get length() {
    return this.of.length;
  }

  get(index) {
    const template = this.templates[this.of[index]];
    let name = template[0];
    for (let hole = 1; hole < template.length; hole++) name += this.numbers[this.starts[index] + hole - 1] + template[hole];
    return name;
  }

  // Some names of one template as one, such as model.layers.{0..29}.w.
  folded(indices) {
    const [head, ...rest] = this.templates[this.of[indices[0]]];
    return head + rest.map((text, hole) => {
      const numbers = [...new Set(indices.map((index) => this.numbers[this.starts[index] + hole]))];
      numbers.sort((a, b) => a - b);
      return (numbers.length === 1 ? numbers[0] : `{${spans(numbers, "..")}}`) + text;
    }).join("");
  }

  // The first few that hold a text, or are it.
  matching(text, most) {
    const found = [];
    for (let index = 0; index < this.length && found.length < most; index++) {
      if (this.get(index).includes(text)) found.push(index);
    }
    return found;
  }
}

function spans(numbers, separator = "-") {
  const found = [];
  for (const number of numbers) {
    const last = found[found.length - 1];
    if (last && number === last[1] + 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([a, b]) => (a === b ? a : b > a + 1 ? `${a}${separator}${b}` : `${a},${b}`)).join(",");
}

function inBytes(count) {
  let rest = count;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1024) return `${unit === "B" ? rest : rest.toFixed(1)} ${unit}`;
    rest /= 1024;
  }
  return `${rest.toFixed(2)} TiB`;
}

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function table(titles, rows) {
  const cells = (row, tag) => row.map((cell) => el(tag, { class: typeof cell === "number" ? "count" : undefined }, `${cell}`));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": titles.join(", ") },
    el("table", {}, el("thead", {}, el("tr", {}, ...cells(titles, "th"))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row, "td"))))));
}

function facts(pairs) {
  return el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

// Arrow keys move between elements of which one is in the order of tabs; `step` says how far each key goes.
function roving(container, selector, step) {
  container.addEventListener("keydown", (event) => {
    const items = [...container.querySelectorAll(selector)];
    const here = items.indexOf(document.activeElement);
    const by = step(event.key);
    if (here < 0 || (!by && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    const there = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : here + by;
    const next = items[Math.max(0, Math.min(items.length - 1, there))];
    items[here].setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  });
}
