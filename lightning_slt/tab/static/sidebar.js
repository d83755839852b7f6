// The left column: runs to show, components to show, and how to draw them.
import {button, checkbox, el, fillSelect, select} from "./dom.js";
import {stagesBy} from "./lists.js";
import {palette} from "./paint.js";
import {componentColour, componentsOf, groupOf, otherNumbers} from "./panels.js";

export function sidebar(state, changed) {
  const runList = el("div", {});
  const filter = el("input", {
    type: "search", placeholder: "filter runs", "aria-label": "Filter runs", oninput: () => drawRuns(), hidden: true,
  });
  const componentList = el("div", {});
  const parts = el("section", {"data-part": "components", "aria-label": "Components"}, el("h2", {}, "Components"), componentList);
  const otherList = el("div", {});
  const others = el("section", {"data-part": "others", "aria-label": "Other numbers"}, el("h2", {}, "Other numbers"), otherList);
  const stagesChoice = select("Stages of", [], null, (quantity) => {
    state.stagesOf = quantity;
    changed.options();
  });
  const option = (label, name, title) => checkbox(label, state[name], (on) => {
    state[name] = on;
    changed.options();
  }, title);
  const options = el(
    "section", {"data-part": "options", "aria-label": "Drawing"}, el("h2", {}, "Drawing"),
    option("Steps on a logarithmic axis", "logSteps", "Step 0 stands at the left edge: the axis is log(1 + step)"),
    option("Loss on a logarithmic axis", "logLoss"),
    option("Bands of the LLC", "bands", "The 90 % interval from the spread between chains"),
    option("Chains of the LLC", "chains", "The value of each chain as a thin line"),
    option("Bands of components", "partBands", "The 90 % interval from the spread between chains"),
    option("Stages and events", "marks"),
    stagesChoice,
    option("Scale by reliable readings only", "reliableOnly", "Unreliable ones beyond the scale are drawn at its edge"),
  );
  const node = el(
    "aside", {},
    el("section", {"data-part": "runs", "aria-label": "Runs"}, el("h2", {}, "Runs"), filter, runList),
    options, parts, others,
  );

  function drawRuns() {
    filter.hidden = state.runs.length < 12;
    const wanted = filter.value.toLowerCase();
    const chosen = state.chosen;
    runList.replaceChildren(...state.runs.filter(({run}) => run.toLowerCase().includes(wanted)).map(({run, readings, message}) => {
      const place = chosen.indexOf(run);
      const dot = el("i", {style: {background: place < 0 ? "transparent" : palette(state.dark).series[chosen.length > 1 ? place % 8 : 0]}});
      const many = readings === 1 ? "1 reading" : `${readings} readings`;
      const box = checkbox(`${run === "." ? "this folder" : run} · ${many}`, place >= 0, (on) => changed.run(run, on), message);
      return el("div", {class: "row"}, dot, box);
    }));
    if (!state.runs.length) runList.replaceChildren(el("p", {class: "hint"}, "none yet"));
  }

  function drawComponents() {
    const timelines = state.timelines();
    const components = componentsOf(timelines);
    parts.hidden = !components.length;
    const groups = new Map();
    for (const component of components) groups.set(groupOf(component), [...(groups.get(groupOf(component)) ?? []), component]);
    const set = (names, on) => {
      for (const name of names) on ? state.hidden.delete(name) : state.hidden.add(name);
      changed.options();
      drawComponents();
    };
    const row = (component) => {
      const dot = el("i", {style: {background: componentColour(components, component, state.dark)}});
      const light = (on) => () => changed.highlight(on ? component : null);
      const over = {onpointerenter: light(true), onpointerleave: light(false), onfocusin: light(true), onfocusout: light(false)};
      return el("div", {class: "row", "data-component": component, ...over}, dot,
        checkbox(component, !state.hidden.has(component), (on) => set([component], on)));
    };
    const all = el("div", {class: "controls"},
      button("all", "Show all components", () => set(components, true), {class: "quiet"}),
      button("none", "Hide all components", () => set(components, false), {class: "quiet"}));
    componentList.replaceChildren(all, ...[...groups].map(([group, members]) => {
      if (!group || members.length < 2) return el("div", {}, members.map(row));
      const on = members.some((name) => !state.hidden.has(name));
      const box = checkbox(group, on, (value) => set(members, value), `Show or hide all of ${group}`);
      return el("div", {class: "group"}, box, el("div", {class: "members"}, members.map(row)));
    }));
  }

  function drawOthers() {
    const tags = otherNumbers(state.timelines());
    others.hidden = !tags.length;
    otherList.replaceChildren(...tags.map((tag) => checkbox(tag, state.other.includes(tag), (on) => {
      state.other = on ? [...state.other, tag] : state.other.filter((one) => one !== tag);
      changed.options();
    })));
  }

  function drawStages() {
    const of = state.timelines().find(({run}) => run === state.focus);
    const names = of ? [...stagesBy(of).keys()] : [];
    stagesChoice.hidden = !names.length;
    fillSelect(stagesChoice.querySelector("select"), names.map((name) => [name, name]), state.stagesOf);
  }

  function light(component) {
    for (const row of componentList.querySelectorAll(".row")) row.classList.toggle("lit", row.dataset.component === component);
  }

  return {node, draw: () => [drawRuns(), drawComponents(), drawOthers(), drawStages()], light};
}
