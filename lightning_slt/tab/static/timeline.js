// The timeline: loss, learning coefficients and other numbers over training steps, with stages, events and the cursor.
import {numberText, withError} from "./dom.js";
import {figure} from "./figure.js";
import {finite, floats, stepsOf, valueScale} from "./lines.js";
import {nearest, stepScale, tickText} from "./scales.js";

const LEFT = 64;
const RIGHT = 14;
const TOP = 40;
const BOTTOM = 40;
const GAP = 34;
const TALL = {loss: 120, llc: 210, components: 210};
const OTHER = 120;
const DENSE = 1000; // readings of all lines of a panel

// model() gives {panels, stages, events, cursor, logSteps, highlight, reliableOnly}; told: {cursor(step), highlight(name)}.
export function timelineFigure(model, told) {
  let view = null; // steps shown; null: all
  let all = [0, 1]; // steps that there are, as of the last drawing
  let boxes = [];
  let x = null;
  let edge = 0;
  let marks = [];
  let ranges = new Map(); // steps of a monitor → what of them is in view, as of the last drawing
  let places = new Map(); // and where each stands

  const tall = (panel) => TALL[panel.name] ?? OTHER;
  const height = () => {
    const heights = model().panels.map(tall);
    return TOP + heights.reduce((sum, h) => sum + h + GAP, 0) - GAP + BOTTOM;
  };

  const whole = () => all;

  function draw(p, width, _, theme) {
    const {panels, logSteps} = model();
    all = stepsOf(panels);
    const [from, to] = view ?? all;
    edge = width - RIGHT;
    x = stepScale(from, to, LEFT, edge, logSteps);
    boxes = [];
    ranges = new Map();
    places = new Map();
    let top = TOP;
    for (const panel of panels) {
      const box = {panel, top, bottom: top + tall(panel), y: null};
      box.y = valueScale(panel, [from, to], inView, box, model().reliableOnly);
      boxes.push(box);
      top = box.bottom + GAP;
    }
    if (!boxes.length) return;
    drawStages(p, theme);
    boxes.forEach((box, k) => drawPanel(p, box, theme, k === boxes.length - 1));
    drawEvents(p, theme);
    drawCursor(p, theme);
  }

  function drawStages(p, theme) {
    const bottom = boxes.at(-1).bottom;
    model().stages.forEach((stage, k) => {
      const [left, right] = [Math.max(x(stage.start), LEFT), Math.min(x(stage.end), edge)];
      if (!(right > left)) return;
      const fill = stage.hidden ? theme.series[1] : theme.series[0];
      p.rect(left, TOP, right - left, bottom - TOP, {fill, alpha: k % 2 ? 0.05 : 0.12});
      p.clip(left, 0, right - left, bottom, () => {
        p.text(left + 3, 12, stageText(stage), {fill: theme.soft, size: 10.5});
      });
    });
  }

  function drawPanel(p, box, theme, last) {
    const {panel, top, bottom, y} = box;
    const right = edge;
    p.text(LEFT, top - 7, panel.title, {fill: theme.ink, size: 12, weight: 600});
    drawLegend(p, panel, top - 7, theme);
    for (const tick of y.ticks((bottom - top) / 40)) {
      if (y(tick) < top - 1 || y(tick) > bottom + 1) continue;
      p.line([[LEFT, y(tick), true], [right, y(tick)]], {stroke: tick === 0 ? theme.soft : theme.line, width: 0.6});
      p.text(LEFT - 7, y(tick), tickText(tick), {fill: theme.soft, anchor: "end", baseline: "middle"});
    }
    for (const tick of x.ticks()) {
      p.line([[x(tick), bottom, true], [x(tick), bottom + 4]], {stroke: theme.soft, width: 1});
      if (last) p.text(x(tick), bottom + 17, tickText(tick), {fill: theme.soft, anchor: "middle"});
    }
    p.line([[LEFT, bottom, true], [right, bottom]], {stroke: theme.soft, width: 1});
    const axis = model().logSteps ? "training step (logarithmic)" : "training step";
    if (last) p.text((LEFT + right) / 2, bottom + 34, axis, {fill: theme.soft, anchor: "middle"});
    const {highlight} = model();
    const known = panel.lines.some((line) => lit(line, highlight));
    const within = panel.lines.reduce((sum, {steps}) => sum + inView(steps)[1] - inView(steps)[0], 0);
    const draw = within > DENSE ? p.crowded : p.clip;
    draw.call(p, LEFT - 5, top - 5, right - LEFT + 10, bottom - top + 10, (inside) => {
      for (const line of panel.lines) drawLine(inside ?? p, box, line, theme, known && !lit(line, highlight) ? 0.15 : 1);
    });
  }

  // Beside the title, where all lines have room, or else all runs; about 6 pixels a letter.
  function drawLegend(p, panel, y, theme) {
    const runs = new Map(panel.lines.map((line) => [line.run, {...line, label: line.run, dash: []}]));
    const long = (lines) => lines.reduce((sum, {label}) => sum + 6 * label.length + 30, 0);
    const room = edge - LEFT - 7.2 * panel.title.length - 20;
    const shown = [panel.lines, runs.size > 1 ? [...runs.values()] : []].find((lines) => long(lines) < room) ?? [];
    let start = edge - long(shown);
    for (const {label, colour, dash} of shown) {
      p.line([[start, y - 4, true], [start + 14, y - 4]], {stroke: colour, width: 2, dash});
      p.text(start + 18, y, label, {fill: theme.soft, size: 11});
      start += 6 * label.length + 30;
    }
  }

  function drawLine(p, box, line, theme, strength) {
    const {y} = box;
    const range = inView(line.steps);
    const crowded = crowd(line.steps);
    const of = (list) => ({places: placesOf(line.steps), values: floats(list), y, range});
    if (line.band && line.low) p.band(of(line.low), of(line.high), {fill: line.colour, alpha: 0.2 * strength});
    for (const chain of (line.chained && line.chains) || []) {
      p.curve(of(chain), {stroke: line.colour, width: 0.6, alpha: 0.45 * strength});
    }
    p.curve(of(line.values), {stroke: line.colour, width: line.width, dash: crowded ? [] : line.dash, alpha: strength});
    if (line.dots !== false) drawDots(p, box, line, theme, strength, crowded);
  }

  // Whether readings stand too near for dots and dashes, on average.
  function crowd(steps) {
    const [first, last] = inView(steps);
    const along = placesOf(steps);
    return last > first && (along[last] - along[first]) / (last - first) < 5;
  }

  // Reliable readings are filled where there is room for them; unreliable ones are hollow and never left out.
  function drawDots(p, {y, top, bottom}, line, theme, strength, crowded) {
    const [first, last] = inView(line.steps);
    const along = placesOf(line.steps);
    const cell = crowded ? 3 : 1; // dots that lie on each other are one
    const taken = new Set();
    const spots = [];
    const values = floats(line.values);
    for (let i = first; i <= last; i++) {
      const ok = line.ok === null || line.ok[i];
      if (ok && crowded) continue;
      const place = y(values[i]);
      if (!Number.isFinite(place)) continue;
      const spot = Math.round(along[i] / cell) * 65536 + Math.round(place / cell);
      if (taken.has(spot)) continue;
      taken.add(spot);
      spots.push([along[i], Math.min(Math.max(place, top), bottom), ok ? line.colour : theme.paper, i]);
    }
    const data = (i) => ({step: line.steps[i], value: line.values[i], line: line.label, ok: line.ok === null || line.ok[i] ? 1 : 0});
    const radius = crowded ? 2.2 : line.ok === null ? 2 : 3.2;
    p.circles(spots, radius, {stroke: line.colour, width: 1.3, alpha: strength, data});
  }

  function drawEvents(p, theme) {
    const bottom = boxes.at(-1).bottom;
    marks = model().events.filter((event) => finite(event.step) && shown(event.step)).map((event) => ({event, at: x(event.step)}));
    for (const {at, event} of marks) {
      p.line([[at, TOP - 2, true], [at, bottom]], {stroke: eventColour(event, theme), width: 0.8, dash: [2, 3], alpha: 0.8});
      p.area([[at - 5, TOP - 9], [at + 5, TOP - 9], [at, TOP - 1]], {fill: eventColour(event, theme)});
    }
  }

  function drawCursor(p, theme) {
    const {cursor} = model();
    if (cursor === null || !shown(cursor)) return;
    p.line([[x(cursor), TOP, true], [x(cursor), boxes.at(-1).bottom]], {stroke: theme.accent, width: 1.6, alpha: 0.9});
  }

  function hover(px, py) {
    if (!x || !boxes.length) return null;
    const event = marks.filter(({at}) => Math.abs(at - px) < 6 && py < TOP + 4);
    if (event.length) return {lines: event.flatMap(({event: e}) => eventLines(e))};
    const box = boxes.find(({top, bottom}) => py >= top - 14 && py <= bottom + 14);
    const found = box && nearestPoint(box, px, py);
    told.highlight(found && box.panel.name === "components" ? found.line.component : null);
    if (!found) return null;
    const mark = (p, theme) => p.circle(found.px, found.py, 6, {stroke: theme.ink, width: 1.6});
    return {lines: pointLines(found), mark};
  }

  function nearestPoint(box, px, py) {
    let best = null;
    for (const line of box.panel.lines) {
      if (!line.steps.length) continue;
      const middle = nearest(line.steps, x.invert(px));
      for (const i of [middle - 1, middle, middle + 1]) {
        const value = line.values[i];
        if (value === null || value === undefined || !shown(line.steps[i])) continue;
        const spot = {line, i, px: x(line.steps[i]), py: Math.min(Math.max(box.y(value), box.top), box.bottom)};
        spot.far = Math.hypot(spot.px - px, spot.py - py);
        if (!best || spot.far < best.far) best = spot;
      }
    }
    return best && best.far < 60 ? best : null;
  }

  // The readings in view, and one beyond at either side, so that lines reach the edge.
  function inView(steps) {
    if (!ranges.has(steps)) {
      const [from, to] = view ?? whole();
      let first = 0;
      let last = steps.length - 1;
      while (first < last && steps[first + 1] < from) first++;
      while (last > first && steps[last - 1] > to) last--;
      ranges.set(steps, [first, last]);
    }
    return ranges.get(steps);
  }

  function placesOf(steps) {
    if (!places.has(steps)) places.set(steps, Float64Array.from(steps, (step) => x(step)));
    return places.get(steps);
  }

  const shown = (step) => {
    const [from, to] = view ?? whole();
    return step >= from && step <= to;
  };

  // Keep what is under a pixel under it, and never show more than there is.
  function zoom(factor, about = null) {
    if (!x) return;
    const [low, high] = whole();
    const [left, right] = [LEFT, edge];
    const centre = about ?? (left + right) / 2;
    const ends = [left, right].map((edge) => x.invert(centre + (edge - centre) * factor));
    view = ends[0] <= low && ends[1] >= high ? null : [Math.max(ends[0], low), Math.min(ends[1], high)];
    if (view && !(view[1] - view[0] > 1e-6)) view = null;
    drawn.redraw();
  }

  function pan(pixels) {
    if (!view || !x) return;
    const [low, high] = whole();
    const [left, right] = [LEFT, edge];
    const ends = [x.invert(left - pixels), x.invert(right - pixels)];
    if (ends[0] < low || ends[1] > high) return;
    view = ends;
    drawn.redraw();
  }

  const actions = {
    "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: () => ((view = null), drawn.redraw()),
    ArrowLeft: (e) => (e.shiftKey ? pan(80) : told.move(-1)), ArrowRight: (e) => (e.shiftKey ? pan(-80) : told.move(1)),
    Home: () => told.move(-Infinity), End: () => told.move(Infinity),
  };
  const drawn = figure({
    label: "Timeline", height, draw, hover,
    press: (px) => x && told.cursor(x.invert(px)),
    drag: (dx) => pan(dx),
    wheel: (px, turn) => zoom(turn > 0 ? 1.25 : 0.8, px),
    keys: (event) => {
      const act = actions[event.key];
      if (act) act(event);
      return Boolean(act);
    },
  });
  const reset = () => ((view = null), drawn.redraw());
  return {...drawn, zoom, reset, places: () => ({x, boxes, view})};
}

function lit(line, highlight) {
  return highlight !== null && line.component === highlight;
}

function pointLines({line, i}) {
  const error = line.stderr?.[i] ?? null;
  const lines = [line.label, `step ${line.steps[i]}: ${withError(line.values[i], error)}`];
  if (finite(line.low?.[i])) lines.push(`band ${numberText(line.low[i])} to ${numberText(line.high[i])}`);
  if (line.ok !== null && !line.ok[i]) lines.push(`unreliable: ${line.reasons[i] ?? "a health check failed"}`);
  return lines;
}

export function stageText(stage) {
  const words = [stage.name, {A: "rising", B: "falling"}[stage.type] ?? stage.type, stage.hidden ? "hidden in the loss" : null];
  return words.filter(Boolean).join(" · ");
}

export function eventLines(event) {
  const known = event.known_at !== null && event.known_at !== event.step ? `, known at ${event.known_at}` : "";
  return [`${event.kind} at step ${numberText(event.step)}${known}`, event.text, `${event.quantity} (${event.source})`];
}

function eventColour(event, theme) {
  const kinds = ["boundary", "alert", "flip", "peak", "checkpoint"];
  const colours = [theme.series[2], theme.bad, theme.series[3], theme.series[4], theme.soft];
  return colours[kinds.indexOf(event.kind)] ?? theme.soft;
}
