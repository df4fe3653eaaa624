// The tensors of a checkpoint as a treemap by module; see catalog_page.py for the data.

const names = new Names(data.names);
const objects = new Names(data.objects);
const holders = sums(data.holders);
const firsts = sums(data.firsts);
const places = sums([0, ...(data.counts.length ? data.counts : new Array(names.length).fill(1))]);
const WIDTH = 1000, HEIGHT = 560, MOST = 250;

// The tensors whose names begin alike, up to a separator; those below are found when they are asked for, because a
// model of experts has tens of thousands of modules.
class Module {
  constructor(name, parent, members, isTensor) {
    this.name = name;
    this.parent = parent;
    this.members = members;
    this.tensor = isTensor ? members[0] : -1;
    this.length = parent ? parent.length + name.length : 0;
    this.nbytes = 0;
    for (const tensor of members) this.nbytes += data.kinds[data.of[tensor]][2];
  }

  get count() {
    return this.members.length;
  }

  get path() {
    return this.parent ? [...this.parent.path, this] : [];
  }

  get below() {
    if (this.found) return this.found;
    const parts = new Map();
    if (this.tensor < 0) {
      for (const tensor of this.members) {
        const name = whole[tensor];
        let end = this.length;
        while (end < name.length && name[end] !== "." && name[end] !== "/") end++;
        const part = name.slice(this.length, end + 1);
        if (!parts.has(part)) parts.set(part, []);
        parts.get(part).push(tensor);
      }
    }
    this.found = [...parts].map(([part, members]) => new Module(part, this, members, this.length + part.length === whole[members[0]].length));
    return this.found;
  }
}

// Rectangles of about equal sides, row by row (Bruls, Huizing, van Wijk: Squarified treemaps, 2000).
function squarify(sizes, x, y, width, height) {
  const found = [];
  const total = sizes.reduce((a, b) => a + b, 0) || 1;
  const areas = sizes.map((size) => (size / total) * width * height);
  let from = 0;
  while (from < areas.length) {
    const side = Math.min(width, height) || 1e-9;
    let to = from + 1, sum = areas[from];
    const worst = (smallest, largest, all) => Math.max((side * side * largest) / (all * all), (all * all) / (side * side * smallest || 1e-9));
    while (to < areas.length && worst(areas[to], areas[from], sum + areas[to]) <= worst(areas[to - 1], areas[from], sum)) sum += areas[to++];
    const depth = sum / side;
    let along = 0;
    for (; from < to; from++) {
      const length = areas[from] / (depth || 1e-9);
      found.push(width >= height ? [x, y + along, depth, length] : [x + along, y, length, depth]);
      along += length;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
  }
  return found;
}

const bySize = (node) => [...node.below].sort((a, b) => b.nbytes - a.nbytes);

// Modules of one name have one colour wherever they are; layers and experts go round.
function colourOf(name) {
  const number = /^\d+/.exec(name);
  if (number) return `o${Number(number[0]) % COLOURS}`;
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  return `o${hash % COLOURS}`;
}

const label = (node) => `${node.path.map((each) => each.name).join("").replace(/[./]$/, "") || "all tensors"}: ${plural(node.count, "tensor")}, ${inBytes(node.nbytes)}`;

function draw(node) {
  while (node.below.length === 1) [node] = node.below;
  drawPath(node);
  const children = bySize(node).slice(0, MOST);
  const picture = svg("svg", { class: "picture", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, role: "group", "aria-label": label(node) });
  const areas = squarify(children.map((child) => child.nbytes), 0, 0, WIDTH, HEIGHT);
  children.forEach((child, index) => picture.append(cell(child, areas[index], index)));
  roving(picture, ".cell", (key) => ({ ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 })[key]);
  const left = node.below.length - children.length;
  at("treemap").replaceChildren(picture, left > 0 ? el("p", { class: "quiet" }, `and ${left} smaller ones`) : "");
  if (node.tensor >= 0) showTensor(node.tensor);
}

function cell(child, [x, y, width, height], index) {
  const open = () => (child.tensor < 0 ? draw(child) : showTensor(child.tensor));
  const group = svg("g", {
    class: "cell", role: "button", tabindex: index ? -1 : 0, "aria-label": label(child), onclick: open,
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); focusFirst(); } },
  }, svg("title", {}, label(child)), svg("rect", { class: colourOf(child.name), x, y, width, height }));
  nest(group, child, x, y, width, height, 3);
  const text = child.name.replace(/[./]$/, "");
  if (height > 18 && text.length * 7.4 + 8 < width) group.append(svg("text", { x: x + 5, y: y + 15 }, text));
  return group;
}

// The modules within one, a few levels deep, where there is room for them.
function nest(group, node, x, y, width, height, depth) {
  if (!depth || width < 40 || height < 40) return;
  const inner = bySize(node).slice(0, 60);
  if (!inner.length) return;
  squarify(inner.map((each) => each.nbytes), x + 3, y + 20, width - 6, height - 23).forEach(([left, top, wide, high], number) => {
    const each = inner[number];
    group.append(svg("rect", { class: colourOf(each.name), x: left, y: top, width: wide, height: high }));
    const text = each.name.replace(/[./]$/, "");
    if (high > 18 && text.length * 7.4 + 8 < wide) group.append(svg("text", { x: left + 5, y: top + 15 }, text));
    nest(group, each, left, top, wide, high, depth - 1);
  });
}

const focusFirst = () => at("treemap").querySelector(".cell")?.focus();

function drawPath(node) {
  const steps = [["all", root], ...node.path.map((each) => [each.name, each])];
  at("path").replaceChildren(...steps.map(([text, step]) => el("button", {
    type: "button", "aria-current": step === node ? "location" : undefined, onclick: () => { draw(step); },
  }, text)), el("span", { class: "quiet" }, `${plural(node.count, "tensor")}, ${inBytes(node.nbytes)}`));
}

function showTensor(tensor) {
  const [dtype, shape, nbytes] = data.kinds[data.of[tensor]];
  const rows = [];
  for (let place = places[tensor]; place < places[tensor + 1] && rows.length < 200; place++) {
    const corners = data.boxes[place] || [...shape.map(() => 0), ...shape];
    const rank = corners.length / 2;
    const box = corners.slice(0, rank).map((start, axis) => `${start}:${corners[rank + axis]}`).join(", ");
    const copies = data.copies[place] > 1 ? ` and ${data.copies[place] - 1} equal` : "";
    rows.push([`[${box}]`, holders[place] >= 0 ? `${objects.get(holders[place])}${copies}` : "", `from ${firsts[place]}`]);
  }
  at("tensor").replaceChildren(el("h3", {}, el("span", { class: "name" }, names.get(tensor))),
    facts([["type, shape", `${dtype} [${shape.join(", ")}], ${inBytes(nbytes)}`],
      ["stored in", plural(places[tensor + 1] - places[tensor], "piece") + (data.isWhole ? "" : "; the first is told")]]),
    table(["box", "object", "bytes"], rows));
}

function drawObjects() {
  const counts = new Array(objects.length).fill(0);
  holders.forEach((holder) => { if (holder >= 0) counts[holder] += 1; });
  const all = data.sizes.map((nbytes, index) => [objects.get(index), counts[index], inBytes(nbytes)]);
  const titles = ["object", "pieces", "size"];
  at("objects").append(table(titles, all.slice(0, 100)));
  if (all.length <= 100) return;
  const rest = el("button", { type: "button", onclick: () => rest.replaceWith(table(titles, all.slice(100, 5100))) }, `Show ${Math.min(5000, all.length - 100)} more`);
  at("objects").append(rest);
}

const whole = Array.from({ length: names.length }, (_, tensor) => names.get(tensor));
const root = new Module("", null, [...whole.keys()], false);
at("find").addEventListener("input", () => {
  const text = at("find").value;
  const found = text ? names.matching(text, 30) : [];
  at("found").replaceChildren(...found.map((tensor) => el("option", { value: names.get(tensor) })));
  const exact = found.find((tensor) => names.get(tensor) === text);
  if (exact !== undefined) showTensor(exact);
});
draw(root);
drawObjects();
