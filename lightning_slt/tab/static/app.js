// The application: what is chosen, where the cursor stands, and which view is told of it.
//
// mount(element, source, {dark}) gives {refresh, setDark}; dark null follows the system.
import {button, el, select, fillSelect} from "./dom.js";
import {card} from "./figure.js";
import {healthView, idOf} from "./health.js";
import {influenceView} from "./influence.js";
import {kernelView} from "./kernel.js";
import {before, closest, failures, latest, readingsOf, stagesBy} from "./lists.js";
import {loader} from "./loader.js";
import {palette} from "./paint.js";
import {otherNumbers, panels} from "./panels.js";
import {responsesView} from "./responses.js";
import {scrubber} from "./scrubber.js";
import {sidebar} from "./sidebar.js";
import {cached} from "./source.js";
import {STYLE} from "./style.js";
import {timelineFigure} from "./timeline.js";
import {timelineTable} from "./tables.js";
import {trajectoryView} from "./trajectory.js";

const POLL = 5000;
const KINDS = {kernel: "KernelEstimate", responses: "Responses", influence: "Influence"};

export function mount(place, origin, {dark = null} = {}) {
  const source = cached(origin);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const loaded = new Map(); // run → timeline
  const state = {
    runs: [], chosen: [], focus: null, step: null, following: true, hidden: new Set(), other: [], highlight: null,
    logSteps: true, logLoss: false, bands: true, chains: true, partBands: false, marks: true, reliableOnly: false, stagesOf: null,
    dark: dark ?? system.matches,
    timelines: () => state.chosen.map((run) => loaded.get(run)).filter(Boolean),
  };
  let model = {panels: [], stages: [], events: [], cursor: null};
  const wanted = new Map(); // kind → entry that its view shows
  const theme = () => ({dark: state.dark, ...palette(state.dark)});

  document.head.append(el("style", {}, STYLE));
  const status = el("p", {class: "status", role: "status"});
  const banner = el("p", {class: "message error", role: "alert", hidden: true});
  const warnings = el("details", {class: "warnings", hidden: true}, el("summary", {}), el("ul", {}));

  const context = {
    get theme() { return theme(); },
    run: () => state.focus,
    step: () => state.step,
    goTo,
    ask: (path, params, stamp) => source.json(path, params, stamp),
    askArray: (path, params, stamp) => source.array(path, params, stamp),
    current: (kind, entry) => wanted.get(kind) === entry,
    guard,
    choice(kind) {
      const node = select("Estimate", [], null, () => details());
      choices[kind] = {node, list: node.querySelector("select")};
      return choices[kind];
    },
  };
  const choices = {};
  const views = {kernel: kernelView(context), trajectory: trajectoryView(context), responses: responsesView(context),
    influence: influenceView(context), health: healthView(context)};

  const drawnTimeline = timelineFigure(() => model, {
    cursor: goTo, move: (by) => scrub.move(by),
    highlight: (name) => highlight(name),
  });
  const keys = el("p", {class: "hint"}, "Keys on the picture: ", ...["← →", "readings", "+ −", "zoom", "0", "all", "shift ← →", "pan"].map(
    (word, k) => el(k % 2 ? "span" : "kbd", {}, k % 2 ? ` ${word}  ` : word)), ". Ctrl or shift and the wheel zoom; drag to pan; click to move the cursor.");
  const timeline = card({
    name: "timeline", title: "Timeline",
    hint: "The learning coefficient (LLC) counts the directions in weight space that matter to the loss: more, and the network "
      + "is more complex. Bands are 90 % intervals; hollow points failed a health check (point at one to see which). Tinted "
      + "stretches are stages, triangles are events.",
    controls: [
      button("−", "Zoom out", () => drawnTimeline.zoom(1 / 0.6)), button("+", "Zoom in", () => drawnTimeline.zoom(0.6)),
      button("all", "Show all steps", () => drawnTimeline.reset()),
    ],
    content: el("div", {}, drawnTimeline.node, keys), figures: [["", drawnTimeline]],
    table: () => timelineTable(state.timelines()),
  });
  const scrub = scrubber({goTo, details, focus: (run) => {
    state.focus = run;
    side.draw();
    goTo(state.step);
  }});
  const side = sidebar(state, {options: redrawTimeline, run: choose, highlight});
  const all = Object.values(views);
  place.classList.add("slt");
  place.append(side.node, el("div", {class: "views"}, banner, timeline.node, scrub.node, ...all.map((view) => view.node), warnings, status));

  const watcher = new IntersectionObserver((seen) => {
    for (const {target, isIntersecting} of seen) {
      const view = all.find(({node}) => node === target);
      view.visible = isIntersecting;
    }
    details();
  }, {rootMargin: "200px"});
  for (const view of all) watcher.observe(view.node);

  function highlight(component) {
    if (state.highlight === component) return;
    state.highlight = model.highlight = component;
    side.light(component);
    drawnTimeline.redraw(theme());
  }

  async function choose(run, on) {
    state.chosen = on ? [...state.chosen, run] : state.chosen.filter((one) => one !== run);
    await load();
  }

  // Runs, then the timelines of those that are shown and have changed.
  async function refresh() {
    try {
      state.runs = await source.fresh("data/runs");
    } catch (error) {
      return say(error.message);
    }
    const names = state.runs.map(({run}) => run);
    state.chosen = state.chosen.filter((run) => names.includes(run));
    const full = state.runs.filter(({readings, monitors}) => readings || monitors.length);
    if (!state.chosen.length && full.length) state.chosen = [latest(full)];
    await load();
  }

  const load = loader(source, state, loaded, {arrange, progress: (text) => timeline.where(text)});

  function arrange(problems) {
    for (const one of state.runs) {
      const known = loaded.get(one.run);
      if (known && !known.waiting) one.readings = readingsOf(known);
    }
    const numbers = otherNumbers(state.timelines());
    state.other = state.other.filter((tag) => numbers.includes(tag));
    const whole = panels(state.timelines(), {...state, other: []}).some(({name}) => name !== "loss");
    if (!whole && !state.other.length) state.other = numbers.slice(0, 2);
    if (!state.chosen.includes(state.focus)) state.focus = state.chosen.at(-1) ?? null;
    say(problems.join("\n") || nothing());
    scrub.runs(state.chosen, state.focus);
    side.draw();
    warn();
    const steps = stepsOf(state.focus);
    goTo(state.following || state.step === null ? steps.at(-1) ?? null : state.step);
  }

  function nothing() {
    const told = state.runs.map(({message}) => message).find(Boolean);
    if (!state.runs.some(({monitors}) => monitors.length)) {
      return told ?? "No run here has readings yet: add LLCMonitor() to the Trainer's callbacks.";
    }
    if (!state.chosen.length) return "No run is chosen: tick one on the left.";
    const empty = state.chosen.filter((run) => !stepsOf(run).length);
    return empty.length === state.chosen.length ? `No reading yet in ${empty.join(", ")}; the first one appears here when it is made.` : null;
  }

  function say(text) {
    banner.hidden = !text;
    banner.textContent = text ?? "";
    status.textContent = `${state.chosen.length} of ${state.runs.length} runs shown, as of ${new Date().toLocaleTimeString()}`;
  }

  function warn() {
    const messages = state.timelines().flatMap(({run, messages}) => messages.map((text) => `${run}: ${text}`));
    warnings.hidden = !messages.length;
    warnings.open ||= messages.length > 0 && messages.length <= 3;
    warnings.firstChild.textContent = messages.length === 1 ? "One record was left out" : `${messages.length} records were left out`;
    warnings.lastChild.replaceChildren(...messages.slice(0, 200).map((text) => el("li", {}, text)));
  }

  const stepsOf = (run) => {
    const steps = (loaded.get(run)?.monitors ?? []).flatMap((monitor) => monitor.steps);
    return [...new Set(steps)].sort((a, b) => a - b);
  };

  function goTo(step) {
    const steps = stepsOf(state.focus);
    const at = steps.length && step !== null ? closest(steps, step) : null;
    state.step = at === null ? null : steps[at];
    state.following = at === null || at === steps.length - 1;
    scrub.steps(steps, at);
    redrawTimeline();
    views.trajectory.redraw();
    return details();
  }

  function redrawTimeline() {
    const timelines = state.timelines();
    const of = timelines.find(({run}) => run === state.focus);
    const marked = state.marks && of;
    model = {
      panels: panels(timelines, state), cursor: state.step, logSteps: state.logSteps, highlight: state.highlight,
      reliableOnly: state.reliableOnly, stages: marked ? stagesOf(of) : [], events: marked ? [...of.events, ...failures(of)] : [],
    };
    timeline.node.hidden = !model.panels.length;
    const words = model.panels.map(({title}) => title).join("; ");
    drawnTimeline.describe(`Timeline of ${state.chosen.join(", ")}: ${words}. Cursor at step ${state.step ?? "none"}.`);
    drawnTimeline.redraw(theme());
  }

  function stagesOf(of) {
    const all = stagesBy(of);
    return all.get(state.stagesOf) ?? [...all.values()][0] ?? [];
  }

  // What the reading at the cursor holds, view by view; those out of sight wait until they are seen.
  async function details() {
    const timeline = loaded.get(state.focus);
    for (const view of all) view.node.hidden = !timeline || state.step === null;
    scrub.node.hidden = !timeline || state.step === null;
    if (!timeline || state.step === null) return;
    const {run, stamp} = timeline;
    const step = state.step;
    const messages = [];
    const answers = await Promise.all(timeline.monitors.filter(({steps}) => steps.length).map(async (monitor) => {
      const place = before(monitor.steps, step);
      const [at, index] = [monitor.steps[place], monitor.index[place]];
      try {
        const reading = await source.json("data/reading", {run, monitor: monitor.name, index}, stamp);
        messages.push(...reading.messages ?? []);
        if (reading.failure) messages.push(`the reading of ${monitor.name} at step ${at} failed: ${reading.failure}`);
        return reading.estimates.map((estimate) => ({run, monitor: monitor.name, index, step: at, stamp, settings: reading.settings,
          component: estimate.component, key: estimate.key, estimate}));
      } catch (error) {
        messages.push(`${monitor.name}, reading ${index}: ${error.message}`);
        return [];
      }
    }));
    if (state.step !== step || state.focus !== run) return;
    const entries = answers.flat();
    views.health.where(messages.join("; "));
    await Promise.all([
      ...Object.keys(KINDS).map((kind) => detail(kind, entries.filter(({estimate}) => estimate.kind === KINDS[kind]), messages.join("; "))),
      views.health.visible && once(views.health, [run, step, stamp], () => views.health.update(entries)),
      follow({run, stamp}, entries.some(({estimate}) => estimate.kind === "Position")),
    ]);
  }

  async function detail(kind, entries, failed) {
    const view = views[kind];
    const {node, list} = choices[kind];
    const before = list.value;
    fillSelect(list, entries.map((entry) => [idOf(entry), idOf(entry)]), before);
    node.hidden = entries.length < 2;
    const entry = entries.find((one) => idOf(one) === list.value);
    wanted.set(kind, entry);
    if (!entry) return view.say(failed ? `The reading at the cursor holds nothing to show here: ${failed}` : view.missing);
    if (!view.visible) return;
    view.where(`${idOf(entry)} at step ${entry.step}${entry.estimate.health.ok ? "" : `; unreliable: ${entry.estimate.health.text}`}`);
    await once(view, [entry.run, entry.step, idOf(entry), entry.index, entry.stamp], () => view.update(entry));
  }

  async function follow(where, logged) {
    if (!logged) return views.trajectory.say(views.trajectory.missing);
    if (views.trajectory.visible) await once(views.trajectory, [where.run, where.stamp], () => views.trajectory.update(where));
  }

  // Not made again where it stands already.
  function once(view, what, work) {
    const wanted = JSON.stringify(what);
    view.wants = wanted;
    return guard(view, async () => {
      if (view.shows === wanted) return;
      view.shows = null;
      await work();
      if (view.wants === wanted) view.shows = wanted;
    });
  }

  async function guard(view, work) {
    try {
      view.say(null);
      await work();
    } catch (error) {
      view.say(error.message, true);
    }
  }

  function setDark(value) {
    state.dark = value ?? system.matches;
    document.documentElement.classList.toggle("dark", state.dark);
    side.draw();
    redrawTimeline();
    for (const view of all) view.redraw(theme());
  }

  system.addEventListener("change", () => dark === null && setDark(null));
  setDark(dark);
  refresh();
  if (source.live) setInterval(() => document.visibilityState === "visible" && refresh(), POLL);
  return {refresh, setDark, state, timeline: drawnTimeline};
}
