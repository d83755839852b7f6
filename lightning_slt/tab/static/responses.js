// Responses (susceptibilities): how each component's loss answers to each sample or token, and the modes of that matrix.
import {el, numberText, select, fillSelect} from "./dom.js";
import {card, figure} from "./figure.js";
import {heatImage} from "./paint.js";

const TALL = 400;

export function responsesView(context) {
  let shown = null;
  let mode = 0;
  const modeChoice = select("Mode", [[0, "1"]], 0, (value) => {
    mode = Number(value);
    draw();
  });
  const map = figure({label: "Response matrix", height: TALL, draw: drawMap, hover: hoverMap});
  const bars = figure({label: "Mode of the response matrix", height: TALL, draw: drawBars});
  const view = card({
    name: "responses", title: "Responses: what each component works for",
    hint: "Each row is a sample or token, each column a component, scaled to be comparable. Blue: the component favours this continuation; red: it "
      + "works against it. A mode is a pattern that many rows and components share; its bars show who takes part.",
    controls: [context.choice("responses").node, modeChoice],
    content: el("div", {class: "pair"}, map.node, bars.node),
    figures: [["matrix", map], ["mode", bars]],
    table: () => [["row", ...shown.components], ...shown.matrix.map((row, i) => [shown.rows[i], ...row])],
  });

  async function update(entry) {
    const {run, monitor, index, component, key} = entry;
    const answer = await context.ask("data/responses", {run, monitor, index, component, key}, entry.stamp);
    if (!context.current("responses", entry)) return;
    const sizes = answer.matrix.flat().filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
    const limit = sizes[Math.floor(0.99 * (sizes.length - 1))] || 1; // a few huge entries would leave the rest pale
    shown = {...answer, limit, image: null, painted: null};
    const name = (share, k) => [k, share === null ? `${k + 1}` : `${k + 1} (${Math.round(100 * share)} % of the squares)`];
    fillSelect(modeChoice.querySelector("select"), answer.shares.map(name), Math.min(mode, answer.shares.length - 1));
    mode = Number(modeChoice.querySelector("select").value) || 0;
    map.describe(`Response matrix at step ${entry.step}: ${answer.rows.length} rows, ${answer.components.length} components`);
    view.node.dataset.what = `${run}-step-${entry.step}`;
    draw();
  }

  function draw() {
    map.redraw(context.theme);
    bars.redraw(context.theme);
  }

  const frame = (width) => ({left: 90, top: 14, wide: width - 100, tall: TALL - 90});

  function drawMap(p, width, _, theme) {
    if (!shown) return;
    const {left, top, wide, tall} = frame(width);
    const [n, m] = [shown.rows.length, shown.components.length];
    if (shown.painted !== theme.dark) {
      shown.image = heatImage(n, m, (i, j) => (shown.matrix[i][j] ?? NaN) / shown.limit, theme);
      shown.painted = theme.dark;
    }
    p.image(shown.image, left, top, wide, tall);
    const every = Math.ceil((n * 12) / tall);
    shown.rows.forEach((row, i) => {
      if (i % every) return;
      p.text(left - 5, top + ((i + 0.5) * tall) / n, cut(row, 14), {fill: theme.soft, size: 10, anchor: "end", baseline: "middle"});
    });
    const apart = Math.ceil((m * 13) / wide);
    shown.components.forEach((component, j) => {
      if (j % apart) return;
      const place = {fill: theme.soft, size: 10, anchor: "end", baseline: "middle", rotate: -45};
      p.text(left + ((j + 0.5) * wide) / m, top + tall + 8, cut(component, 14), place);
    });
  }

  function hoverMap(x, y) {
    if (!shown) return null;
    const {left, top, wide, tall} = frame(map.node.clientWidth);
    const i = Math.floor(((y - top) / tall) * shown.rows.length);
    const j = Math.floor(((x - left) / wide) * shown.components.length);
    if (!(shown.rows[i] !== undefined && shown.components[j] !== undefined)) return null;
    const value = shown.matrix[i][j];
    const says = value === null ? "no value" : value < 0 ? "the component favours it" : "the component works against it";
    return {lines: [`${shown.rows[i]} · ${shown.components[j]}`, `standardized response ${numberText(value)}`, says]};
  }

  function drawBars(p, width, _, theme) {
    if (!shown || !shown.shares.length) return;
    const middle = width / 2 + 10;
    const loadings = shown.components.map((name, j) => [name, shown.loadings[j]?.[mode] ?? null]);
    const scores = shown.rows.map((name, i) => [name, shown.scores[i]?.[mode] ?? null]);
    p.text(8, 16, `Mode ${mode + 1}: components`, {fill: theme.ink, weight: 600});
    column(p, loadings, 8, middle - 14, theme);
    p.text(middle, 16, "rows with the largest share", {fill: theme.ink, weight: 600});
    column(p, scores, middle, width - 8, theme);
  }

  return {...view, update, kind: "responses", redraw: draw, missing: "This run logged no responses: add a "
    + "SusceptibilityMonitor(components=\"heads\", probes=[probe]), or Susceptibility(probes, components) to a monitor."};
}

function column(p, pairs, left, right, theme) {
  const largest = pairs.filter(([, value]) => value !== null).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 20);
  const limit = Math.abs(largest[0]?.[1] ?? 1) || 1;
  const label = Math.min(90, (right - left) * 0.4);
  const centre = left + label + (right - left - label) / 2;
  largest.sort((a, b) => b[1] - a[1]).forEach(([name, value], k) => {
    const y = 28 + k * 17;
    const end = centre + ((right - left - label) / 2 - 4) * (value / limit);
    p.text(left + label - 4, y + 6, cut(name, 14), {fill: theme.soft, size: 10, anchor: "end", baseline: "middle"});
    const fill = `rgb(${(value < 0 ? theme.low : theme.high).join(" ")})`;
    p.rect(Math.min(centre, end), y, Math.abs(end - centre), 12, {fill});
  });
  p.line([[centre, 24, true], [centre, 28 + largest.length * 17]], {stroke: theme.soft, width: 0.8});
}

export function cut(text, length) {
  const whole = String(text);
  return whole.length > length ? `${whole.slice(0, length - 1)}…` : whole;
}
