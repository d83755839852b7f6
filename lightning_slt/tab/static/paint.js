// One drawing code for screen and file: views draw with a painter, which is a canvas or an SVG document.
import {path} from "./lines.js";
import {RasterPainter} from "./raster.js";

const SVG = "http://www.w3.org/2000/svg";
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

export class CanvasPainter {
  constructor(context) {
    this.context = context;
  }

  rect(x, y, width, height, {fill, stroke, alpha = 1} = {}) {
    this.#with(alpha, (c) => {
      if (fill) (c.fillStyle = fill), c.fillRect(x, y, width, height);
      if (stroke) (c.strokeStyle = stroke), (c.lineWidth = 1), c.strokeRect(x, y, width, height);
    });
  }

  line(points, {stroke, width = 1.5, dash = [], alpha = 1}) {
    this.#with(alpha, (c) => {
      Object.assign(c, {strokeStyle: stroke, lineWidth: width, lineJoin: "round"});
      c.setLineDash(dash);
      c.beginPath();
      for (const [x, y, jump] of points) jump ? c.moveTo(x, y) : c.lineTo(x, y);
      c.stroke();
    });
  }

  area(points, {fill, alpha = 1}) {
    this.#with(alpha, (c) => {
      c.fillStyle = fill;
      c.beginPath();
      for (const [x, y] of points) c.lineTo(x, y);
      c.fill();
    });
  }

  curve(line, style) {
    this.line(path(line), style);
  }

  band(lower, upper, style) {
    const [low, high] = [lower, upper].map(path);
    if (low.length > 1) this.area([...low, ...high.reverse()], style);
  }

  circle(x, y, radius, {fill, stroke, width = 1.5, alpha = 1} = {}) {
    this.#with(alpha, (c) => {
      c.beginPath();
      c.arc(x, y, radius, 0, 2 * Math.PI);
      if (fill) (c.fillStyle = fill), c.fill();
      if (stroke) Object.assign(c, {strokeStyle: stroke, lineWidth: width}), c.stroke();
    });
  }

  // Many at once, [x, y, fill, what it stands for].
  circles(spots, radius, style) {
    for (const [x, y, fill] of spots) this.circle(x, y, radius, {...style, fill});
  }

  text(x, y, text, {fill, size = 11, anchor = "start", baseline = "alphabetic", rotate = 0, weight = 400} = {}) {
    this.#with(1, (c) => {
      Object.assign(c, {fillStyle: fill, font: `${weight} ${size}px ${FONT}`});
      Object.assign(c, {textAlign: anchor === "middle" ? "center" : anchor, textBaseline: baseline});
      c.translate(x, y);
      c.rotate((rotate * Math.PI) / 180);
      c.fillText(text, 0, 0);
    });
  }

  image(picture, x, y, width, height) {
    this.#with(1, (c) => {
      c.imageSmoothingEnabled = picture.width > width;
      c.drawImage(picture, x, y, width, height);
    });
  }

  // A part of the picture in which inside(painter) draws much.
  crowded(x, y, width, height, inside) {
    const {a: density, e: left, f: top} = this.context.getTransform();
    const raster = new RasterPainter(x, y, width, height, density);
    inside(raster);
    this.#with(1, (c) => {
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.drawImage(raster.picture(), Math.round(x * density + left), Math.round(y * density + top));
    });
  }

  clip(x, y, width, height, inside) {
    this.#with(1, (c) => {
      c.beginPath();
      c.rect(x, y, width, height);
      c.clip();
      inside();
    });
  }

  #with(alpha, draw) {
    this.context.save();
    this.context.globalAlpha = alpha;
    draw(this.context);
    this.context.restore();
  }
}

export class SvgPainter {
  #clips = 0;

  constructor(width, height, background) {
    this.root = this.parent = this.#make("svg", {xmlns: null, viewBox: `0 0 ${width} ${height}`, width, height});
    this.rect(0, 0, width, height, {fill: background});
  }

  rect(x, y, width, height, {fill = "none", stroke = "none", alpha} = {}) {
    this.#add("rect", {x, y, width, height, fill, stroke, opacity: alpha});
  }

  line(points, {stroke, width = 1.5, dash = [], alpha}) {
    if (!points.length) return;
    const d = points.map(([x, y, jump], i) => `${i === 0 || jump ? "M" : "L"}${round(x)} ${round(y)}`).join("");
    const style = {fill: "none", stroke, "stroke-width": width, "stroke-dasharray": dash.join(" ") || null};
    this.#add("path", {d, ...style, "stroke-linejoin": "round", opacity: alpha});
  }

  area(points, {fill, alpha}) {
    const corners = points.map(([x, y]) => `${round(x)},${round(y)}`).join(" ");
    this.#add("polygon", {points: corners, fill, opacity: alpha});
  }

  curve(line, style) {
    this.line(path(line), style);
  }

  band(lower, upper, style) {
    const [low, high] = [lower, upper].map(path);
    if (low.length > 1) this.area([...low, ...high.reverse()], style);
  }

  circle(x, y, radius, {fill = "none", stroke = "none", width = 1.5, alpha, data = {}} = {}) {
    const named = Object.fromEntries(Object.entries(data).map(([name, value]) => [`data-${name}`, value]));
    const place = {cx: round(x), cy: round(y), r: radius};
    this.#add("circle", {...place, fill, stroke, "stroke-width": width, opacity: alpha, ...named});
  }

  circles(spots, radius, {data, ...style}) {
    for (const [x, y, fill, of] of spots) this.circle(x, y, radius, {...style, fill, data: data(of)});
  }

  text(x, y, text, {fill, size = 11, anchor = "start", baseline = "alphabetic", rotate = 0, weight = 400} = {}) {
    const vertical = {middle: "central", top: "text-before-edge"}[baseline] ?? "alphabetic";
    const style = {fill, "font-size": size, "font-family": FONT, "font-weight": weight, "text-anchor": anchor};
    const turn = rotate ? `rotate(${rotate} ${x} ${y})` : null;
    this.#add("text", {x, y, ...style, "dominant-baseline": vertical, transform: turn}).textContent = text;
  }

  image(picture, x, y, width, height) {
    const style = picture.width > width ? null : "image-rendering: pixelated";
    this.#add("image", {href: picture.toDataURL(), x, y, width, height, preserveAspectRatio: "none", style});
  }

  crowded(x, y, width, height, inside) {
    this.clip(x, y, width, height, () => inside(this));
  }

  clip(x, y, width, height, inside) {
    const id = `clip${this.#clips++}`;
    const path = this.#add("clipPath", {id});
    path.append(this.#make("rect", {x, y, width, height}));
    const group = this.#add("g", {"clip-path": `url(#${id})`});
    const outside = this.parent;
    this.parent = group;
    inside();
    this.parent = outside;
  }

  toString() {
    return new XMLSerializer().serializeToString(this.root);
  }

  #add(tag, attributes) {
    const element = this.#make(tag, attributes);
    this.parent.append(element);
    return element;
  }

  #make(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    return element;
  }
}

function round(value) {
  return Math.round(value * 100) / 100;
}

// Okabe and Ito's colours, which colour-blind people can tell apart; the dark theme takes lighter ones of the same hues.
const LIGHT = {
  ink: "#1f2328", soft: "#59636e", line: "#d1d9e0", faint: "#eef1f4", paper: "#ffffff", accent: "#0b62a8",
  bad: "#b3261e", low: [33, 102, 172], high: [178, 24, 43], middle: [247, 247, 247],
  series: ["#0072b2", "#d55e00", "#009e73", "#b5528f", "#a77600", "#2f92c8", "#6a51a3", "#7a6652"],
};
const DARK = {
  ink: "#e6edf3", soft: "#9aa4af", line: "#3d444d", faint: "#262c36", paper: "#1b1f24", accent: "#6cb6ff",
  bad: "#ff8a80", low: [94, 168, 240], high: [255, 120, 110], middle: [38, 43, 50],
  series: ["#58b4f0", "#ff9248", "#35d0a4", "#ea9ccb", "#f0bd45", "#8fd3f7", "#b7a4f0", "#c8b29b"],
};

export function palette(dark) {
  return dark ? DARK : LIGHT;
}

// From −1 to 1, through the middle at 0; what is no number is left clear.
export function diverging(colours, value) {
  if (!Number.isFinite(value)) return [0, 0, 0, 0];
  const share = Math.min(Math.abs(value), 1);
  const end = value < 0 ? colours.low : colours.high;
  return [...colours.middle.map((from, k) => Math.round(from + share * (end[k] - from))), 255];
}

// From dark to bright along a run; of even lightness steps on either ground.
export function sequential(share, dark) {
  const hue = 265 - 215 * share;
  return `hsl(${hue.toFixed(0)} 70% ${(dark ? 62 + 10 * share : 42 + 4 * share).toFixed(0)}%)`;
}

const SHADES = 255; // on either side: as many as a screen has

export function heatImage(rows, columns, value, colours) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, {width: columns, height: rows});
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const shades = Array.from({length: 2 * SHADES + 1}, (_, k) => new Uint32Array(Uint8Array.from(diverging(colours, k / SHADES - 1)).buffer)[0]);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const one = value(i, j);
      if (Number.isFinite(one)) pixels[i * columns + j] = shades[Math.round(SHADES * (1 + Math.min(Math.max(one, -1), 1)))];
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
