// Building elements. Text from data goes through textContent alone: nothing here reads HTML.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function button(label, title, onclick, attributes = {}) {
  return el("button", {type: "button", title, "aria-label": title, onclick, ...attributes}, label);
}

export function checkbox(label, checked, onchange, title) {
  const box = el("input", {type: "checkbox", checked, onchange: () => onchange(box.checked)});
  return el("label", {class: "check", title}, box, el("span", {}, label));
}

export function select(label, options, chosen, onchange) {
  const list = el("select", {"aria-label": label, onchange: () => onchange(list.value)});
  fillSelect(list, options, chosen);
  return el("label", {class: "choice"}, el("span", {}, label), list);
}

export function fillSelect(list, options, chosen) {
  list.replaceChildren(...options.map(([value, text]) => el("option", {value: String(value)}, text)));
  if (options.some(([value]) => String(value) === String(chosen))) list.value = String(chosen);
}

export function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], {type}));
  const link = el("a", {href: address, download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// Quoted where needed; text that a spreadsheet would run as a formula gets an apostrophe.
export function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
    const text = /^[=+@\t\r-]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function fileName(...parts) {
  return parts.join("-").replace(/[^\w.-]+/g, "_");
}

export function numberText(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(digits - 2).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

export function withError(value, stderr) {
  return stderr === null || stderr === undefined ? numberText(value) : `${numberText(value)} ± ${numberText(stderr, 2)}`;
}
