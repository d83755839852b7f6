// The trajectory: where the network goes in the space of its outputs, in its first principal components.
import {numberText, select, withError} from "./dom.js";
import {card, figure} from "./figure.js";
import {sequential} from "./paint.js";
import {extent, linear, niceTicks, padded, tickText} from "./scales.js";

const TALL = 420;
const BOX = {left: 60, right: 16, top: 16, bottom: 44};

export function trajectoryView(context) {
  let shown = null;
  let axes = [0, 1];
  const axesChoice = select("Axes", [["0,1", "1 and 2"], ["0,2", "1 and 3"], ["1,2", "2 and 3"]], "0,1", (value) => {
    axes = value.split(",").map(Number);
    drawn.redraw(context.theme);
  });
  const drawn = figure({label: "Trajectory", height: TALL, draw, hover, press});
  const view = card({
    name: "trajectory", title: "Trajectory: where the network goes",
    hint: "Each point is a reading: the network's outputs on fixed samples, drawn in the directions in which they change most "
      + "over this run; colour runs from the first step to the last. Crosses are reference predictors. Click a point to "
      + "move there.",
    controls: [axesChoice], content: drawn.node, figures: [["", drawn]],
    table: () => [["step", ...shown.points[0].map((_, k) => `component ${k + 1}`)], ...shown.points.map((point, i) => [shown.steps[i], ...point])],
  });

  async function update({run, stamp}) {
    const answer = await context.ask("data/trajectory", {run}, stamp);
    if (context.run() !== run) return;
    shown = answer.steps.length ? answer : null;
    if (!shown) return view.say(view.missing);
    drawn.describe(`Trajectory of ${run}, ${shown.steps.length} readings`);
    view.node.dataset.what = run;
    drawn.redraw(context.theme);
  }

  function scales(width) {
    const references = Object.values(shown.references);
    const along = axes.map((axis) => padded(extent([[...shown.points, ...references].map((point) => point[axis] ?? 0)])));
    return {x: linear(...along[0], BOX.left, width - BOX.right), y: linear(...along[1], TALL - BOX.bottom, BOX.top)};
  }

  const place = ({x, y}, point) => [x(point[axes[0]] ?? 0), y(point[axes[1]] ?? 0)];

  function draw(p, width, _, theme) {
    if (!shown) return;
    const s = scales(width);
    drawAxes(p, s, width, theme);
    const dots = shown.points.map((point) => place(s, point));
    p.line(dots.map(([x, y], i) => [x, y, i === 0]), {stroke: theme.soft, width: 1});
    dots.forEach(([x, y], i) => {
      const fill = sequential(dots.length > 1 ? i / (dots.length - 1) : 0, theme.dark);
      p.circle(x, y, 3.2, {fill, data: {step: shown.steps[i]}});
    });
    for (const [name, point] of Object.entries(shown.references)) {
      const [x, y] = place(s, point);
      p.line([[x - 5, y - 5, true], [x + 5, y + 5], [x - 5, y + 5, true], [x + 5, y - 5]], {stroke: theme.bad, width: 2});
      p.text(x + 8, y, name, {fill: theme.ink, baseline: "middle"});
    }
    const current = at(context.step());
    if (current >= 0) p.circle(...dots[current], 7, {stroke: theme.accent, width: 2.4});
  }

  function drawAxes(p, {x, y}, width, theme) {
    const [bottom, right] = [TALL - BOX.bottom, width - BOX.right];
    p.rect(BOX.left, BOX.top, right - BOX.left, bottom - BOX.top, {stroke: theme.line});
    for (const tick of niceTicks(x.invert(BOX.left), x.invert(right), 6)) {
      p.text(x(tick), bottom + 16, tickText(tick), {fill: theme.soft, anchor: "middle"});
    }
    for (const tick of niceTicks(y.invert(bottom), y.invert(BOX.top), 6)) {
      p.text(BOX.left - 6, y(tick), tickText(tick), {fill: theme.soft, anchor: "end", baseline: "middle"});
    }
    const [across, up] = axes.map(title);
    p.text((BOX.left + right) / 2, bottom + 34, across, {fill: theme.soft, anchor: "middle"});
    p.text(14, (BOX.top + bottom) / 2, up, {fill: theme.soft, anchor: "middle", rotate: -90});
  }

  function title(axis) {
    const share = shown.shares?.[axis];
    const part = share === null || share === undefined ? "" : ` (${numberText(100 * share, 3)} % of the variance)`;
    return `principal component ${axis + 1}${part}`;
  }

  // The last reading at or before a step.
  const at = (step) => (step === null ? -1 : shown.steps.findLastIndex((one) => one <= step));

  function closest(px, py) {
    const s = scales(drawn.node.clientWidth);
    let best = {far: 14, i: -1};
    shown.points.forEach((point, i) => {
      const [x, y] = place(s, point);
      const far = Math.hypot(x - px, y - py);
      if (far < best.far) best = {far, i, x, y};
    });
    return best;
  }

  function hover(px, py) {
    const {i, x, y} = shown ? closest(px, py) : {i: -1};
    if (i < 0) return null;
    const lines = [`step ${shown.steps[i]}`, ...axes.map((axis) => `component ${axis + 1}: ${withError(shown.points[i][axis], null)}`)];
    return {lines, mark: (p, theme) => p.circle(x, y, 6, {stroke: theme.ink})};
  }

  function press(px, py) {
    const {i} = shown ? closest(px, py) : {i: -1};
    if (i >= 0) context.goTo(shown.steps[i]);
  }

  view.missing = "This run logged no trajectory: add the callback TrajectoryMonitor(probe=held_out, "
    + "at_steps=LogSteps(1, last_step, 40)).";
  return Object.assign(view, {update, redraw: () => drawn.redraw(context.theme)});
}
