"use strict";
// Draws a run, figure by figure.
const run = JSON.parse(document.getElementById("run-data").textContent);

const family = op => op.split("(")[0];
const families = [...new Set([...run.slots.flatMap(s => s.branches), ...Object.values(run.networks).flat().map(r => r.op)].map(family))]
  .filter(name => name !== "skip");
const hue = op => colour(families.indexOf(family(op)));

// ---- which front, which of its points --------------------------------------------------------------------------
let view = run.views[0], chosen = null;

// A target's costs are milliseconds of a device, or a count that nothing measures.
const costs = target => run.units[target] || { unit: "ms", axis: `predicted latency on ${target} (ms)`, counted: false, name: target };
const priced = (target, value) => costs(target).counted ? `${short(value)} ${costs(target).unit}` : `${short(value)} ms predicted`;
const timed = value => isNumber(value) ? `${short(value)} ms measured` : view.unmeasured;

function describe(p) {
  return `${p.id}${p.known ? `, ${p.known}` : ""}${p.size ? `, input ${p.size}²` : ""}\n${accuracy(p)} on test\n${priced(view.target, p.ms)}, ${timed(p.measured_ms)}\n` +
    `${millions(p.macs)} MACs, ${millions(p.params)} parameters${p.standing === "front" ? "" : "\n" + p.standing}`;
}
const leads = p => p.standing.startsWith("front");

function choose(id) {
  chosen = id;
  try { history.replaceState(null, "", `#${id}`); } catch { /* a page without an address of its own */ }
  showFront();
  showNetwork();
}

const pressable = (node, id) => {
  node.addEventListener("click", () => choose(id));
  node.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(id); } });
  return node;
};

// A circle, or the square of a known network, with its name beside it.
function marker(px, py, x, y, tint, full, { id, known }, words) {
  const r = id === chosen ? 8 : 5.5, look = { fill: full ? tint : "var(--card)", stroke: tint, "stroke-width": 2 };
  const group = draw("g", { class: "hit", tabindex: 0, role: "button" },
    draw("circle", { cx: px(x), cy: py(y), r: 14, fill: "transparent" }),
    known ? draw("rect", { x: px(x) - r, y: py(y) - r, width: 2 * r, height: 2 * r, ...look }) : draw("circle", { cx: px(x), cy: py(y), r, ...look }),
    known ? draw("text", { x: px(x), y: py(y) + r + 13, "text-anchor": "middle" }, known) : null);
  return pressable(hovering(group, words), id);
}

function showFront() {
  const section = byId("front"), place = section.querySelector(".plot"), say = section.querySelector(".say");
  if (!view || !view.points.length) {
    say.textContent = "";
    section.querySelector(".scroll").replaceChildren();
    return nothing(place, "No picks yet: they are chosen once the supernet is trained.");
  }
  const judged = view.points.filter(p => isNumber(p.accuracy) && isNumber(p.ms));
  say.textContent = !view.target ? "" : `Test accuracy with its standard error over ${costs(view.target).axis}. Filled: not dominated on the selection split. Click a point.`;
  if (!view.target) nothing(place, "This run has no target: no latency is predicted.");
  else if (!judged.length) nothing(place, "The picks are chosen, none is delivered yet: the table has their predicted latency.");
  else plot(place, {
    x: { label: costs(view.target).axis, log: true, range: span(judged.map(p => p.ms), true) },
    y: { label: "test accuracy (%)", range: span(judged.flatMap(p => [-1, 1].map(k => 100 * (p.accuracy + k * (p.accuracy_se || 0))))) },
    height: 340,
    inside(px, py, add) {
      const line = judged.filter(leads);
      add(draw("polyline", { points: line.map(p => `${px(p.ms)},${py(100 * p.accuracy)}`).join(" "), fill: "none", stroke: colour(0), "stroke-opacity": .4, "stroke-width": 2 }));
      for (const p of judged) {
        const tint = leads(p) ? colour(0) : colour(7), se = 100 * (p.accuracy_se || 0);
        add(draw("line", { x1: px(p.ms), x2: px(p.ms), y1: py(100 * p.accuracy - se), y2: py(100 * p.accuracy + se), stroke: tint, "stroke-width": 1.5 }));
        add(marker(px, py, p.ms, 100 * p.accuracy, tint, leads(p), p, describe(p)));
      }
    },
  });
  const columns = [
    { name: "id", of: p => make("button", { class: "link", type: "button" }, p.id) },
    ...(view.points.some(p => p.known) ? [{ name: "known network", of: p => p.known || "" }] : []),
    ...(view.points.some(p => p.size) ? [{ name: "size", number: true, of: p => `${p.size}²` }] : []),
    { name: "accuracy", number: true, of: accuracy }, { name: costs(view.target).counted ? costs(view.target).unit : "predicted ms", number: true, of: p => short(p.ms) },
    ...(costs(view.target).counted ? [] : [{ name: "measured ms", number: true, of: p => short(p.measured_ms) }]), { name: "MACs", number: true, of: p => millions(p.macs) },
    { name: "parameters", number: true, of: p => millions(p.params) },
    { name: "standing", of: p => p.standing }];
  const rows = table(columns, view.points, p => ({ class: p.id === chosen ? "pick chosen" : "pick" }));
  view.points.forEach((p, i) => rows.tBodies[0].rows[i].addEventListener("click", () => choose(p.id)));
  section.querySelector(".scroll").replaceChildren(rows);
}

// ---- one network -----------------------------------------------------------------------------------------------
function showNetwork() {
  const section = byId("network"), place = section.querySelector(".plot"), rows = run.networks[chosen] || [];
  const point = view && view.points.find(p => p.id === chosen);
  section.hidden = !point;
  if (!point) return;
  const cost = row => (row.ms || {})[view.target];
  const total = rows.reduce((sum, row) => sum + (cost(row) || 0), 0), skips = rows.filter(row => row.op === "skip").length;
  section.querySelector("h2").textContent = `Network ${chosen}${point.known ? `, ${point.known}` : ""}`;
  section.querySelector(".say").textContent = `${accuracy(point)} on test, ` + (!view.target ? "no target. " : `${priced(view.target, point.ms)}${costs(view.target).counted ? "" : ` on ${view.target}`}, ${timed(point.measured_ms)}. `) +
    `${skips} of ${rows.filter(row => /^\d+$/.test(row.where)).length} slots are skipped.${!view.target ? "" : ` Height: ${costs(view.target).counted ? costs(view.target).unit : "predicted ms"} of the operator.`}`;
  showCommand(section.querySelector(".command"));
  if (!rows.length) return nothing(place, "Its operators are not known: see the notes at the top.");
  strip(place, rows, cost);
  const columns = [
    { name: "slot", of: row => row.where }, { name: "operator", of: row => row.op },
    { name: "channels", number: true, of: row => row.in_ch ? `${row.in_ch} → ${row.out_ch}` : "" },
    { name: "input", number: true, of: row => row.size ? `${row.size}²${row.stride > 1 ? ` / ${row.stride}` : ""}` : "" },
    { name: costs(view.target).unit, number: true, of: row => isNumber(cost(row)) ? short(cost(row)) : "" },
    { name: "share", number: true, of: row => isNumber(cost(row)) ? percent(cost(row) / total) : "" },
    { name: "MACs", number: true, of: row => row.op === "skip" ? "" : millions(row.macs) },
    { name: "parameters", number: true, of: row => row.op === "skip" ? "" : millions(row.params) }];
  section.querySelector(".scroll").replaceChildren(table(columns, rows));
}

function strip(place, rows, cost) {
  const known = rows.map(cost).filter(isNumber), most = Math.max(...known, 0);
  const again = () => {
    const width = Math.max(240, place.clientWidth), step = width / rows.length, top = 18, h = 120, base = top + h;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${base + 36}`, height: base + 36, role: "group" });
    let size = null;
    rows.forEach((row, i) => {
      const x = i * step;
      if (row.size && row.size !== size) {
        svg.append(draw("line", { class: "rule", x1: x + .5, x2: x + .5, y1: 2, y2: base + 4 }), draw("text", { x: x + 4, y: 12 }, `${row.size}²`));
        size = row.size;
      }
      if (row.op === "skip") {
        svg.append(hovering(draw("g", {}, draw("rect", { x, y: top, width: step, height: h, fill: "transparent" }),
          draw("line", { x1: x + 2, x2: x + step - 2, y1: base - 2, y2: base - 2, stroke: "var(--soft)", "stroke-dasharray": "3 3" })), `slot ${row.where}: skip`));
      } else {
        const tall = Math.max(4, most ? h * (cost(row) || 0) / most : h / 2);
        const words = `${/^\d/.test(row.where) ? "slot " : ""}${row.where}: ${row.op}\n${row.in_ch} → ${row.out_ch} channels, stride ${row.stride}, input ${row.size}×${row.size}\n` +
          `${short(cost(row))} ${costs(view.target).unit}, ${millions(row.macs)} MACs, ${millions(row.params)} parameters`;
        svg.append(hovering(draw("g", { tabindex: 0 }, draw("rect", { x, y: top, width: step, height: h, fill: "transparent" }),
          draw("rect", { x: x + 1.5, y: base - tall, width: Math.max(2, step - 3), height: tall, rx: 2, fill: hue(row.op) })), words));
      }
      const narrow = step < 30, middle = x + step / 2;
      svg.append(draw("text", narrow ? { "text-anchor": "end", transform: `translate(${middle + 4} ${base + 8}) rotate(-90)` } : { x: middle, y: base + 16, "text-anchor": "middle" }, row.where));
    });
    const used = [...new Set(rows.map(row => family(row.op)))].filter(name => name !== "skip");
    place.replaceChildren(svg, keys(used.map(name => [name, `background: ${hue(name)}`])));
  };
  plots.set(place, again);
  again();
}

function showCommand(place) {
  const command = run.export[chosen] ?? "";
  const code = make("code", {}, command);
  const button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(command); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
  });
  place.replaceChildren(code, button);
}

// ---- latency ---------------------------------------------------------------------------------------------------
function showLatency() {
  const section = byId("latency"), place = section.querySelector(".plot"), say = section.querySelector(".say");
  const both = (view ? view.points : []).filter(p => isNumber(p.ms) && isNumber(p.measured_ms) && p.measured_ms > 0);
  say.textContent = "";
  if (!both.length) return nothing(place, !view || !view.points.length ? "No picks yet." : view.target ? `${view.unmeasured[0].toUpperCase()}${view.unmeasured.slice(1)}.` : "No target.");
  const off = both.reduce((sum, p) => sum + Math.abs(p.ms / p.measured_ms - 1), 0) / both.length;
  say.textContent = `${percent(off)} off on average over ${both.length} ${both.length === 1 ? "pick" : "picks"}. Dashed: predicted = measured.`;
  const range = span(both.flatMap(p => [p.ms, p.measured_ms]), true);
  plot(place, {
    x: { label: `predicted on ${view.target} (ms)`, log: true, range }, y: { label: "measured (ms)", log: true, range },
    inside(px, py, add) {
      add(draw("line", { class: "ideal", x1: px(range[0]), y1: py(range[0]), x2: px(range[1]), y2: py(range[1]) }));
      for (const p of both) add(marker(px, py, p.ms, p.measured_ms, colour(0), true, p.id, describe(p)));
    },
  });
}

function showBudgets() {
  const section = byId("budgets"), place = section.querySelector(".plot"), budgets = view ? view.budgets : [];
  const say = section.querySelector(".say");
  say.textContent = "";
  if (!budgets.length) return nothing(place, view && view.points.length ? "No budgets." : "No picks yet.");
  const over = budgets.filter(b => b.ms > b.budget_ms).length;
  say.textContent = over ? `${over} predicted above their budget.` : "Every pick is predicted within its budget.";
  const values = budgets.flatMap(b => [b.budget_ms, b.ms, b.measured_ms].filter(v => isNumber(v) && v > 0));
  plot(place, {
    x: { label: costs(view.target).counted ? costs(view.target).axis : `latency on ${view.target} (ms)`, log: true, range: span(values, true) },
    y: { names: budgets.map(b => `${short(b.budget_ms)} ${costs(view.target).unit.split(" ")[0]}`), range: [budgets.length - .5, -.5] },
    height: Math.max(180, 54 + 34 * budgets.length),
    legend: [["budget", "background: var(--soft); width: 3px"], ["predicted", `background: ${colour(0)}; border-radius: 50%`],
      ...(budgets.some(b => isNumber(b.measured_ms)) ? [["measured", `border: 2px solid ${colour(1)}; border-radius: 50%`]] : [])],
    inside(px, py, add) {
      budgets.forEach((b, i) => {
        const words = `budget ${short(b.budget_ms)} ${costs(view.target).unit}: ${b.id}\n${priced(view.target, b.ms)}\n${timed(b.measured_ms)}`;
        add(draw("line", { x1: px(b.ms), x2: px(b.budget_ms), y1: py(i), y2: py(i), stroke: "var(--line)", "stroke-width": 2 }));
        add(draw("line", { x1: px(b.budget_ms), x2: px(b.budget_ms), y1: py(i) - 10, y2: py(i) + 10, stroke: "var(--soft)", "stroke-width": 3 }));
        if (isNumber(b.measured_ms) && b.measured_ms > 0)
          add(draw("circle", { cx: px(b.measured_ms), cy: py(i), r: 5.5, fill: "var(--card)", stroke: colour(1), "stroke-width": 2 }));
        add(marker(px, py, b.ms, i, colour(0), true, b.id, words));
      });
    },
  });
}

// ---- pruning ---------------------------------------------------------------------------------------------------
function showPruning() {
  const section = byId("pruning"), place = section.querySelector(".scroll"), say = section.querySelector(".say");
  if (!run.slots.length) { say.textContent = "Nothing is known of the slots yet."; return; }
  const rank = op => op === "skip" ? families.length : families.indexOf(family(op));
  const rows = [...new Set([...run.slots.flatMap(slot => slot.branches), ...run.pruned.map(drop => drop.op)])]
    .sort((a, b) => rank(a) - rank(b) || a.split("=").length - b.split("=").length);
  const drops = new Map(run.pruned.map(drop => [`${drop.slot} ${drop.op}`, drop]));
  const used = new Map();
  for (const network of Object.values(run.networks)) for (const row of network) {
    const key = `${row.where} ${row.op.replace(/hidden=\d+(, )?/, "").replace(/, \)/, ")").replace("()", "")}`;
    used.set(key, (used.get(key) || 0) + 1);
  }
  const searched = run.epochs.filter(e => e.phase === "search").length, epochs = Math.max(searched, 1);
  say.textContent = searched
    ? `${run.pruned.length} of ${run.slots.reduce((n, s) => n + s.branches.length, 0)} candidates went in ${searched} ${searched === 1 ? "epoch" : "epochs"} of search. ` +
      "A number: the epoch in which the candidate went. Blue: it stayed; a dot: a pick uses it. Empty: not admitted in that slot."
    : "The search has not ended an epoch yet. Blue: in the running. Empty: not admitted in that slot.";
  const cell = (op, slot, i) => {
    const drop = drops.get(`${i} ${op}`), n = used.get(`${i} ${op}`) || 0;
    if (!drop && !slot.branches.includes(op)) return make("td", {});
    if (!drop) return hovering(make("td", { class: n ? "alive used" : "alive" }, n ? "●" : ""), `slot ${i}: ${op}\nstayed${n ? `, in ${n} ${n === 1 ? "network" : "networks"}` : ""}`);
    const strength = Math.round(70 - 52 * drop.epoch / epochs);
    return hovering(make("td", { style: `background: color-mix(in srgb, var(--c1) ${strength}%, var(--card))` }, String(drop.epoch + 1)),
      `slot ${i}: ${op}\nwent in epoch ${drop.epoch + 1} (${drop.kind})\n` + (drop.kind === "layer" ? "skip won at every budget" : `at most ${short(drop.most)} at any budget, threshold ${short(drop.threshold)}`));
  };
  const label = op => op.replace("(", " ").replace(")", "").replaceAll(",", "");
  place.replaceChildren(make("table", { class: "heat" },
    make("thead", {}, make("tr", {}, make("th", {}, "slot"), ...run.slots.map((_, i) => make("th", {}, String(i))))),
    make("tbody", {}, ...rows.map(op => make("tr", {}, make("th", {}, label(op)), ...run.slots.map((slot, i) => cell(op, slot, i)))))));
}

// ---- training --------------------------------------------------------------------------------------------------
const CURVES = [
  ["Supernet: loss", { loss_largest: "largest", loss_random: "random", gate_loss: "gates, on their split" }],
  ["Supernet: distilled from the largest", { kd_random: "random", kd_smallest: "smallest" }],
  ["Gates: entropy", { gate_entropy: "entropy (nats a slot)" }],
  ["Gates: share of skip", { "pruning.skip_share": "share" }],
  ["Norm of the gradients", { grad_norm: "weights", gate_grad_norm: "gates" }],
  ["Candidates left", { "pruning.branches": "branches" }],
];

function curves(place, title, series, label, phases = []) {
  const points = series.flatMap(one => one.points);
  if (!points.length) return;
  const box = make("div", {}), figure = make("div", {});
  box.append(make("h3", {}, title), figure);
  place.append(box);
  plot(figure, {
    x: { label, whole: true, range: [.5, Math.max(...points.map(p => p[0]), ...phases.map(p => p[0])) + .5] }, y: { range: span(points.map(p => p[1])) }, height: 210, top: phases.length ? 24 : 10,
    legend: series.length > 1 ? series.map(one => [one.name, `background: ${one.tint}`]) : [],
    inside(px, py, add, { top, h }) {
      for (const [start, name] of phases) {
        if (start > 1) add(draw("line", { class: "ideal", x1: px(start - .5), x2: px(start - .5), y1: 4, y2: top + h }));
        add(draw("text", { x: px(start - .5) + 4, y: 14 }, name));
      }
      for (const one of series) {
        add(draw("polyline", { points: one.points.map(p => `${px(p[0])},${py(p[1])}`).join(" "), fill: "none", stroke: one.tint, "stroke-width": 2 }));
        for (const p of one.points) add(hovering(draw("g", {}, draw("circle", { cx: px(p[0]), cy: py(p[1]), r: 9, fill: "transparent" }),
          draw("circle", { cx: px(p[0]), cy: py(p[1]), r: one.points.length > 40 ? 1 : 2.5, fill: one.tint })), `${one.name}\nepoch ${p[0]}: ${short(p[1])}`));
      }
    },
  });
}

const figure = (epoch, key) => key.split(".").reduce((part, name) => part?.[name], epoch);

function showTraining() {
  const section = byId("training"), place = section.querySelector(".grid"), epochs = run.epochs;
  const phases = epochs.flatMap((e, i) => i && epochs[i - 1].phase === e.phase ? [] : [[i + 1, e.phase]]);
  for (const [title, names] of CURVES) {
    const series = Object.entries(names).map(([key, name], k) => ({ name, tint: colour(k), points: epochs.flatMap((e, i) => isNumber(figure(e, key)) ? [[i + 1, figure(e, key)]] : []) }));
    curves(place, title, series.filter(one => one.points.length), "epoch of the supernet", phases);
  }
  const tuned = Object.entries(run.finetune).map(([id, events], k) => ({ name: id, tint: colour(k), points: events.flatMap(e => isNumber(e.loss) && isNumber(e.epoch) ? [[e.epoch + 1, e.loss]] : []) }));
  curves(place, run.finetune_title, tuned, "epoch of fine-tuning");
  const entry = epochs.map(e => e.entry).find(Boolean);
  section.querySelector(".say").textContent = !epochs.length ? "No epoch has ended yet." : entry
    ? `After the warm-up: held-out loss ${short(entry.smallest_loss)} (smallest network), ${short(entry.largest_loss)} (largest); ${entry.passed ? "clearly apart." : "hardly apart: gates see little signal."}` : "";
}

function showJudged() {
  const section = byId("judged"), place = section.querySelector(".plot"), target = view ? view.target : run.conditions.settings.target[0];
  const points = run.judged.filter(p => isNumber(p.loss) && isNumber(p.ms[target]) && p.ms[target] > 0);
  section.hidden = !points.length;
  if (!points.length) return;
  const picked = new Set(view ? view.points.map(p => p.id) : []);
  section.querySelector(".say").textContent = `Held-out loss of ${points.length} networks with inherited weights, which selection decides by. Filled: picked.`;
  plot(place, {
    x: { label: costs(target).axis, log: true, range: span(points.map(p => p.ms[target]), true) },
    y: { label: "held-out loss", range: span(points.map(p => p.loss)) },
    inside(px, py, add) {
      for (const p of [...points].sort((a, b) => picked.has(a.id) - picked.has(b.id)))
        add(hovering(draw("circle", { cx: px(p.ms[target]), cy: py(p.loss), r: 4.5, stroke: picked.has(p.id) ? colour(0) : colour(7), "stroke-width": 1.5,
          fill: picked.has(p.id) ? colour(0) : "var(--card)" }), `${p.id}\n${priced(target, p.ms[target])}\nheld-out loss ${short(p.loss)}`));
    },
  });
}

// ---- conditions ------------------------------------------------------------------------------------------------
function facts(value, above = "") {
  return Object.entries(value).flatMap(([key, part]) => part !== null && typeof part === "object" && !Array.isArray(part)
    ? facts(part, `${above}${key}.`) : [[above + key, [part].flat().join(", ") || (part === "" ? "" : "–")]]);
}

function showConditions() {
  const place = byId("conditions").querySelector(".grid");
  for (const [title, values] of Object.entries(run.conditions)) place.append(make("div", {}, make("h3", {}, title),
    make("table", { class: "facts" }, make("tbody", {}, ...facts(values).map(([key, value]) => make("tr", {}, make("th", {}, key), make("td", {}, value)))))));
}

function showView() {
  const points = view ? view.points : [], wanted = location.hash.slice(1);
  const ends = points.filter(leads);
  chosen = [chosen, wanted].find(id => points.some(p => p.id === id)) || ((ends.length ? ends[ends.length - 1] : points[0]) || {}).id;
  for (const show of [showFront, showNetwork, showLatency, showBudgets, showJudged]) show();
}

byId("about").textContent = `${run.space} on ${run.data}, ${run.state}. Page of ${run.made}.`;
byId("notes").hidden = !run.notes.length;
byId("notes").textContent = run.notes.join("\n");
byId("views").hidden = run.views.length < 2;
byId("view").append(...run.views.map((v, i) => make("option", { value: i }, v.name)));
byId("view").addEventListener("change", event => { view = run.views[event.target.value]; showView(); });
showPruning();
showTraining();
showConditions();
{
  const wanted = run.views.find(v => v.points.some(p => `#${p.id}` === location.hash));
  if (wanted) { view = wanted; byId("view").value = run.views.indexOf(wanted); }
}
showView();
const redraw = () => { for (const again of plots.values()) again(); };
redraw();  // the first ones were drawn before the page had its columns
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
