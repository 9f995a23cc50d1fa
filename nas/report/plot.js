"use strict";
// Nodes, numbers, axes, tables: what the figures of page.js are made of. Text only ever becomes text nodes, never markup.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const byId = id => document.getElementById(id);
const colour = i => `var(--c${i % COLOURS})`;
const isNumber = value => typeof value === "number" && isFinite(value);

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") node.style.cssText = value;  // through CSSOM: an attribute is for the policy to refuse
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

// ---- numbers -------------------------------------------------------------------------------------------------
const short = value => !isNumber(value) ? "–" : value === 0 ? "0" : String(Number(value.toPrecision(4)));
const percent = value => isNumber(value) ? `${(100 * value).toFixed(1)} %` : "–";
const millions = value => isNumber(value) ? `${short(value / 1e6)} M` : "–";
const accuracy = p => percent(p.accuracy) + (isNumber(p.accuracy_se) ? ` ± ${(100 * p.accuracy_se).toFixed(1)}` : "");

function span(values, log = false, pad = 0.06) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const room = Math.max(0.05, pad * Math.log(high / low));
    return [low * Math.exp(-room), high * Math.exp(room)];
  }
  const room = pad * (high - low) || 0.02 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function ticks([low, high], log, most) {
  if (log) {
    for (const steps of [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
        for (const step of steps) if (step * 10 ** e >= low && step * 10 ** e <= high) found.push(Number((step * 10 ** e).toPrecision(3)));
      if (found.length <= most && found.length > 1) return found;
    }
  }
  let step = 10 ** Math.floor(Math.log10((high - low) / most));
  step *= [1, 2, 5, 10].find(k => (high - low) / (step * k) <= most) || 10;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// ---- hover ---------------------------------------------------------------------------------------------------
const tip = byId("tip");
function hovering(node, text) {
  const show = event => {
    tip.textContent = text;
    tip.hidden = false;
    const box = event.type === "focus" ? node.getBoundingClientRect() : { right: event.clientX, bottom: event.clientY };
    tip.style.left = `${Math.max(4, Math.min(box.right + 12, innerWidth - tip.offsetWidth - 6))}px`;
    tip.style.top = `${Math.max(4, Math.min(box.bottom + 12, innerHeight - tip.offsetHeight - 6))}px`;
  };
  for (const name of ["pointerenter", "pointermove", "focus"]) node.addEventListener(name, show);
  for (const name of ["pointerleave", "blur"]) node.addEventListener(name, () => { tip.hidden = true; });
  node.setAttribute("aria-label", text.replace(/\n/g, ", "));
  return node;
}

// ---- a plot: axes, and what `inside(x, y, add)` puts between them -----------------------------------------------
const plots = new Map();  // element -> how to draw it at a width
function plot(place, { x, y, height = 300, top = 10, inside, legend = [] }) {
  const again = () => {
    const width = Math.max(240, place.clientWidth), left = y.names ? Math.min(120, width / 3) : 52, bottom = 44, right = 12;
    const [w, h] = [width - left - right, height - top - bottom];
    const at = (axis, from, length) => value => from + length * (axis.log ? Math.log(value / axis.range[0]) / Math.log(axis.range[1] / axis.range[0])
      : (value - axis.range[0]) / (axis.range[1] - axis.range[0]));
    const px = at(x, left, w), py = at(y, top + h, -h);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group" });
    const text = (words, attributes) => svg.append(draw("text", attributes, words));
    for (const value of ticks(x.range, x.log, Math.max(2, Math.floor(w / 55))).filter(v => !x.whole || Number.isInteger(v))) {
      svg.append(draw("line", { class: "rule", x1: px(value), x2: px(value), y1: top, y2: top + h }));
      text(short(value), { x: px(value), y: top + h + 16, "text-anchor": "middle" });
    }
    for (const [value, name] of y.names ? y.names.map((name, i) => [i, name]) : ticks(y.range, y.log, Math.floor(h / 34)).map(v => [v, short(v)])) {
      svg.append(draw("line", { class: "rule", x1: left, x2: left + w, y1: py(value), y2: py(value) }));
      text(name, { x: left - 7, y: py(value) + 4, "text-anchor": "end" });
    }
    svg.append(draw("line", { class: "axis", x1: left, x2: left + w, y1: top + h, y2: top + h }));
    text(x.label, { class: "title", x: left + w / 2, y: height - 6, "text-anchor": "middle" });
    if (y.label) text(y.label, { class: "title", "text-anchor": "middle", transform: `translate(13 ${top + h / 2}) rotate(-90)` });
    inside(px, py, node => (svg.append(node), node), { left, top, w, h });
    place.replaceChildren(svg, ...(legend.length ? [keys(legend)] : []));
  };
  plots.set(place, again);
  again();
}

function nothing(place, text) {
  plots.delete(place);
  place.replaceChildren(make("p", { class: "say" }, text));
}

const keys = entries => make("div", { class: "legend" }, ...entries.map(([name, style]) =>
  make("span", {}, make("i", { style }), name)));

function table(columns, rows, attributes = () => ({})) {
  const numeric = column => column.number ? { class: "number" } : {};
  return make("table", {},
    make("thead", {}, make("tr", {}, ...columns.map(c => make("th", numeric(c), c.name)))),
    make("tbody", {}, ...rows.map(row => make("tr", attributes(row), ...columns.map(c => make("td", numeric(c), c.of(row)))))));
}
