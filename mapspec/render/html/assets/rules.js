// The table of rules: a row each, grouped by what they are mounted as, with everything else a keystroke below.

const blocks = () => [...new Set([...data.axes.flatMap((axis) => axis.kinds), ...data.rules.map((rule) => rule.block)])];
let hues = null;

// Layer kinds have colours of their own; what exists once is grey.
function hue(block) {
  if (!hues) {
    const repeated = blocks().filter((b) => data.axes.some((axis) => axis.kinds.includes(b)) || data.rules.some((r) => r.block === b && r.positions.axes.length));
    hues = new Map(repeated.map((b, i) => [b, `var(--k${(i % 6) + 1})`]));
  }
  return hues.get(block) || "var(--k0)";
}

const dot = (block) => h("span", { class: "dot", style: { background: hue(block) }, "aria-hidden": "true" });

function rulesSection() {
  const split = (kind) => data.dims.some((dim) => dim.split === kind);
  const pickers = h("div", { class: "pickers" }, h("span", {}, "Draw the cut for"));
  if (split("tensor")) pickers.append(rankPicker("TP", "tensor", "tensor parallel ranks"));
  if (split("expert_tensor")) pickers.append(rankPicker("ETP", "expert", "expert tensor parallel ranks"));
  if (data.rules.some((rule) => rule.experts)) pickers.append(rankPicker("EP", "ep", "expert parallel ranks"));

  const sides = data.from && data.from !== "hf" ? ["megatron", "hf"] : ["hf", "megatron"];
  const table = h("table", { class: "rules" },
    h("colgroup", {}, ["name", "name", "shape", "cut", "dtype", "tensors", "at"].map((kind) => h("col", { class: `col-${kind}` }))),
    h("thead", {}, h("tr", {}, ...sides.map((side) => h("th", { scope: "col" }, SIDES[side])),
      ...["shape", "cut", "dtype", "tensors", "rule"].map((title) => h("th", { scope: "col", class: title }, title)))));
  const groups = new Map();
  data.rules.forEach((rule, number) => {
    rule.number = number;
    // What exists once needs no heading of its own.
    const once = !Object.keys(rule.positions.fixed).length && !rule.positions.axes.length;
    const key = once ? rule.scope : [rule.scope, rule.mount, rule.block].join("\0");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(rule);
  });
  const parts = [...groups.values()].map((rules) => group(rules, sides));
  table.append(...parts.map((part) => part.body));
  section("rules", "Rules", "One row for each rule of the mapping. Open one to see how it is cut, where it is written, and every tensor it makes.",
    pickers.childElementCount > 1 ? pickers : null, h("div", { class: "scroll" }, table));

  filtered.push((given) => {
    let rules = 0, tensors = 0;
    for (const part of parts) {
      let shown = 0;
      for (const row of part.rows) {
        const found = given.length ? matches(row.rule, given) : null;
        row.rule.hits = found;
        const n = found ? found.length : row.rule.count;
        row.hide(n === 0);
        if (n) { shown++; tensors += n; }
      }
      rules += shown;
      part.body.hidden = shown === 0;
    }
    return rules ? `${rules} of ${plural(data.rules.length, "rule")}, ${plural(tensors, "tensor")}` : "";
  });
  onPrint.push((open) => parts.forEach((part) => part.rows.forEach((row) => row.open(open))));
}

function group(rules, sides) {
  const [first] = rules;
  const inside = [...new Set(rules.map((rule) => rule.block))];
  const names = [first.scope, inside.length > 1 || first.mount === first.block ? null : first.mount].filter(Boolean).join(" › ");
  const times = first.positions.axes.length ? ` ${repeated(first)}` : "";
  const body = h("tbody", {}, h("tr", { class: "group" }, h("th", { colspan: 7, scope: "rowgroup" },
    dot(first.block), h("strong", {}, inside.slice(0, 4).join(", ") + (inside.length > 4 ? ", …" : "")), h("span", { class: "where" }, names), h("span", { class: "where" }, times))));
  const rows = rules.map((rule) => ruleRow(rule, sides));
  for (const row of rows) body.append(row.line, row.below);
  return { body, rows };
}

// `23 layers`: how often the block of a rule occurs.
function repeated(rule) {
  const axes = rule.positions.axes.filter((axis) => axis !== "expert");
  if (!axes.length) return "";
  const seen = new Set();
  for (const product of rule.positions.sets) for (const runs of [product[rule.positions.axes.indexOf(axes[0])]])
    for (const [a, b] of runs) for (let n = a; n <= b; n++) seen.add(n);
  return plural(seen.size, axes[0]);
}

function ruleRow(rule, sides) {
  const id = `rule-${rule.number}`;
  const open = () => toggle(below.hidden);
  const button = h("button", { type: "button", class: "opener", "data-row": true, "aria-expanded": "false", "aria-controls": `${id}-more`, onclick: open },
    h("span", { class: "chevron", "aria-hidden": "true" }), names(rule, sides[0]));
  const dtype = h("td", { class: "dtype" }, rule.dtype.split(" → ").length > 1 ? h("span", { class: "changes" }, rule.dtype) : rule.dtype);
  const line = h("tr", { class: "rule", id },
    h("td", { class: "first" }, button),
    h("td", { "data-label": SIDES[sides[1]] }, names(rule, sides[1])),
    h("td", { class: "shape" }, shape(rule)),
    h("td", { class: "cut" }, h("div", { class: "cut-cell" }, drawn(() => glyph(rule)), h("span", {}, cutWords(rule)))),
    dtype,
    h("td", { class: "tensors" }, tally(rule)),
    h("td", { class: "rule-at" }, place(rule.at)));
  const below = h("tr", { class: "below", id: `${id}-more`, hidden: true });
  line.addEventListener("click", (event) => {
    if (!event.target.closest("a, button, summary") && !getSelection().toString()) open();
  });
  function toggle(wanted) {
    if (wanted && !below.firstChild) below.append(h("td", { colspan: 7 }, detail(rule)));
    below.hidden = !wanted || line.hidden;
    button.setAttribute("aria-expanded", String(wanted));
    line.classList.toggle("open", wanted);
  }
  function hide(hidden) {
    line.hidden = hidden;
    below.hidden = hidden || button.getAttribute("aria-expanded") !== "true";
    line.querySelector(".tensors").replaceChildren(...tally(rule));
    if (below.firstChild) refreshTensors(rule, below);
  }
  return { rule, line, below, open: toggle, hide };
}

function names(rule, side) {
  const forms = rule[side];
  const out = h("span", { class: "names" }, forms.slice(0, 6).map(([pattern, , segment]) =>
    h("span", { class: "one" }, nameOf(pattern, lead(pattern)), side === "hf" && segment && forms.length > 1 ? h("span", { class: "segment" }, segment) : null)));
  if (forms.length > 6) out.append(h("span", { class: "one quiet" }, `and ${forms.length - 6} more`));
  return out;
}

const shape = (rule) => h("span", { class: "dims" }, rule.shape.length ? rule.shape.map((n, i) =>
  h("span", { class: "extent" }, h("b", {}, count(n)), rule.dims[i] === String(n) ? null : h("i", {}, rule.dims[i]))) : "scalar");

const cutWords = (rule) => (rule.tied ? "tied" : rule.cut.split(" (")[0] + (rule.cut.includes("by segment") ? ", by segment" : "") + (rule.experts ? ", experts" : ""));
const some = (rule) => rule.hits && rule.hits.length < rule.count;
const tally = (rule) => (some(rule) ? [count(rule.hits.length), h("span", { class: "of" }, `of ${count(rule.count)}`)] : [count(rule.count)]);
const listTitle = (rule) => (some(rule) ? `${count(rule.hits.length)} of ${plural(rule.count, "tensor")}` : plural(rule.count, "tensor"));

function detail(rule) {
  const drawings = rule.drawn.map(([axis, number]) => drawDim(rule, axis, data.dims[number]));
  if (rule.experts) drawings.unshift(drawExperts(rule));
  const steps = (data.steps || []).filter((step) => step.rules.includes(rule.number));
  const surfaces = ["hf", "megatron", "stored"].flatMap((side) => rule[side].map(([pattern, form], i) =>
    h("tr", {}, h("th", { scope: "row" }, i ? "" : SIDES[side]), h("td", {}, nameOf(pattern)), h("td", { class: "shape" }, `[${form.map(count).join(", ")}]`))));
  const about = [
    ["role", rule.role],
    ["cut", rule.tied ? `tied to ${rule.tied}: not stored on the Megatron side` : rule.cut],
    ["elements", count(rule.elements) + (rule.bytes ? `, ${rule.bytes}` : "")],
    ...steps.map((step) => [step.kind, step.detail]),
    ["note", rule.note],
  ].filter(([, value]) => value);
  const tensors = h("details", { class: "tensors-list" }, h("summary", {}, listTitle(rule)));
  tensors.addEventListener("toggle", () => tensors.open && fillTensors(rule, tensors));
  return h("div", { class: "detail" },
    h("div", { class: "detail-main" },
      drawings.length ? drawings : h("p", { class: "about" }, "Every rank holds the whole tensor; it is copied as it lies."),
      h("table", { class: "surfaces" }, h("tbody", {}, surfaces)), tensors),
    h("div", { class: "detail-side" },
      h("dl", { class: "pairs" }, about.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))),
      rule.at ? h("p", { class: "at" }, place(rule.at, `${data.sources[rule.at[0]].path}:${rule.at[1]}`)) : null,
      rule.at ? excerpt(rule.at) : null));
}

// The tensors of a rule, those that the filter found, a hundred at a time.
function fillTensors(rule, holder) {
  holder.querySelector(".listing")?.remove();
  const all = [...positions(rule)];
  const chosen = rule.hits ? rule.hits.map((i) => all[i]) : all;
  const body = h("div", { class: "listing" });
  inSteps(body, chosen.length, (i) => {
    const tensor = tensorAt(rule, chosen[i]);
    return h("div", { class: "pair" }, ["hf", "megatron", "stored"].map((side) =>
      h("div", { title: SIDES[side] }, tensor[side].map((name) => h("div", {}, nameOf(name))))));
  });
  holder.append(body);
}

function refreshTensors(rule, below) {
  const holder = below.querySelector(".tensors-list");
  holder.querySelector("summary").textContent = listTitle(rule);
  if (holder.open) fillTensors(rule, holder);
}

// Opens the row of a rule and goes there.
function goToRule(number) {
  const line = byId(`rule-${number}`);
  if (line.hidden) setFilter("");
  const button = line.querySelector(".opener");
  if (button.getAttribute("aria-expanded") !== "true") button.click();
  button.focus({ preventScroll: true });
  line.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}
