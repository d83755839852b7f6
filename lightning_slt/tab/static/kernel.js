// The loss kernel of the reading at the cursor: correlations as a heat map, and samples as points of a plane.
import {el, numberText, select, fillSelect} from "./dom.js";
import {card, figure} from "./figure.js";
import {heatImage, palette, sequential} from "./paint.js";
import {extent, linear, padded} from "./scales.js";
import {halves} from "./source.js";

const SIDE = 420;
const MARGIN = 26;

export function kernelView(context) {
  let shown = null; // {order, correlation, labels, clusters, embedding, image}
  let pointed = []; // samples under the pointer
  let colouring = "labels";
  const colourChoice = select("Colour samples by", [["labels", "label"], ["clusters", "cluster"]], "labels", (value) => {
    colouring = value;
    both();
  });
  const heat = figure({label: "Heat map of the loss kernel", height: SIDE, draw: drawHeat, hover: hoverHeat});
  const cloud = figure({label: "Samples placed by the loss kernel", height: SIDE, draw: drawCloud, hover: hoverCloud});
  const legend = el("div", {class: "legend"});
  const view = card({
    name: "kernel", title: "Loss kernel: which samples the network treats alike",
    hint: "Left: correlation of two samples' losses when the weights move a little; red, they rise together, blue, one rises "
      + "where the other falls. Samples of one label stand together, or of one cluster where there are no labels. Right: the same samples, close together where their "
      + "losses move alike; turned to match the reading before.",
    controls: [context.choice("kernel").node, colourChoice],
    content: el("div", {class: "pair"}, heat.node, cloud.node, legend),
    figures: [["heat map", heat], ["embedding", cloud]],
    table: () => tableOf(shown),
  });

  async function update(entry) {
    const {run, monitor, index, component, key} = entry;
    const answer = await context.ask("data/kernel", {run, monitor, index, component, key}, entry.stamp);
    if (!context.current("kernel", entry)) return;
    shown = prepare(answer, shown);
    const about = answer.shown < answer.of ? `${answer.shown} of ${answer.of} samples` : `${answer.of} samples`;
    heat.describe(`Heat map of the loss kernel at step ${entry.step}, ${about}`);
    cloud.describe(`Samples placed by the loss kernel at step ${entry.step}, ${about}`);
    const kinds = [shown.labels && ["labels", "label"], ["clusters", "cluster"]].filter(Boolean);
    fillSelect(colourChoice.querySelector("select"), kinds, colouring);
    colouring = colourChoice.querySelector("select").value;
    view.node.dataset.what = `${run}-step-${entry.step}`;
    both();
  }

  function both() {
    const {theme} = context;
    const {names, colour} = categories(shown?.[colouring] ?? [], theme);
    legend.replaceChildren(...names.slice(0, 24).map((name) => {
      const word = colouring === "clusters" ? `cluster ${name}` : String(name);
      return el("span", {class: "key"}, el("i", {style: {background: colour(name)}}), word);
    }));
    heat.redraw(theme);
    cloud.redraw(theme);
  }

  function square(width) {
    const side = Math.max(Math.min(width, SIDE) - 2 * MARGIN, 10);
    return {left: (width - side) / 2, top: MARGIN, side};
  }

  function drawHeat(p, width, _, theme) {
    if (!shown) return;
    const {left, top, side} = square(width);
    const {order, correlation} = shown;
    const n = order.length;
    if (shown.painted !== theme.dark) {
      shown.image = heatImage(n, n, (i, j) => correlation[order[i] * n + order[j]], theme);
      shown.painted = theme.dark;
    }
    p.image(shown.image, left, top, side, side);
    const {colour} = categories(shown[colouring] ?? [], theme);
    order.forEach((sample, place) => {
      const fill = colour((shown[colouring] ?? [])[sample]);
      p.rect(left - 9, top + (place * side) / n, 6, side / n + 0.5, {fill});
    });
    const text = {fill: theme.soft, anchor: "middle"};
    p.text(left + side / 2, top - 9, `${n} samples, ordered by ${shown.labels ? "label" : "cluster"}`, text);
    p.text(left + side / 2, top + side + 17, "correlation: blue −1, pale 0, red 1", text);
  }

  function hoverHeat(x, y) {
    if (!shown) return null;
    const {left, top, side} = square(heat.node.clientWidth);
    const n = shown.order.length;
    const [i, j] = [Math.floor(((y - top) / side) * n), Math.floor(((x - left) / side) * n)];
    if (i < 0 || j < 0 || i >= n || j >= n) return null;
    const [a, b] = [shown.order[i], shown.order[j]];
    pointed = [a, b];
    const lines = [`${nameOf(a)} and ${nameOf(b)}`, `correlation ${numberText(shown.correlation[a * n + b], 3)}`];
    const at = (k) => ((k + 0.5) * side) / n;
    const mark = (p, theme) => {
      p.line([[left, top + at(i), true], [left + side, top + at(i)]], {stroke: theme.ink, width: 0.7});
      p.line([[left + at(j), top, true], [left + at(j), top + side]], {stroke: theme.ink, width: 0.7});
    };
    return {lines, mark};
  }

  function nameOf(sample) {
    const label = shown.labels?.[sample];
    const name = `sample ${shown.indices?.[sample] ?? sample}`;
    return label === undefined || label === null ? name : `${name} (label ${label})`;
  }

  const places = (width) => {
    const {left, top, side} = square(width);
    const [xs, ys] = [0, 1].map((k) => padded(extent([shown.embedding.map((point) => point[k])])));
    const [x, y] = [linear(...xs, left, left + side), linear(...ys, top + side, top)];
    return shown.embedding.map(([a, b]) => [x(a), y(b)]);
  };

  function drawCloud(p, width, _, theme) {
    if (!shown) return;
    const {left, top, side} = square(width);
    p.rect(left, top, side, side, {stroke: theme.line});
    const {colour} = categories(shown[colouring] ?? [], theme);
    places(width).forEach(([x, y], sample) => {
      const fill = colour((shown[colouring] ?? [])[sample]);
      p.circle(x, y, shown.embedding.length > 300 ? 2.4 : 3.4, {fill, alpha: 0.85, data: {sample}});
    });
    p.text(left + side / 2, top + side + 17, "first two principal components of the kernel", {fill: theme.soft, anchor: "middle"});
  }

  function hoverCloud(x, y) {
    if (!shown) return null;
    let best = {far: 12};
    places(cloud.node.clientWidth).forEach(([px, py], sample) => {
      const far = Math.hypot(px - x, py - y);
      if (far < best.far) best = {far, sample, px, py};
    });
    if (best.sample === undefined) return null;
    const lines = [nameOf(best.sample), `cluster ${shown.clusters[best.sample]}`];
    return {lines, mark: (p, theme) => p.circle(best.px, best.py, 6, {stroke: theme.ink})};
  }

  return {...view, update, kind: "kernel", redraw: both, missing: "This run logged no loss kernel: add LossKernel(probe) to "
    + "the monitor's estimators, e.g. SLTMonitor([LLC(), LossKernel(probe)], every_n_train_steps=500)."};
}

function prepare(answer, before) {
  const [rank, n] = answer.factor.shape;
  const factor = halves(answer.factor.base64);
  const correlation = correlations(factor, n, rank);
  const embedding = matched(answer.embedding, before?.embedding);
  return {...answer, correlation, embedding, image: null, painted: null};
}

// R = Fᵀ F of a factor F [rank, sample] whose columns have length 1.
export function correlations(factor, n, rank) {
  const result = new Float32Array(n * n);
  for (let k = 0; k < rank; k++) {
    const row = factor.subarray(k * n, (k + 1) * n);
    for (let i = 0; i < n; i++) {
      for (let j = 0, to = i * n; j < n; j++) result[to + j] += row[i] * row[j];
    }
  }
  return result;
}

// Principal components have no sign and near-equal ones no direction: the rotation or reflection Q of points X that
// minimizes ‖X Q − Y‖ to those before, Y. Of M = Xᵀ Y the best rotation has trace |(a + d, b − c)|, the best reflection
// |(a − d, b + c)|.
export function matched(points, before) {
  if (!before || before.length !== points.length) return points;
  let [a, b, c, d] = [0, 0, 0, 0];
  points.forEach(([x, y], i) => {
    const [u, v] = before[i];
    [a, b, c, d] = [a + x * u, b + x * v, c + y * u, d + y * v];
  });
  const [turn, mirror] = [Math.hypot(a + d, b - c), Math.hypot(a - d, b + c)];
  if (!(Math.max(turn, mirror) > 0)) return points;
  const reflects = mirror > turn;
  const [cos, sin] = reflects ? [(a - d) / mirror, (b + c) / mirror] : [(a + d) / turn, (b - c) / turn];
  return points.map(([x, y]) => (reflects ? [x * cos + y * sin, x * sin - y * cos] : [x * cos - y * sin, x * sin + y * cos]));
}

export function categories(values, theme) {
  const names = [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), undefined, {numeric: true}));
  const colours = palette(theme.dark).series;
  const place = new Map(names.map((name, k) => [name, k]));
  const colour = (name) => {
    if (!place.has(name)) return theme.soft;
    if (names.length <= colours.length) return colours[place.get(name)];
    return `hsl(${Math.round((360 * place.get(name)) / names.length)} 65% ${theme.dark ? 66 : 45}%)`;
  };
  return {names, colour};
}

function tableOf(shown) {
  const n = shown.order.length;
  const name = (sample) => shown.indices?.[sample] ?? sample;
  const head = ["sample", "label", "cluster", "x", "y", ...shown.order.map((sample) => `R with ${name(sample)}`)];
  const rows = shown.order.map((sample) => [
    name(sample), shown.labels?.[sample] ?? null, shown.clusters[sample], ...shown.embedding[sample],
    ...shown.order.map((other) => Number(shown.correlation[sample * n + other].toPrecision(4))),
  ]);
  return [head, ...rows];
}
