// Influence: which training samples lower or raise the loss of one chosen query.
import {numberText, select, fillSelect} from "./dom.js";
import {card, figure} from "./figure.js";
import {cut} from "./responses.js";

const ROW = 20;

export function influenceView(context) {
  let shown = null;
  let query = 0;
  let entry = null;
  const queryChoice = select("Query", [[0, "0"]], 0, (value) => {
    query = value;
    context.guard(view, () => update(entry));
  });
  const bars = figure({label: "Most helpful and harmful training samples", height: () => tall(), draw, hover});
  const view = card({
    name: "influence", title: "Influence: which training samples matter to a query",
    hint: "Helpful: more weight on this training sample would lower the query's loss. Harmful: it would raise it. Whiskers "
      + "are one standard error; bars shorter than two of them may be noise.",
    controls: [context.choice("influence").node, queryChoice],
    content: bars.node, figures: [["", bars]],
    table: () => [
      ["query", "side", "training sample", "label", "influence", "stderr"],
      ...["helpful", "harmful"].flatMap((side) => shown[side].map(([i, value, error, label]) => [query, side, i, label, value, error])),
    ],
  });

  async function update(next) {
    entry = next;
    const {run, monitor, index, component, key} = entry;
    const answer = await context.ask("data/influence", {run, monitor, index, component, key, query}, entry.stamp);
    if (!context.current("influence", entry)) return;
    shown = answer;
    const options = answer.queries.map(([sample, label], k) => [k, sampleName(sample, label)]);
    fillSelect(queryChoice.querySelector("select"), options, query);
    bars.describe(`Most helpful and harmful training samples of query ${query} at step ${entry.step}`);
    view.node.dataset.what = `${run}-step-${entry.step}-query-${query}`;
    bars.redraw(context.theme);
  }

  const tall = () => 50 + ROW * Math.max(shown?.helpful.length ?? 1, shown?.harmful.length ?? 1, 1);

  function sides(width) {
    const middle = width / 2;
    return [["helpful", "Most helpful", 8, middle - 16], ["harmful", "Most harmful", middle + 8, width - 8]];
  }

  function draw(p, width, _, theme) {
    if (!shown) return;
    const all = [...shown.helpful, ...shown.harmful];
    const limit = Math.max(...all.map(([, value, error]) => Math.abs(value) + (error ?? 0)), 1e-30);
    for (const [side, title, left, right] of sides(width)) {
      p.text(left, 18, title, {fill: theme.ink, weight: 600, size: 12});
      const fill = `rgb(${(side === "helpful" ? theme.low : theme.high).join(" ")})`;
      const start = left + 110;
      const scale = (size) => start + ((right - start - 60) * size) / limit;
      shown[side].forEach(([i, value, error, label], k) => {
        const y = 30 + k * ROW;
        p.text(start - 6, y + 8, cut(sampleName(i, label), 18), {fill: theme.soft, anchor: "end", baseline: "middle"});
        const end = scale(Math.abs(value));
        p.rect(start, y + 1, Math.max(end - start, 1), 13, {fill});
        if (error !== null) {
          const [a, b] = [scale(Math.max(Math.abs(value) - error, 0)), scale(Math.abs(value) + error)];
          p.line([[a, y + 7.5, true], [b, y + 7.5]], {stroke: theme.ink, width: 1.2});
        }
        const after = scale(Math.abs(value) + (error ?? 0)) + 5;
        p.text(after, y + 8, numberText(value, 3), {fill: theme.soft, baseline: "middle", size: 10.5});
      });
      if (!shown[side].length) p.text(left, 42, "none", {fill: theme.soft});
    }
  }

  function hover(x, y) {
    if (!shown) return null;
    const k = Math.floor((y - 30) / ROW);
    const [side] = sides(bars.node.clientWidth).find(([, , left, right]) => x >= left && x <= right) ?? [];
    const row = side && shown[side][k];
    if (!row) return null;
    const [i, value, error, label] = row;
    return {lines: [`training ${sampleName(i, label)}`, `influence ${numberText(value)} ± ${numberText(error, 2)}`]};
  }

  return {...view, update, kind: "influence", redraw: () => bars.redraw(context.theme), missing: "This run logged no "
    + "influence: add BayesianInfluence(train=probe_a, query=probe_b) to the monitor's estimators, or an InfluenceMonitor."};
}

function sampleName(sample, label) {
  return label === null || label === undefined ? `sample ${sample}` : `sample ${sample} (${label})`;
}
