// A card of the page: title, controls, a canvas that is drawn by one function, hover, and export of picture and numbers.
import {button, csv, download, el, fileName} from "./dom.js";
import {CanvasPainter, SvgPainter, palette} from "./paint.js";

// A figure draws itself with draw(painter, width, height, theme). hover(x, y) answers null or
// {lines: [text], mark(painter, theme)}; press(x, y) is a click; keys(event) answers whether it took the key.
export function figure({label, height, draw, hover = () => null, press = null, keys = null, drag = null, wheel = null}) {
  const picture = el("canvas", {"aria-hidden": "true"});
  const overlay = el("canvas", {tabIndex: 0, role: "img", "aria-label": label, class: "overlay"});
  const tip = el("div", {class: "tip", hidden: true, role: "status"});
  const node = el("div", {class: "figure"}, picture, overlay, tip);
  let theme = {dark: false, ...palette(false)};
  let pinned = null;

  const size = () => [node.clientWidth, typeof height === "function" ? height() : height];

  function prepare(canvas) {
    const [width, tall] = size();
    const density = window.devicePixelRatio || 1;
    Object.assign(canvas, {width: Math.round(width * density), height: Math.round(tall * density)});
    Object.assign(canvas.style, {width: `${width}px`, height: `${tall}px`});
    const context = canvas.getContext("2d");
    context.scale(density, density);
    return new CanvasPainter(context);
  }

  let asked = false;
  function redraw(next = theme) {
    theme = next;
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      const [width, tall] = size();
      node.style.height = `${tall}px`;
      if (!width) return; // another tab is shown: the observer tells when this one is
      draw(prepare(picture), width, tall, theme);
      show(pinned && hover(...pinned), pinned);
    });
  }

  function show(found, place) {
    const painter = prepare(overlay);
    const [width, tall] = size();
    if (found?.mark) found.mark(painter, theme, width, tall);
    tip.hidden = !found?.lines?.length;
    if (tip.hidden) return;
    tip.replaceChildren(...found.lines.map((line) => el("div", {}, line)));
    const left = place[0] > width / 2 ? place[0] - tip.offsetWidth - 14 : place[0] + 14;
    const top = Math.min(Math.max(place[1] - tip.offsetHeight / 2, 0), Math.max(tall - tip.offsetHeight, 0));
    Object.assign(tip.style, {left: `${Math.max(left, 0)}px`, top: `${top}px`});
  }

  const point = (event) => {
    const box = overlay.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let held = null;
  overlay.addEventListener("pointermove", (event) => {
    const place = point(event);
    if (held && drag && (held.moved || Math.abs(place[0] - held.from[0]) > 4)) {
      held.moved = true;
      drag(place[0] - held.at[0], place[1] - held.at[1]);
      held.at = place;
      return;
    }
    pinned = place;
    show(hover(...place), place);
  });
  overlay.addEventListener("pointerleave", () => show((pinned = null), null));
  overlay.addEventListener("pointerdown", (event) => {
    held = {from: point(event), at: point(event), moved: false};
    overlay.setPointerCapture(event.pointerId);
  });
  overlay.addEventListener("pointerup", (event) => {
    const moved = held?.moved;
    held = null;
    if (!moved && press) press(...point(event));
  });
  overlay.addEventListener("keydown", (event) => {
    if (keys && !event.altKey && !event.metaKey && keys(event)) event.preventDefault();
  });
  if (wheel) {
    overlay.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.shiftKey) return; // plain turning scrolls the page
      event.preventDefault();
      wheel(point(event)[0], event.deltaY || event.deltaX);
    }, {passive: false});
  }
  new ResizeObserver(() => redraw()).observe(node);

  function svg() {
    const [width, tall] = size();
    const painter = new SvgPainter(width || 900, tall, theme.paper);
    draw(painter, width || 900, tall, theme);
    return painter.toString();
  }
  const describe = (text) => overlay.setAttribute("aria-label", text);
  const point_at = (x, y) => show(hover(x, y), (pinned = [x, y]));
  return {node, redraw, svg, describe, pointAt: point_at, theme: () => theme};
}

// One view: its heading, what it shows in a sentence, controls, content or a message in its place.
export function card({name, title, hint, controls = [], content, figures = [], table}) {
  const message = el("p", {class: "message", hidden: true});
  const place = el("p", {class: "where", hidden: true});
  const body = el("div", {class: "content"}, content);
  const exported = () => [name, node.dataset.what ?? ""].filter(Boolean);
  const exports = el(
    "div", {class: "exports"},
    figures.map(([part, drawn]) => {
      const label = part ? `SVG: ${part}` : "SVG";
      const save = () => download(`${fileName(...exported(), part)}.svg`.replace("-.", "."), "image/svg+xml", drawn.svg());
      return button(label, `Save this picture as SVG${part ? ` (${part})` : ""}`, save, {class: "quiet"});
    }),
    button("CSV", "Save the numbers of this view as CSV", () => {
      download(`${fileName(...exported())}.csv`, "text/csv", csv(table()));
    }, {class: "quiet"}),
  );
  const heading = el("h2", {id: `slt-${name}`}, title);
  const head = el("header", {}, heading, el("div", {class: "controls"}, controls), exports);
  const node = el(
    "section", {class: "card", "data-view": name, "aria-labelledby": `slt-${name}`},
    head, el("p", {class: "hint"}, hint), place, message, body,
  );

  // null: there is something to show; a text: why not.
  function say(text, isError = false) {
    message.hidden = text === null;
    message.textContent = text ?? "";
    message.classList.toggle("error", isError);
    body.hidden = exports.hidden = text !== null;
    if (text !== null) place.hidden = true;
  }
  const where = (text) => {
    place.hidden = !text;
    place.textContent = text ?? "";
  };
  return {node, say, where, table, redraw: (theme) => figures.forEach(([, drawn]) => drawn.redraw(theme))};
}
