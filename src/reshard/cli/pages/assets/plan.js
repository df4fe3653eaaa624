// Which rank owns which box of every tensor, and the stored bytes that fill it; see plan_data.py for the data.

const names = new Names(data.names);
const keys = new Names(data.keys);
const sourceNames = new Names(data.sources.names);
const objects = new Names(data.sources.objects);
const staged = new Set(data.sources.staged);
const holders = sums(data.sources.holders);
const firsts = sums(data.sources.firsts);
const places = sums([0, ...(data.sources.counts.length ? data.sources.counts : new Array(sourceNames.length).fill(1))]);
const FEW = 40;
const ROWS = 150;

// Columns are ranks, or objects where the target has none.
const hasRanks = data.deviceCount > 0;
const columns = data.outputs.map((output, index) => ({
  output, index, rank: data.ranks[index], stage: hasRanks ? Math.floor(data.ranks[index] / data.deviceCount) : 0,
}));
const copied = data.copied.map(sums);
const shareOf = new Map(); // by output: its share, and its device in there
const shares = data.shares.map((share, number) => {
  const outputs = sums(share.outputs);
  outputs.forEach((output, index) => shareOf.set(output, { share: number, device: share.devices[index] }));
  const slots = new Map();
  let end = 0;
  sums(share.tensors).forEach((tensor, slot) => {
    const start = end + share.gaps[slot];
    end = start + share.lengths[slot];
    slots.set(tensor, { start, stop: end });
  });
  return { outputs, slots };
});
const used = sums(data.sources.used);
const madeOf = new Map();
let usedUpTo = 0;
sums(data.sources.tensors).forEach((tensor, index) => {
  madeOf.set(tensor, [usedUpTo, (usedUpTo += data.sources.made[index])]);
});

const rowOf = new Map();
const rows = data.rows.map((row, number) => {
  const members = sums(row.members);
  members.forEach((tensor) => rowOf.set(tensor, number));
  const cutOf = new Map();
  for (const [share, cut] of row.cuts) {
    if (!cutOf.has(share)) cutOf.set(share, []);
    cutOf.get(share).push(cut);
  }
  const fills = new Map((row.fills || []).map(([cut, piece, found]) => [`${cut}/${piece}`, found]));
  return { ...row, number, members, cutOf, fills, isTold: row.fills !== null, name: names.folded(members) };
});

// Pieces.

const layoutPieces = (row, cut) => {
  const { pieces } = data.layouts[cut];
  return row.extent.map((_, axis) => pieces[axis] || 1);
};

function pieceOf(column, cut) {
  return cut < 0 ? -1 - cut : data.layouts[cut].of[shareOf.get(column.output).device] || 0;
}

function boxOf(row, cut, piece) {
  if (cut < 0) {
    const corners = row.boxes[-1 - cut];
    const half = corners.length / 2;
    return { start: corners.slice(0, half), stop: corners.slice(half) };
  }
  const pieces = layoutPieces(row, cut);
  const start = [], stop = [];
  let rest = piece;
  for (let axis = row.extent.length - 1; axis >= 0; axis--) {
    const place = rest % pieces[axis];
    rest = Math.floor(rest / pieces[axis]);
    const split = axis === 0 && data.layouts[cut].rows && data.layouts[cut].rows.length;
    const size = row.extent[axis] / pieces[axis];
    start.unshift(split ? data.layouts[cut].rows[place][0] : place * size);
    stop.unshift(split ? data.layouts[cut].rows[place][1] : (place + 1) * size);
  }
  return { start, stop };
}

// The distinct boxes of a row, each with the columns that hold it.
function boxesOf(row, tensor) {
  const found = new Map();
  for (const column of columns) {
    const { share } = shareOf.get(column.output);
    if (shares[share].slots.size && tensor !== undefined && madeOf.has(tensor) && !shares[share].slots.has(tensor)) continue;
    for (const cut of row.cutOf.get(share) || []) {
      const piece = pieceOf(column, cut);
      const box = boxOf(row, cut, piece);
      const key = `${box.start}/${box.stop}`;
      if (!found.has(key)) found.set(key, { box, cut, piece: cut < 0 ? 0 : piece, columns: [] });
      found.get(key).columns.push(column);
    }
  }
  const order = (a, b) => {
    const axis = a.box.start.findIndex((start, index) => start !== b.box.start[index]);
    return axis < 0 ? 0 : a.box.start[axis] - b.box.start[axis];
  };
  return [...found.values()].sort(order);
}

const isWhole = (row, cut) => cut >= 0 && product(layoutPieces(row, cut)) === 1;
const colourOf = (row, cut, piece) => (isWhole(row, cut) ? "whole" : `o${piece % COLOURS}`);

function division(row) {
  const told = [...new Set([...row.cutOf.values()].flat())].map((cut) => {
    if (cut < 0) return "";
    const cuts = layoutPieces(row, cut).map((count, axis) => (count > 1 ? `axis ${axis} in ${count}` : "")).filter(Boolean);
    return cuts.join(", ") || "not cut";
  });
  return [...new Set(told.filter(Boolean))].join("; or ") || plural(row.boxes.length, "box").replace("boxs", "boxes");
}

// The map.

function shownColumns() {
  const chosen = at("stage").value;
  return chosen === "all" ? columns : columns.filter((column) => `${column.stage}` === chosen);
}

function strip(row, shown) {
  const paths = new Map();
  shown.forEach((column, x) => {
    const cuts = row.cutOf.get(shareOf.get(column.output).share);
    if (!cuts) return;
    const colour = colourOf(row, cuts[0], pieceOf(column, cuts[0]));
    paths.set(colour, `${paths.get(colour) || ""}M${x} 0h1v1h-1z`);
  });
  let edges = "";
  shown.forEach((column, x) => {
    if (x && column.stage !== shown[x - 1].stage) edges += `M${x} 0v1`;
  });
  const picture = svg("svg", { class: "strip", viewBox: `0 0 ${shown.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...[...paths].map(([colour, d]) => svg("path", { class: colour, d })),
    edges ? svg("path", { class: "cut", d: edges, "stroke-width": 2, "vector-effect": "non-scaling-stroke", fill: "none" }) : null);
  picture.style.width = `max(100%, ${2 * shown.length}px)`;
  return picture;
}

function stagesText(holding) {
  const found = [...new Set(holding.map((column) => column.stage))].sort((a, b) => a - b);
  return `stage${found.length === 1 ? "" : "s"} ${spans(found)}`;
}

function drawMap(from = 0) {
  const shown = shownColumns();
  if (!from) at("map").replaceChildren();
  if (!from && hasRanks && data.isDrawn) at("map").append(stageLabels(shown));
  for (const row of rows.slice(from, from + ROWS)) {
    const holding = columns.filter((column) => row.cutOf.has(shareOf.get(column.output).share));
    const inStages = hasRanks ? `, ${stagesText(holding)}` : "";
    const alike = row.members.length > 1 ? ` (${row.members.length} alike)` : "";
    at("map").append(el("button", {
      type: "button", class: "row", "aria-pressed": "false", tabindex: row.number ? -1 : 0, "data-row": row.number,
      onclick: () => choose(row.members[0]),
    }, el("span", { class: "label" }, el("span", { class: "name" }, row.name),
      el("span", { class: "quiet" }, `${alike}  ${row.dtype} [${row.shape.join(", ")}], ${division(row)}${inStages}`)),
    data.isDrawn ? strip(row, shown) : null));
  }
  at("more").hidden = from + ROWS >= rows.length;
  at("more").onclick = () => drawMap(from + ROWS);
}

function stageLabels(shown) {
  const stages = [...new Set(shown.map((column) => column.stage))];
  const labels = el("div", { class: "stages", "aria-hidden": "true" }, ...stages.map((stage) => {
    const ranks = shown.filter((column) => column.stage === stage).map((column) => column.rank);
    return el("span", { title: `stage ${stage}: ranks ${spans(ranks)}` }, stages.length > 1 ? `${stage}` : `stage ${stage}: ranks ${spans(ranks)}`);
  }));
  labels.style.minWidth = `${2 * shown.length}px`;
  return labels;
}

// One tensor.

function choose(tensor) {
  const row = rows[rowOf.get(tensor)];
  for (const button of document.querySelectorAll(".row")) {
    button.setAttribute("aria-pressed", `${Number(button.dataset.row) === row.number}`);
  }
  const members = row.members.slice(0, 500);
  if (!members.includes(tensor)) members.push(tensor);
  at("member").replaceChildren(...members.map((each) => el("option", { value: each }, names.get(each))));
  at("member").value = tensor;
  const boxes = boxesOf(row, tensor);
  const pieces = boxes.length === 1 ? "whole on every rank that holds it" : `${boxes.length} distinct boxes, ${division(row)}`;
  const nbytes = product(row.extent) * row.itemsize;
  const made = sourcesOf(tensor, row);
  at("facts").replaceChildren(facts([
    ["tensor", el("span", { class: "name" }, names.get(tensor))],
    ["type, shape", `${row.dtype} [${row.shape.join(", ")}], ${inBytes(nbytes)}`],
    ["cut", hasRanks ? pieces : plural(boxes.length, "distinct box").replace("boxs", "boxes")],
    ["made of", made],
  ]));
  drawGrid(row, tensor, boxes);
}

function sourcesOf(tensor) {
  if (!madeOf.has(tensor)) return "told for the first of those alike only: the model is large";
  const [from, to] = madeOf.get(tensor);
  const some = used.slice(from, Math.min(to, from + 3)).map((entry) => sourceNames.get(entry));
  return `${some.join(", ")}${to - from > 3 ? ` and ${to - from - 3} more` : ""}`;
}

function axesOf(row, boxes) {
  const count = row.extent.map((_, axis) => new Set(boxes.map(({ box }) => box.start[axis])).size);
  const first = count.findIndex((each) => each > 1);
  return { down: first >= 0 && (first < count.length - 1) ? first : -1, count };
}

function drawGrid(row, tensor, boxes) {
  const { down, count } = axesOf(row, boxes);
  const across = count.map((_, axis) => axis).filter((axis) => axis !== down && count[axis] > 1);
  const line = (box) => (down < 0 ? 0 : box.start[down]);
  const place = (box) => across.map((axis) => box.start[axis]).join(",");
  const ys = [...new Set(boxes.map(({ box }) => line(box)))].sort((a, b) => a - b);
  const xs = [...new Set(boxes.map(({ box }) => place(box)))];
  const width = Math.max(4, Math.min(xs.length === 1 ? 360 : 120, Math.floor(1200 / xs.length)));
  const height = Math.max(8, Math.min(44, Math.floor(900 / ys.length)));
  const left = 74, top = 22;
  const picture = svg("svg", {
    class: "picture", viewBox: `0 0 ${left + xs.length * width + 2} ${top + ys.length * height + 2}`,
    width: left + xs.length * width + 2, role: "group", "aria-label": `Boxes of ${names.get(tensor)}: ${ys.length} down, ${xs.length} across`,
  });
  picture.append(svg("text", { x: left, y: 14 }, across.length ? `axis ${across.join(", ")}` : ""));
  ys.forEach((start, y) => {
    if (down >= 0 && (y * height) % Math.max(height, 16) < height) picture.append(svg("text", { x: 2, y: top + y * height + 12 }, `${start}`));
  });
  boxes.forEach((each, index) => {
    const x = left + xs.indexOf(place(each.box)) * width, y = top + ys.indexOf(line(each.box)) * height;
    const ranks = each.columns.map((column) => (hasRanks ? column.rank : column.index));
    const label = `${hasRanks ? "rank" : "object"} ${spans(ranks)}`;
    const chars = Math.floor((width - 8) / 7.3);
    const text = label.length <= chars ? label : spans(ranks).length <= chars ? spans(ranks) : "";
    picture.append(svg("g", {
      class: "cell", role: "button", tabindex: index ? -1 : 0, "aria-pressed": "false", "aria-label": `${label}, box ${boxText(each.box)}`,
      onclick: (event) => showBox(row, tensor, each, event.currentTarget),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); showBox(row, tensor, each, event.currentTarget); } },
    }, svg("title", {}, `${label}: ${boxText(each.box)}`),
    svg("rect", { class: colourOf(row, each.cut, each.cut < 0 ? -1 - each.cut : each.piece), x, y, width, height }),
    text && height >= 14 ? svg("text", { x: x + 5, y: y + height / 2 + 4 }, text) : null));
  });
  roving(picture, ".cell", (key) => ({ ArrowRight: 1, ArrowLeft: -1, ArrowDown: xs.length, ArrowUp: -xs.length })[key]);
  const scroll = el("div", { class: "scroll" }, picture);
  at("grid").replaceChildren(scroll);
  showBox(row, tensor, boxes[0], picture.querySelector(".cell"));
}

const boxText = (box) => `[${box.start.map((start, axis) => `${start}:${box.stop[axis]}`).join(", ")}]`;

function showBox(row, tensor, each, cell) {
  if (!each) { at("box").replaceChildren("No rank that is written holds it."); return; }
  for (const other of document.querySelectorAll(".cell")) other.setAttribute("aria-pressed", `${other === cell}`);
  const shape = each.box.start.map((start, axis) => each.box.stop[axis] - start);
  const ranks = each.columns.map((column) => column.rank);
  at("box").replaceChildren(el("h3", {}, `Box ${boxText(each.box)}`), facts([
    [hasRanks ? "ranks" : "objects", hasRanks ? `${spans(ranks)} (${plural(ranks.length, "rank")})` : plural(each.columns.length, "object")],
    ["shape", `[${shape.join(", ")}], ${inBytes(product(shape) * row.itemsize)}`],
    ["written to", writtenText(each, tensor)],
    ["filled", filledText(row, each, tensor)],
  ]), el("h3", {}, "From the source"), sourceTable(row, each, tensor));
}

function spanIn(column, tensor) {
  const { share } = shareOf.get(column.output);
  return shares[share].slots.get(tensor);
}

function writtenText(each, tensor) {
  const shown = each.columns.slice(0, 4).map((column) => {
    const span = spanIn(column, tensor);
    return `${keys.get(column.index)}${span ? ` [${span.start}, ${span.stop})` : ""}`;
  });
  const more = each.columns.length - shown.length;
  return shown.join("; ") + (more > 0 ? `; and ${more} more` : "");
}

function filledText(row, each, tensor) {
  const column = each.columns[0];
  const span = spanIn(column, tensor);
  const fills = row.fills.get(`${each.cut}/${each.piece}`) || [];
  const kernels = [...new Set(fills.map((fill) => fill[6]).filter(Boolean))];
  const told = [];
  if (span && span.stop > span.start) {
    const runs = copied[column.output] || [];
    let nbytes = 0;
    for (let i = 0; i < runs.length; i += 2) nbytes += Math.max(0, Math.min(span.stop, runs[i + 1]) - Math.max(span.start, runs[i]));
    const share = (100 * nbytes) / (span.stop - span.start);
    if (nbytes) told.push(`copied by the store ${share.toFixed(1)}%`);
    if (share < 100) told.push(`streamed ${(100 - share).toFixed(1)}%`);
  } else if (!copied.some((runs) => runs.length)) told.push("streamed");
  if (kernels.length) told.push(`computed: ${kernels.join(", ")}`);
  if (addresses(tensor, fills).some((one) => staged.has(one.object))) told.push("staged: read from chunks that the first pass writes");
  return told.join("; ") || "as the outputs are";
}

function addresses(tensor, fills) {
  if (!madeOf.has(tensor)) return [];
  const [from] = madeOf.get(tensor);
  return fills.map(([slot, place, first, length, run, count, kernel]) => {
    const entry = used[from + slot];
    const at = places[entry] + place;
    const start = firsts[at] + first;
    return { entry, object: holders[at], start, stop: start + length, nbytes: run * count, count, kernel };
  });
}

function sourceTable(row, each, tensor) {
  const fills = row.fills.get(`${each.cut}/${each.piece}`);
  if (!fills || !madeOf.has(tensor)) {
    return el("p", { class: "note" }, "There is too much to tell in a page; ", el("code", {}, "reshard plan --explain"), " shows it for one tensor or object.");
  }
  const found = addresses(tensor, fills);
  if (!found.length) return el("p", {}, "Nothing: it has no elements.");
  const line = (one) => [objects.get(one.object), sourceNames.get(one.entry), `[${one.start}, ${one.stop})`,
    `${inBytes(one.nbytes)}${one.count > 1 ? ` in ${one.count} runs` : ""}`, one.kernel || "moved"];
  const titles = ["object", "tensor", "bytes", "used", "how"];
  const shown = table(titles, found.slice(0, FEW).map(line));
  if (found.length <= FEW) return shown;
  const rest = el("button", { type: "button", onclick: () => rest.replaceWith(table(titles, found.slice(FEW).map(line))) }, `Show ${found.length - FEW} more`);
  return el("div", {}, shown, rest);
}

// Begin.

const stages = [...new Set(columns.map((column) => column.stage))];
at("stage").append(el("option", { value: "all" }, hasRanks ? "all" : "all objects"),
  ...(hasRanks ? stages.map((stage) => el("option", { value: stage }, `stage ${stage}`)) : []));
at("stage").addEventListener("change", () => { drawMap(); choose(Number(at("member").value)); });
at("member").addEventListener("change", () => choose(Number(at("member").value)));
at("find").addEventListener("input", () => {
  const text = at("find").value;
  const found = text ? names.matching(text, 30).filter((tensor) => rowOf.has(tensor)) : [];
  at("found").replaceChildren(...found.map((tensor) => el("option", { value: names.get(tensor) })));
  const exact = found.find((tensor) => names.get(tensor) === text);
  if (exact !== undefined) choose(exact);
});
at("told").textContent = `${plural(names.length, "tensor")} in ${plural(rows.length, "kind")}; ${
  hasRanks ? `${plural(columns.length, "rank")} in ${plural(stages.length, "stage")}` : plural(keys.length, "object")
}. Each line is a kind of tensors that are named, made and cut alike; equal colours in it are equal pieces, grey is the whole tensor.${
  data.isDrawn ? "" : " There are too many objects to draw."}${data.isWhole ? "" : " Addresses are told for the first tensor of each kind."}`;
roving(at("map"), ".row", (key) => ({ ArrowDown: 1, ArrowUp: -1, ArrowRight: 0, ArrowLeft: 0 })[key]);
drawMap();
if (rows.length) choose(rows[0].members[0]);
