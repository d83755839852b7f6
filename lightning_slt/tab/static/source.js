// Where the views get their data: over HTTP from the plugin, or from an object embedded in a report.
//
// A source has three methods: json(path, params), array(path, params) → {shape, values}, and live (whether data can
// change). Paths are those of the plugin's routes: "data/runs", "data/timeline", "data/reading", "data/array",
// "data/kernel", "data/responses", "data/influence", "data/trajectory".
//
// For whoever inlines these modules: every import reads `from "./name.js"`, and index.js alone uses import.meta. A
// report runs
//     import {mount} from "./app.js"; import {embedded} from "./source.js"; mount(element, embedded(entries));
// with entries a list of [path, params, value]; value is what the route answers, {"error": text} where it would refuse,
// and of "data/array" {"shape": [...], "base64": little-endian float32}.

export function http(base) {
  async function answer(path, params) {
    const url = new URL(path, base);
    for (const [name, value] of Object.entries(params ?? {})) url.searchParams.set(name, value);
    const response = await fetch(url);
    if (response.ok) return response;
    const body = await response.text();
    throw new Error(errorIn(body) ?? `${path}: the server answered ${response.status}`);
  }
  return {
    live: true,
    json: async (path, params) => (await answer(path, params)).json(),
    array: async (path, params) => {
      const response = await answer(path, params);
      const values = new Float32Array(await response.arrayBuffer());
      return {shape: JSON.parse(response.headers.get("X-Shape")), values};
    },
  };
}

function errorIn(body) {
  try {
    return JSON.parse(body).error ?? null;
  } catch {
    return null; // not JSON: a proxy's page, say
  }
}

export function embedded(entries) {
  const kept = new Map(entries.map(([path, params, value]) => [keyOf(path, params), value]));
  function find(path, params) {
    const value = kept.get(keyOf(path, params));
    if (value === undefined) throw new Error("This report does not hold that view; open the run in TensorBoard.");
    if (value !== null && value.error) throw new Error(value.error);
    return value;
  }
  return {
    live: false,
    json: async (path, params) => find(path, params),
    array: async (path, params) => {
      const found = find(path, params);
      return {shape: found.shape, values: new Float32Array(bytesOf(found.base64).buffer)};
    },
  };
}

function keyOf(path, params) {
  const sorted = Object.entries(params ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([path, ...sorted.map(([name, value]) => [name, String(value)])]);
}

export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// Half precision: sign, 5 bits of exponent, 10 of fraction.
export function halves(base64) {
  const bytes = bytesOf(base64);
  const words = new Uint16Array(bytes.buffer, 0, bytes.length >> 1);
  return Float32Array.from(words, (word) => {
    const sign = word & 0x8000 ? -1 : 1;
    const exponent = (word >> 10) & 0x1f;
    const fraction = word & 0x3ff;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

// Answers are kept until the run's stamp changes; a failed question may be asked again.
export function cached(source, limit = 200) {
  const kept = new Map();
  function remember(kind, path, params, stamp) {
    const key = JSON.stringify([kind, keyOf(path, params), stamp ?? null]);
    if (!kept.has(key)) {
      if (kept.size >= limit) kept.delete(kept.keys().next().value);
      const answer = source[kind](path, params);
      kept.set(key, answer);
      answer.catch(() => kept.delete(key));
    }
    return kept.get(key);
  }
  return {
    live: source.live,
    fresh: (path, params) => source.json(path, params),
    json: (path, params, stamp) => remember("json", path, params, stamp),
    array: (path, params, stamp) => remember("array", path, params, stamp),
  };
}
