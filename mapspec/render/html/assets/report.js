// `plan` and `show`, from top to bottom.

function headline() {
  const main = byId("main");
  const by = [data.architectures.join(", "), `by ${data.mapping}`].filter(Boolean).join(" · ");
  const head = h("div", { class: "headline" }, h("p", { class: "lead" }, data.lead), h("h1", {}, data.title), h("p", { class: "by" }, by, data.path && data.path !== data.title ? h("code", { class: "path" }, data.path) : null),
    facts(data.facts));
  if (data.coverage) head.append(coverage(data.coverage));
  main.append(head);
}

function coverage(items) {
  const total = items.reduce((sum, [, n]) => sum + n, 0);
  return h("div", { class: "coverage" },
    h("p", {}, h("strong", {}, `${count(total)} of ${count(total)}`), " source tensors accounted for: ", items.map(([label, n]) => `${count(n)} ${label}`).join(", "), "."),
    h("div", { class: "coverage-bar", "aria-hidden": "true" }, items.map(([, n], i) => h("div", { class: `share share-${i}`, style: { "flex-grow": n } }))));
}

// Layer by layer, in the colours of their kinds.
function layersSection() {
  const axes = data.axes.filter((axis) => axis.kinds.length > 1);
  if (!axes.length) return;
  const strips = axes.map((axis) => {
    const kinds = [...new Set(axis.kinds)];
    const n = (kind) => axis.kinds.filter((k) => k === kind).length;
    return h("div", { class: "strip-holder" },
      h("h3", {}, [axis.scope, axis.name].filter(Boolean).join(" › "), h("span", { class: "times" }, count(axis.kinds.length))),
      h("div", { class: "strip", role: "img", "aria-label": `${axis.kinds.length} positions: ${kinds.map((kind) => `${n(kind)} ${kind}`).join(", ")}` },
        axis.kinds.map((kind, i) => h("span", { class: "cell", title: `${axis.name} ${i}: ${kind}`, style: { background: hue(kind) } }))),
      h("div", { class: "legend" }, kinds.map((kind) =>
        h("button", { type: "button", onclick: () => setFilter(kind), title: `filter by ${kind}` }, dot(kind), kind, h("span", { class: "times" }, count(n(kind)))))));
  });
  section("layers", "Layers", "The order that the config spells.", ...strips);
}

function valuesSection() {
  const rows = [];
  for (const step of data.steps || [])
    rows.push(["value step", step.kind, step.patterns.map(([pattern]) => pattern), step.patterns.reduce((sum, [, n]) => sum + n, 0), step.detail]);
  for (const [what, pattern, n, why] of data.listed || []) rows.push([what, what, [pattern], n, why]);
  if (!rows.length && !(data.notes || []).length && data.kind !== "plan") return;
  const table = h("table", { class: "fields" },
    h("thead", {}, h("tr", {}, ["what", "tensors", "how many", "why"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, rows.map(([, what, patterns, n, why]) => h("tr", {},
      h("th", { scope: "row" }, what),
      h("td", {}, patterns.slice(0, 8).map((pattern) => h("div", {}, nameOf(pattern))), patterns.length > 8 ? h("div", { class: "quiet" }, `and ${patterns.length - 8} more patterns`) : null),
      h("td", { class: "tensors" }, count(n)),
      h("td", {}, why)))));
  section("values", "Values", rows.length ? "What changes or checks values, and what is not mapped, each with its reason." : null,
    rows.length ? h("div", { class: "scroll" }, table) : h("p", { class: "empty" }, "Unchanged: every byte is copied as it is, and every tensor is mapped."),
    (data.notes || []).map((note) => h("p", { class: "note" }, note)));
}

function choicesSection() {
  section("proof", "Proof", null,
    h("p", {}, data.proof.replace(/^proof: /, "") + "."),
    h("div", { class: "scroll" }, h("table", { class: "fields flavours" },
      h("thead", {}, h("tr", {}, ["flavour", "choice", "what it decides"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, data.flavours.map(([name, choice, about]) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), h("td", {}, h("code", {}, choice)), h("td", {}, sentence(about))))))));
}

start();
headline();
layersSection();
rulesSection();
valuesSection();
treeSection();
providerSection();
choicesSection();

// Names are written out while nothing else happens, so that the first search is as fast as the next.
const idle = window.requestIdleCallback || ((run) => setTimeout(run, 50));
let warmed = 0;
const warm = () => {
  if (warmed === data.rules.length) return;
  searchable(data.rules[warmed++]);
  idle(warm);
};
idle(warm);
