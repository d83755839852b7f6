// What an application asks of lists of runs, steps, stages and readings.

export function latest(runs) {
  return runs.map(({run}) => run).sort((a, b) => a.localeCompare(b, undefined, {numeric: true})).at(-1);
}

export function closest(steps, step) {
  return steps.reduce((best, one, k) => (Math.abs(one - step) < Math.abs(steps[best] - step) ? k : best), 0);
}

export function before(steps, step) {
  return Math.max(steps.findLastIndex((one) => one <= step), 0);
}

// Stages of several quantities would lie on top of each other: one of these is chosen. First those that a callback found,
// and of these the LLC's.
export function stagesBy({stages}) {
  const rank = ({source, quantity}) => 2 * (source === null) + !quantity.includes("/llc");
  return Map.groupBy([...stages].sort((a, b) => rank(a) - rank(b)), ({source, quantity}) => (source === null ? quantity : `${quantity}, found by ${source}`));
}

export function readingsOf({monitors}) {
  return monitors.reduce((sum, {steps}) => sum + steps.length, 0);
}

export function failures({monitors}) {
  return monitors.flatMap(({name, steps, failure}) => steps.map((step, i) => ({
    source: name, kind: "failed reading", step, known_at: step, quantity: name, text: failure[i],
  }))).filter(({text}) => text !== null);
}
