// From numbers to pixels and back, and where the ticks go.

// Steps on a logarithmic axis stand at log(1 + step), so that step 0 has its place, too.
export function stepScale(from, to, left, right, logarithmic) {
  const bend = logarithmic ? (step) => Math.log10(1 + Math.max(step, 0)) : (step) => step;
  const unbend = logarithmic ? (place) => 10 ** place - 1 : (place) => place;
  const [a, b] = [bend(from), bend(to)];
  const span = b - a || 1;
  const scale = (step) => left + ((bend(step) - a) / span) * (right - left);
  scale.invert = (x) => unbend(a + ((x - left) / (right - left)) * span);
  scale.ticks = () => (logarithmic ? logTicks(from, to) : niceTicks(from, to, (right - left) / 90)).filter(
    (tick) => tick >= from - 1e-9 && tick <= to + 1e-9 && (Number.isInteger(tick) || to - from < 5),
  );
  return scale;
}

export function linear(from, to, start, end) {
  const span = to - from || 1;
  const scale = (value) => start + ((value - from) / span) * (end - start);
  scale.invert = (place) => from + ((place - start) / (end - start)) * span;
  scale.ticks = (count) => niceTicks(from, to, count);
  return scale;
}

// Of numbers above 0; others have no place on it.
export function logarithm(from, to, start, end) {
  const [a, b] = [Math.log10(from), Math.log10(to)];
  const span = b - a || 1;
  const scale = (value) => (value > 0 ? start + ((Math.log10(value) - a) / span) * (end - start) : NaN);
  scale.invert = (place) => 10 ** (a + ((place - start) / (end - start)) * span);
  scale.ticks = (count) => {
    const powers = [];
    for (let power = Math.ceil(a); power <= Math.floor(b); power++) powers.push(10 ** power);
    return powers.length >= 2 ? powers : niceTicks(from, to, count).filter((tick) => tick > 0);
  };
  return scale;
}

export function niceTicks(from, to, count) {
  const span = to - from;
  if (!(span > 0)) return [from];
  const rough = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const ticks = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9 * step; k++) ticks.push(k * step);
  return ticks;
}

function logTicks(from, to) {
  const ticks = [0];
  for (let power = 1; power <= Math.max(to, 1); power *= 10) ticks.push(power);
  const inside = ticks.filter((tick) => tick >= from && tick <= to);
  return inside.length >= 3 ? inside : niceTicks(from, to, 6);
}

// Room above and below; a flat line gets some, too.
export function padded([low, high], share = 0.06) {
  if (!(low <= high)) return [0, 1];
  const room = (high - low) * share || Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

export function extent(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of lists) {
    for (const value of list) {
      if (value === null || !Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

export function tickText(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(0).replace("e+", "e").replace("-", "−");
  if (size >= 1e4) return `${Number((value / 1000).toPrecision(4))}k`.replace("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

// Position in a sorted list of the entry nearest to a value.
export function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}
