// Draws long lines into pixels, column by column: many times as fast as a canvas that strokes them without a graphics
// card. It has the painter's curve, band and circles, of lines that run from left to right.

export class RasterPainter {
  constructor(left, top, width, height, density) {
    Object.assign(this, {left, top, density});
    this.wide = Math.max(Math.round(width * density), 1);
    this.tall = Math.max(Math.round(height * density), 1);
    this.pixels = new Uint32Array(this.wide * this.tall); // column after column
    this.bytes = new Uint8ClampedArray(this.pixels.buffer);
  }

  // What lies in one column is one stretch, from its lowest to its highest point.
  curve(line, {stroke, width = 1.5, dash = [], alpha = 1}) {
    const half = Math.max(width * this.density, 1) / 2;
    const period = dash.reduce((sum, one) => sum + one, 0) * this.density;
    const on = period ? dash[0] * this.density : 0;
    const colour = colourOf(stroke);
    this.#columns(line, (column, low, high) => {
      if (!period || column % period < on) this.#stretch(column, low - half, high + half, colour, alpha);
    });
  }

  // Between two lines: in each column from the lowest to the highest that either has there.
  band(lower, upper, {fill, alpha = 1}) {
    const colour = colourOf(fill);
    const [tops, bottoms] = [new Float64Array(this.wide).fill(Infinity), new Float64Array(this.wide).fill(-Infinity)];
    for (const line of [lower, upper]) {
      this.#columns(line, (column, low, high) => {
        tops[column] = Math.min(tops[column], low);
        bottoms[column] = Math.max(bottoms[column], high);
      });
    }
    for (let column = 0; column < this.wide; column++) this.#stretch(column, tops[column], bottoms[column], colour, alpha);
  }

  circles(spots, radius, {stroke, width, alpha = 1}) {
    const {left, top, density, wide, tall, pixels} = this;
    for (const fill of new Set(spots.map((spot) => spot[2]))) {
      const {reach, dots} = markOf(radius * density, (width * density) / 2, stroke, fill);
      for (const spot of spots) {
        if (spot[2] !== fill) continue;
        const x = Math.floor((spot[0] - left) * density);
        const y = Math.floor((spot[1] - top) * density);
        const whole = alpha === 1 && x >= reach && y >= reach && x < wide - reach && y < tall - reach;
        for (let k = 0; k < dots.length; k++) {
          const {dx, dy, colour, share} = dots[k];
          if (whole && share === 1) pixels[(x + dx) * tall + y + dy] = colour.word;
          else this.#put(x + dx, y + dy, colour, share * alpha);
        }
      }
    }
  }

  picture() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, {width: this.wide, height: this.tall});
    const context = canvas.getContext("2d", {willReadFrequently: true}); // kept where its pixels come from
    const image = context.createImageData(this.wide, this.tall);
    const rows = new Uint32Array(image.data.buffer);
    const {pixels, wide, tall} = this;
    for (let row = 0, to = 0; row < tall; row++) {
      for (let from = row; from < pixels.length; from += tall) rows[to++] = pixels[from];
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  // told(column, from, to) of every column that a line crosses.
  #columns({places, values, y, range: [first, last]}, told) {
    const {left, top, density, wide} = this;
    let [column, low, high, x0, y0, broken] = [-1, 0, 0, 0, 0, true];
    const flush = () => {
      if (column >= 0 && column < wide) told(column, low, high);
    };
    for (let i = first; i <= last; i++) {
      const height = (y(values[i]) - top) * density;
      if (!Number.isFinite(height)) {
        broken = true;
        continue;
      }
      const x = (places[i] - left) * density;
      const at = Math.floor(x);
      if (!broken && at > column) {
        const slope = (height - y0) / (x - x0);
        let edge = y0 + slope * (column + 1 - x0);
        if (edge < low) low = edge;
        if (edge > high) high = edge;
        flush();
        for (let k = Math.max(column + 1, 0); k < Math.min(at, wide); k++) {
          const [from, to] = [y0 + slope * (k - x0), y0 + slope * (k + 1 - x0)];
          told(k, from < to ? from : to, from < to ? to : from);
        }
        edge = y0 + slope * (at - x0);
        [column, low, high] = [at, edge, edge];
      } else if (broken) {
        flush();
        [column, low, high, broken] = [at, height, height, false];
      }
      if (height < low) low = height;
      if (height > high) high = height;
      [x0, y0] = [x, height];
    }
    flush();
  }

  // From one height to another, with part of the pixels at both ends.
  #stretch(column, top, bottom, colour, alpha) {
    const from = Math.max(top, 0);
    const to = Math.min(bottom, this.tall);
    if (!(to > from)) return;
    const start = Math.ceil(from);
    const end = Math.floor(to);
    if (end < start) return this.#put(column, end, colour, (to - from) * alpha); // within one pixel
    if (start > from) this.#put(column, start - 1, colour, (start - from) * alpha);
    if (to > end) this.#put(column, end, colour, (to - end) * alpha);
    const {pixels, tall} = this;
    if (alpha === 1) for (let at = column * tall + start; at < column * tall + end; at++) pixels[at] = colour.word;
    else for (let row = start; row < end; row++) this.#put(column, row, colour, alpha);
  }

  // One pixel over what is there.
  #put(x, y, {rgb, word}, share) {
    if (x < 0 || y < 0 || x >= this.wide || y >= this.tall) return;
    const place = x * this.tall + y;
    if (share > 0.99) {
      this.pixels[place] = word;
      return;
    }
    const {bytes} = this;
    const i = 4 * place;
    const below = (bytes[i + 3] / 255) * (1 - share);
    const whole = share + below;
    if (!(whole > 0)) return;
    for (let k = 0; k < 3; k++) bytes[i + k] = (rgb[k] * share + bytes[i + k] * below) / whole;
    bytes[i + 3] = 255 * whole;
  }
}

const marks = new Map();

function markOf(radius, half, stroke, fill) {
  const key = `${stroke} ${fill} ${radius} ${half}`;
  if (!marks.has(key)) marks.set(key, mark(radius, half, colourOf(stroke), colourOf(fill)));
  return marks.get(key);
}

// A ring and its ground, pixel by pixel.
function mark(radius, half, line, ground) {
  const reach = Math.ceil(radius + half + 1);
  const part = (far) => Math.min(Math.max(0.5 - far, 0), 1);
  const dots = [];
  for (let dx = -reach; dx <= reach; dx++) {
    for (let dy = -reach; dy <= reach; dy++) {
      const far = Math.hypot(dx, dy) - radius;
      const [ring, share] = [part(Math.abs(far) - half), part(far - half)];
      const mixed = ground.rgb.map((one, k) => one + (line.rgb[k] - one) * Math.min(ring / share, 1));
      if (share > 0) dots.push({dx, dy, share, colour: colourFrom(mixed)});
    }
  }
  return {reach, dots};
}

function colourFrom(rgb) {
  return {rgb, word: new Uint32Array(Uint8ClampedArray.from([...rgb, 255]).buffer)[0]};
}

const known = new Map();
let pot = null;

// Of any colour that a style sheet takes.
function colourOf(text) {
  if (!known.has(text)) {
    pot ??= document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    pot.fillStyle = text;
    pot.fillRect(0, 0, 1, 1);
    known.set(text, colourFrom([...pot.getImageData(0, 0, 1, 1).data.slice(0, 3)]));
  }
  return known.get(text);
}
