// The reading at the cursor in numbers: every estimate with its error, its checks, its chains and their loss traces.
import {el, numberText, select, fillSelect, withError} from "./dom.js";
import {CHECKS, VALUES} from "./checks.js";
import {card, figure} from "./figure.js";
import {extent, linear, padded, tickText} from "./scales.js";

const BOX = {left: 60, right: 14, top: 14, bottom: 40, height: 240};

export function healthView(context) {
  let entries = [];
  let chosen = null;
  let traces = null;
  const estimateChoice = select("Estimate", [], null, (value) => {
    chosen = value;
    context.guard(view, show);
  });
  const plot = figure({label: "Loss traces", height: BOX.height, draw: drawTraces, hover: hoverTraces});
  const traceNote = el("p", {class: "message"});
  const overview = el("div", {class: "scroll", tabIndex: 0, role: "region", "aria-label": "All estimates of this reading"});
  const details = el("div", {class: "scroll", tabIndex: 0, role: "region", "aria-label": "Checks of the chosen estimate"});
  const settings = el("details", {}, el("summary", {}, "Settings of this reading"), el("div", {class: "scroll"}));
  const view = card({
    name: "health", title: "Can these numbers be relied on?",
    hint: "Every number of the reading at the cursor, with its standard error and what the checks of the sampler's chains say of it.",
    controls: [estimateChoice],
    content: el("div", {}, overview, el("h3", {}, "Chains' loss above that of the trained weights"), plot.node, traceNote, details, settings),
    figures: [["", plot]],
    table: () => [
      ["monitor", "step", "component", "estimate", "number", "value", "stderr", "ok", "health", "chains"],
      ...entries.flatMap((entry) => numbersOf(entry).map(([name, value, stderr]) => [
        entry.monitor, entry.step, entry.component, entry.key, name, value, stderr,
        entry.estimate.health.ok ? 1 : 0, entry.estimate.health.text, entry.estimate.per_chain.map((v) => v ?? "").join(" "),
      ])),
    ],
  });

  async function update(next) {
    entries = next;
    const first = entries.find(({estimate}) => Object.values(estimate.arrays).some(isTrace)) ?? entries[0];
    const known = entries.some((entry) => idOf(entry) === chosen);
    const options = entries.map((entry) => [idOf(entry), idOf(entry)]);
    fillSelect(estimateChoice.querySelector("select"), options, known ? chosen : first && idOf(first));
    chosen = estimateChoice.querySelector("select").value;
    overview.replaceChildren(table(
      ["estimate", "number", "value", "verdict", "why"],
      entries.flatMap((entry) => numbersOf(entry).map(([name, value, stderr], k) => {
        const {ok, text, warnings} = entry.estimate.health;
        const verdict = ok ? (warnings.length ? "look" : "ok") : "unreliable";
        const why = ok ? warnings.join(", ") : text;
        return {cells: [k ? "" : idOf(entry), name, withError(value, stderr), k ? "" : verdict, k ? "" : why], bad: !ok};
      })),
    ));
    view.node.dataset.what = entries.length ? `${entries[0].run}-step-${entries[0].step}` : "";
    if (!entries.length) return view.say("The reading at the cursor holds no estimate.");
    await show();
  }

  async function show() {
    const entry = entries.find((one) => idOf(one) === chosen);
    if (!entry) return;
    details.replaceChildren(checksTable(entry.estimate));
    settings.lastChild.replaceChildren(table(["setting", "value"], Object.entries(entry.settings).map(([name, value]) => (
      {cells: [name, typeof value === "number" ? numberText(value, 6) : String(value ?? "–")]}))));
    const name = Object.keys(entry.estimate.arrays).find((one) => isTrace(entry.estimate.arrays[one]));
    traces = null;
    traceNote.textContent = name ? "" : "No traces were kept here: LLC(traces=True) keeps the chains' losses.";
    traceNote.hidden = Boolean(name);
    plot.node.hidden = !name;
    if (name) {
      const {run, monitor, index, component, key} = entry;
      const found = await context.askArray("data/array", {run, monitor, index, component, key, name}, entry.stamp);
      if (idOf(entry) !== chosen || !entries.includes(entry)) return;
      traces = {...found, name};
      plot.describe(`Loss traces of ${chosen}: ${found.shape[0]} chains, ${found.shape[1]} draws`);
    }
    plot.redraw(context.theme);
  }

  function scales(width) {
    const [, draws] = traces.shape;
    const [low, high] = padded(extent([traces.values]));
    return {x: linear(0, draws - 1, BOX.left, width - BOX.right), y: linear(low, high, BOX.height - BOX.bottom, BOX.top)};
  }

  function drawTraces(p, width, _, theme) {
    if (!traces) return;
    const {x, y} = scales(width);
    const [chains, draws] = traces.shape;
    const [bottom, right] = [BOX.height - BOX.bottom, width - BOX.right];
    for (const tick of y.ticks(5)) {
      p.line([[BOX.left, y(tick), true], [right, y(tick)]], {stroke: theme.line, width: 0.6});
      p.text(BOX.left - 6, y(tick), tickText(tick), {fill: theme.soft, anchor: "end", baseline: "middle"});
    }
    for (const tick of x.ticks(7).filter(Number.isInteger)) {
      p.text(x(tick), bottom + 16, tickText(tick), {fill: theme.soft, anchor: "middle"});
    }
    p.text((BOX.left + right) / 2, bottom + 33, "draw", {fill: theme.soft, anchor: "middle"});
    p.text(14, (BOX.top + bottom) / 2, `${traces.name}, nats`, {fill: theme.soft, anchor: "middle", rotate: -90});
    for (let c = 0; c < chains; c++) {
      const points = [];
      let jump = true;
      for (let t = 0; t < draws; t++) {
        const value = traces.values[c * draws + t];
        if (Number.isFinite(value)) points.push([x(t), y(value), jump]);
        jump = !Number.isFinite(value);
      }
      p.line(points, {stroke: theme.series[c % 8], width: 0.9, alpha: 0.8});
    }
  }

  function hoverTraces(px, py) {
    if (!traces) return null;
    const {x, y} = scales(plot.node.clientWidth);
    const [chains, draws] = traces.shape;
    const t = Math.round(x.invert(px));
    if (t < 0 || t >= draws) return null;
    const all = Array.from({length: chains}, (_, c) => ({c, value: traces.values[c * draws + t]}));
    const best = all.filter((one) => Number.isFinite(one.value)).sort((a, b) => Math.abs(y(a.value) - py) - Math.abs(y(b.value) - py))[0];
    if (!best) return null;
    const mark = (p, theme) => p.circle(x(t), y(best.value), 5, {stroke: theme.ink});
    return {lines: [`chain ${best.c}, draw ${t}`, `${numberText(best.value)} nats`], mark};
  }

  return Object.assign(view, {update, redraw: () => plot.redraw(context.theme), missing: "This run has no reading yet."});
}

function isTrace({shape, axes}) {
  return shape.length === 2 && axes[0] === "chain" && axes[1] === "draw";
}

export function idOf({monitor, component, key}) {
  return `${monitor}/${component}/${key}`;
}

function numbersOf({estimate}) {
  if (estimate.kind === "Estimate") return [["mean", estimate.mean, estimate.stderr]];
  const numbers = Object.entries(estimate.numbers);
  return numbers.length ? numbers.map(([name, value]) => [name, value, null]) : [["(arrays only)", null, null]];
}

function checksTable({health, per_chain: chains}) {
  const checked = Object.keys(health.values).filter((name) => name in CHECKS);
  const rows = checked.map((name) => {
    const verdict = health.failed.includes(name) ? "failed" : health.warnings.includes(name) ? "look" : "ok";
    return {cells: [name, numberText(health.values[name]), verdict, CHECKS[name]], bad: verdict === "failed"};
  });
  const others = Object.keys(health.values).filter((name) => name in VALUES);
  const values = others.map((name) => ({cells: [name, numberText(health.values[name]), "", VALUES[name]]}));
  const each = chains.map((value, c) => {
    const died = health.dead_chains[c];
    const about = died === undefined ? "" : `died at step ${died}, left out`;
    return {cells: [`chain ${c}`, numberText(value), "", about], bad: died !== undefined};
  });
  return table(["check", "measured", "verdict", "what it says"], [...rows, ...values, ...each]);
}

export function table(heads, rows) {
  return el(
    "table", {},
    el("thead", {}, el("tr", {}, heads.map((text) => el("th", {scope: "col"}, text)))),
    el("tbody", {}, rows.map(({cells, bad}) => el("tr", {class: bad ? "bad" : null}, cells.map((text) => el("td", {}, String(text)))))),
  );
}
