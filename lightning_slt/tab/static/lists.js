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

// Stages of several quantities would lie on top of each other: those of the first one are drawn.
export function mainStages({stages}) {
  return stages.filter(({quantity}) => quantity === stages[0].quantity);
}

export function failures({monitors}) {
  return monitors.flatMap(({name, steps, failure}) => steps.map((step, i) => ({
    source: name, kind: "failed reading", step, known_at: step, quantity: name, text: failure[i],
  }))).filter(({text}) => text !== null);
}
