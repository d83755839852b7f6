// The bar under the timeline: which reading the views below show, and playing through them.
import {button, el, select, fillSelect} from "./dom.js";

export function scrubber({goTo, focus}) {
  let steps = [];
  let place = 0;
  let playing = false;
  let pause = 400;
  const slider = el("input", {type: "range", min: "0", max: "0", step: "1", "aria-label": "Reading", oninput: () => goTo(steps[Number(slider.value)])});
  const says = el("output", {});
  const play = button("▶ play", "Play through the readings", toggle);
  const speed = select("Pause", [[1000, "1 s"], [400, "0.4 s"], [100, "0.1 s"]], pause, (value) => (pause = Number(value)));
  const runChoice = select("Run", [], null, focus);
  const node = el(
    "section", {class: "card scrub", "data-view": "scrubber", "aria-label": "Reading shown below"},
    play, button("◀", "Reading before", () => move(-1)), button("▶", "Next reading", () => move(1)), slider, says, runChoice, speed,
  );

  function move(by) {
    const next = Math.min(Math.max(place + by, 0), steps.length - 1);
    if (steps.length) return goTo(steps[next]);
  }

  // One reading after another, each shown before the next is asked for; at the end from the beginning.
  async function toggle() {
    playing = !playing;
    play.textContent = playing ? "❚❚ stop" : "▶ play";
    if (playing && place === steps.length - 1) await goTo(steps[0]);
    while (playing) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (!playing) break;
      if (place >= steps.length - 1) return toggle();
      await goTo(steps[place + 1]);
    }
  }

  return {
    node, move,
    runs(names, chosen) {
      fillSelect(runChoice.querySelector("select"), names.map((name) => [name, name]), chosen);
      runChoice.hidden = names.length < 2;
    },
    steps(all, at) {
      [steps, place] = [all, at ?? 0];
      slider.max = String(Math.max(all.length - 1, 0));
      slider.value = String(place);
      says.textContent = at === null ? "" : `step ${all[at]} · reading ${at + 1} of ${all.length}`;
      slider.setAttribute("aria-valuetext", says.textContent);
    },
  };
}
