// What the timeline draws: panels of lines, made from the timelines of the runs that are shown.
import {palette, sequential} from "./paint.js";

export const WHOLE = "full"; // what records call the network as a whole

export function componentsOf(timelines) {
  const names = new Set();
  for (const {monitors} of timelines) {
    for (const {series} of monitors) {
      for (const {component, field} of series) if (field === "mean" && component !== WHOLE) names.add(component);
    }
  }
  return [...names].sort((a, b) => a.localeCompare(b, undefined, {numeric: true}));
}

// Names with a common beginning belong together: blocks.0.h1 and blocks.0.h2 in blocks.0.
export function groupOf(component) {
  const cut = component.lastIndexOf(".");
  return cut > 0 ? component.slice(0, cut) : "";
}

export function otherNumbers(timelines) {
  const tags = new Set();
  for (const {monitors} of timelines) {
    for (const {series} of monitors) for (const one of series) if (one.field !== "mean") tags.add(tagOf(one));
  }
  return [...tags].sort();
}

export function tagOf({component, key, field}) {
  return `${component}/${key}/${field}`;
}

// Options: hidden (a set of components), other (tags), bands, chains, dark.
export function panels(timelines, options) {
  const several = timelines.length > 1;
  const components = componentsOf(timelines);
  const loss = {name: "loss", title: "Loss (nats per sample)", log: options.logLoss, lines: []};
  const whole = {name: "llc", title: "Learning coefficient (LLC) of the whole network", lines: []};
  const parts = {name: "components", title: "Learning coefficient of each component", lines: []};
  const others = new Map(options.other.map((tag) => [tag, {name: tag, title: tag, lines: []}]));
  timelines.forEach((timeline, place) => {
    let used = 0;
    const losses = new Set();
    const run = timeline.run;
    const ofRun = (label) => (several ? `${run}: ${label}` : label);
    const colour = (k) => palette(options.dark).series[(several ? place : k) % 8];
    for (const scalar of timeline.scalars) {
      const line = plain(scalar.steps, scalar.values);
      loss.lines.push({...line, label: ofRun(scalar.tag), colour: colour(1 + used++), width: 1, run, dots: false});
    }
    for (const monitor of timeline.monitors) {
      const key = JSON.stringify(monitor.steps); // monitors that read at the same steps saw the same weights
      if (monitor.loss.some((value) => value !== null) && !losses.has(key)) {
        losses.add(key);
        const label = ofRun(`${losses.size > 1 ? `${monitor.name}: ` : ""}loss at the readings`);
        loss.lines.push({...plain(monitor.steps, monitor.loss), label, colour: colour(0), dash: [5, 3], width: 1.3, run});
      }
      for (const series of monitor.series) {
        const shared = timeline.monitors.filter((one) => has(one, series)).length > 1;
        const label = ofRun(labelOf(monitor, series, shared));
        const line = {...withHealth(monitor, series), label, run, monitor: monitor.name, component: series.component};
        if (series.field !== "mean") {
          others.get(tagOf(series))?.lines.push({...line, colour: colour(others.get(tagOf(series)).lines.length)});
        } else if (series.component === WHOLE) {
          whole.lines.push({...line, colour: colour(whole.lines.length), band: options.bands, chained: options.chains});
        } else if (!options.hidden.has(series.component)) {
          const hue = componentColour(components, series.component, options.dark);
          parts.lines.push({...line, colour: hue, band: options.partBands, dash: several && place ? [2 + 3 * place, 3] : []});
        }
      }
    }
  });
  return [loss, whole, parts, ...others.values()].filter((panel) => panel.lines.length);
}

export function componentColour(components, component, dark) {
  const place = components.indexOf(component);
  if (components.length <= 8) return palette(dark).series[place];
  return sequential(place / (components.length - 1), dark);
}

function plain(steps, values) {
  return {steps, values, ok: null, reasons: {}, low: null, high: null, stderr: null, dash: [], width: 1.3, dots: true};
}

function withHealth(monitor, series) {
  return {
    ...plain(monitor.steps, series.value),
    width: 1.6, ok: series.ok, reasons: series.reasons ?? {}, stderr: series.stderr,
    low: series.lower ?? null, high: series.upper ?? null, chains: series.chains ?? null, failure: monitor.failure,
  };
}

function has(monitor, {component, key, field}) {
  return monitor.series.some((one) => one.component === component && one.key === key && one.field === field);
}

function labelOf(monitor, {component, key, field}, several) {
  const quantity = key === "llc" ? "LLC" : key;
  const mean = component === WHOLE ? quantity : `${quantity} of ${component}`;
  const what = field === "mean" ? mean : `${component}/${key}/${field}`;
  return several ? `${monitor.name}: ${what}` : what;
}
