// Lines of the timeline in numbers: which steps there are, the scale of a panel, and what of a line a screen can show.
import {extent, linear, logarithm, padded} from "./scales.js";

export function valueScale(panel, from, to, {top, bottom}, reliableOnly) {
  const values = [];
  for (const line of panel.lines) {
    for (let i = 0; i < line.values.length; i++) {
      if (line.steps[i] < from || line.steps[i] > to) continue;
      if (reliableOnly && line.ok !== null && !line.ok[i]) continue;
      values.push(line.values[i]);
      if (line.band) values.push(line.low?.[i] ?? null, line.high?.[i] ?? null);
      if (line.chained) for (const chain of line.chains ?? []) values.push(chain[i]);
    }
  }
  const [low, high] = extent([values]);
  const positive = panel.log && extent([values.filter((value) => value > 0)]);
  if (positive && positive[0] <= positive[1]) return logarithm(positive[0] / 1.15, positive[1] * 1.15, bottom, top);
  return linear(...padded([low, high]), bottom, top);
}

export function stepsOf(panels) {
  const [low, high] = extent(panels.flatMap((panel) => panel.lines.map((line) => [line.steps[0], line.steps.at(-1)])));
  return low <= high ? [low, high > low ? high : low + 1] : [0, 1];
}

// Of points that share a column of pixels the first, lowest, highest and last: the same picture of many readings.
export function thinned(points) {
  const kept = [];
  for (let i = 0, next; i < points.length; i = next) {
    next = i + 1;
    let [low, high] = [i, i];
    while (next < points.length && !points[next][2] && Math.floor(points[next][0]) === Math.floor(points[i][0])) {
      if (points[next][1] < points[low][1]) low = next;
      if (points[next][1] > points[high][1]) high = next;
      next++;
    }
    for (const k of new Set([i, ...[low, high].sort((a, b) => a - b), next - 1])) kept.push(points[k]);
  }
  return kept;
}

export function finite(value) {
  return value !== null && value !== undefined && Number.isFinite(value);
}
