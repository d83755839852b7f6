// Brings the timelines of the chosen runs, of long ones part by part while their records are read.
import {readingsOf} from "./lists.js";

// told: {arrange(problems), progress(text or null)}. Gives load(), which ends when nothing waits any more.
export function loader(source, state, loaded, told) {
  let rounds = null;
  let again = false;
  let shown = null;

  // One round at a time, however many ask for one: while readings wait, and where something was asked meanwhile.
  async function go() {
    try {
      while (again) {
        again = false;
        if (!(await round())) continue;
        again = true;
        await new Promise(requestAnimationFrame); // what is there is drawn first
      }
    } finally {
      rounds = null;
    }
  }

  // Whether readings still wait. A timeline that is little longer than the one before comes as its progress alone.
  async function round() {
    const problems = [];
    const now = JSON.stringify([state.chosen, state.runs.map(({run, stamp}) => [run, stamp])]);
    let news = now !== shown;
    await Promise.all(state.chosen.map(async (run) => {
      const stamp = state.runs.find((one) => one.run === run)?.stamp;
      const known = loaded.get(run);
      if (known?.asked === stamp && !known.waiting) return;
      try {
        const found = await source.fresh("data/timeline", known?.waiting ? {run, known: readingsOf(known)} : {run});
        news ||= Boolean(found.monitors);
        loaded.set(run, {...known, read: null, ...found, asked: stamp});
      } catch (error) {
        problems.push(`${run}: ${error.message}`);
      }
    }));
    const timelines = state.timelines();
    const sum = (of) => timelines.reduce((total, one) => total + of(one), 0);
    const waiting = sum((one) => one.waiting);
    if (news || problems.length) told.arrange(problems);
    shown = now;
    told.progress(waiting ? `${sum(readingsOf)} of ${sum((one) => one.waiting + (one.read ?? readingsOf(one)))} readings are `
      + `shown so far, evenly spread; ${waiting} wait to be read.` : null);
    return waiting && !problems.length;
  }

  return () => {
    again = true;
    rounds ??= go();
    return rounds;
  };
}
