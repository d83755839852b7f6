// Lines of the timeline in numbers: which steps there are, the scale of a panel, and what of a line a screen can show.
import {extent, linear, logarithm, padded} from "./scales.js";

// The scale of a panel between two steps; range(steps) gives the first and the last reading to look at.
export function valueScale(panel, [from, to], range, {top, bottom}, reliableOnly) {
  let [low, high, positive] = [Infinity, -Infinity, Infinity];
  const take = (value) => {
    if (value - value !== 0) return; // neither NaN nor infinite
    if (value < low) low = value;
    if (value > high) high = value;
    if (value > 0 && value < positive) positive = value;
  };
  for (const line of panel.lines) {
    const [first, last] = range(line.steps);
    const band = line.band && line.low ? [line.low, line.high] : [];
    for (const list of [line.values, ...band, ...((line.chained && line.chains) || [])]) {
      const values = floats(list);
      for (let i = first; i <= last; i++) {
        if (line.steps[i] < from || line.steps[i] > to) continue;
        if (reliableOnly && line.ok !== null && !line.ok[i]) continue;
        take(values[i]);
      }
    }
  }
  if (panel.log && positive <= high) return logarithm(positive / 1.15, high * 1.15, bottom, top);
  return linear(...padded([low, high]), bottom, top);
}

export function stepsOf(panels) {
  const [low, high] = extent(panels.flatMap((panel) => panel.lines.map((line) => [line.steps[0], line.steps.at(-1)])));
  return low <= high ? [low, high > low ? high : low + 1] : [0, 1];
}

// A line's path as [x, y, whether a stroke begins here]. Of readings that share a column of pixels it keeps the first,
// lowest, highest and last: the same picture of many readings. places: x of every reading; values: its numbers.
export function path({places, values, y, range: [start, end]}) {
  const points = [];
  const at = {first: -1, low: 0, high: 0, last: 0, column: 0, jump: true};
  let [lowest, highest, broken] = [0, 0, true];
  const keep = (i, jump) => points.push([places[i], y(values[i]), jump]);
  const flush = () => {
    if (at.first < 0) return;
    keep(at.first, at.jump);
    const between = at.low < at.high ? [at.low, at.high] : [at.high, at.low];
    for (const i of between) if (i !== at.first && i !== at.last) keep(i, false);
    if (at.last !== at.first) keep(at.last, false);
    at.first = -1;
  };
  for (let i = start; i <= end; i++) {
    const place = y(values[i]);
    if (!Number.isFinite(place)) {
      flush();
      broken = true;
      continue;
    }
    const column = Math.floor(places[i]);
    if (at.first < 0 || column !== at.column) {
      flush();
      Object.assign(at, {first: i, low: i, high: i, last: i, column, jump: broken});
      [lowest, highest, broken] = [place, place, false];
      continue;
    }
    if (place < lowest) [lowest, at.low] = [place, i];
    if (place > highest) [highest, at.high] = [place, i];
    at.last = i;
  }
  flush();
  return points;
}

const typed = new WeakMap();

// A list of numbers, NaN where there is none; made once.
export function floats(list) {
  if (!typed.has(list)) typed.set(list, Float64Array.from(list, (value) => value ?? NaN));
  return typed.get(list);
}

export function finite(value) {
  return value !== null && value !== undefined && Number.isFinite(value);
}
