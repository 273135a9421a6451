// How a tensor is made of segments, and how parallel ranks cut it. The cuts come from the engine, not from this page.

// Ranks that are drawn; one choice for the whole page.
const ranks = { tensor: 2, expert: 2, ep: 2 };
const redraw = new Set();

function setRanks(group, size) {
  ranks[group] = size;
  for (const draw of redraw) draw();
}

// An element that is drawn anew when the numbers of ranks change.
function drawn(make) {
  const holder = h("div", {});
  const draw = () => holder.replaceChildren(...[make()].flat());
  redraw.add(draw);
  draw();
  return holder;
}

const groupOf = (dim) => (dim.split === "expert_tensor" ? "expert" : "tensor");
const sizeOf = (dim) => ranks[groupOf(dim)];

// Segments get colours in the order in which they are declared.
function colours(dim) {
  const names = [...new Set(dim.runs.map(([name]) => name))];
  return new Map(names.map((name, i) => [name, name === "" ? "var(--flat)" : `var(--c${(i % 6) + 1})`]));
}

// Runs of segments along a dim, with their first rows, and the zeros that padding adds.
function runsOf(dim) {
  let at = 0;
  const out = dim.runs.map(([name, size]) => ({ name, first: at, last: (at += size), size }));
  if (dim.padded && dim.padded > dim.size) out.push({ name: "zeros", first: at, last: dim.padded, size: dim.padded - at, pad: true });
  return out.filter((run) => run.size);
}

// A tensor as a small rectangle: bands are segments, lines are where ranks cut. Rows go down, columns across.
function glyph(rule) {
  const [axis, number] = rule.drawn[0] || [0, null];
  const dim = number === null ? null : data.dims[number];
  const flat = rule.shape.length < 2;
  const [w, t] = flat ? [9, 22] : [30, 22];
  const across = axis > 0;
  const length = across ? w : t;
  const svg = s("svg", { class: "glyph", viewBox: "-0.5 -0.5 34 26", width: 34, height: 26, "aria-hidden": "true", focusable: "false" });
  const box = (x, y, width, height, attributes) => s("rect", { x, y, width, height, rx: 1.5, ...attributes });
  if (rule.experts) for (const off of [3, 1.5]) svg.append(box(off, off, w, t, { class: "behind" }));
  svg.append(box(0, 0, w, t, { class: "sheet" }));
  if (dim) {
    const total = dim.padded || dim.size;
    const colour = colours(dim);
    if (dim.runs.length > 1 && dim.runs.length <= 24)
      for (const run of runsOf(dim)) {
        const [a, b] = [(run.first / total) * length, (run.last / total) * length];
        const band = across ? box(a, 0, b - a, t, {}) : box(0, a, w, b - a, {});
        band.style.setProperty("fill", run.pad ? "var(--line)" : colour.get(run.name));
        svg.append(band);
      }
    const cuts = dim.split ? dim.cuts[sizeOf(dim)] : null;
    const edges = Array.isArray(cuts) ? new Set(cuts.flat().map(([first]) => first)) : new Set();
    if (edges.size > 6) svg.classList.add("fine");
    for (const edge of edges) {
      if (!edge) continue;
      const at = (edge / total) * length;
      svg.append(s("line", across ? { x1: at, y1: -1, x2: at, y2: t + 1 } : { x1: -1, y1: at, x2: w + 1, y2: at }));
    }
  }
  return svg;
}

// The dim at full width: what it is made of, and below it what each rank holds.
function drawDim(rule, axis, dim) {
  const runs = runsOf(dim);
  const colour = colours(dim);
  const dense = runs.length > 30;
  const bar = (inner) => h("div", { class: dense ? "bar-runs dense" : "bar-runs" }, runs.map((run) =>
    h("div", { class: run.pad ? "run pad" : "run", style: { "flex-grow": run.size, "--hue": run.pad ? "var(--line)" : colour.get(run.name) } }, inner(run))));
  const whole = bar((run) => [
    h("div", { class: "part", style: { left: "0%", width: "100%" } }),
    dense || !run.name ? null : h("span", { class: "label" }, run.name),
  ]);
  whole.classList.add("whole");
  const made = composition(dim);
  const out = [made ? h("p", { class: "composed" }, made) : null, h("div", { class: "lane" }, h("span", { class: "rank" }, "all"), whole)];
  if (dim.split) {
    out.push(drawn(() => {
      const size = sizeOf(dim);
      const cuts = dim.cuts[size];
      const group = dim.split === "expert_tensor" ? "expert tensor parallel" : "tensor parallel";
      if (!Array.isArray(cuts)) return h("p", { class: "unfit" }, cuts || `no drawing for ${size} ranks`);
      const held = cuts[0].reduce((sum, [a, b]) => sum + b - a, 0);
      const shape = rule.shape.map((n, i) => count(i === axis ? held : n)).join(", ");
      const lanes = cuts.map((owned, rank) => h("div", { class: "lane" },
        h("span", { class: "rank" }, `rank ${rank}`),
        bar((run) => owned
          .map(([a, b]) => [Math.max(a, run.first), Math.min(b, run.last)])
          .filter(([a, b]) => a < b)
          .map(([a, b]) => h("div", { class: "part", style: { left: `${((a - run.first) / run.size) * 100}%`, width: `${((b - a) / run.size) * 100}%` } })))));
      return [
        h("div", { class: size > 8 ? "lanes tight" : "lanes", role: "img", "aria-label": laneText(dim, cuts) }, lanes),
        h("p", { class: "held" }, `Each of ${size} ${group} ranks holds [${shape}]`, dim.by === "segment" ? ", its part of every segment." : "."),
      ];
    }));
  }
  return h("figure", { class: "dim" },
    h("figcaption", {}, h("strong", {}, dim.name), ` dim ${axis}, ${plural(dim.padded || dim.size, "row")}${dim.split ? "" : ", held whole by every rank"}`),
    ...out);
}

const laneText = (dim, cuts) => cuts.map((owned, rank) => `rank ${rank}: rows ${owned.map(([a, b]) => `${a} to ${b}`).join(", ")}`).join("; ");

// `8 × (q 640, k 128, v 128)`
function composition(dim) {
  const runs = dim.runs;
  const pad = dim.padded && dim.padded > dim.size ? `, then ${count(dim.padded - dim.size)} rows of zeros` : "";
  if (runs.length === 1 && !runs[0][0]) return pad && `${count(runs[0][1])} rows${pad}`;
  let period = 1;
  while (period < runs.length && !(runs.length % period === 0 && runs.every((run, i) => run[0] === runs[i % period][0]))) period++;
  const group = runs.slice(0, period).map(([name, size]) => `${name} ${count(size)}`).join(", ");
  const times = runs.length / period;
  return (times > 1 ? `${times} × (${group})` : group) + pad;
}

function drawExperts(rule) {
  return h("figure", { class: "dim" },
    h("figcaption", {}, h("strong", {}, "experts"), ` ${count(rule.experts)}, a tensor each; torch_dist stacks them`),
    drawn(() => {
      const size = ranks.ep;
      if (rule.experts % size) return h("p", { class: "unfit" }, `expert parallel size ${size} does not divide ${rule.experts} experts`);
      const each = rule.experts / size;
      return h("div", { class: "lane" }, h("span", { class: "rank" }, "ranks"), h("div", { class: "bar-runs experts" }, Array.from({ length: size }, (_, rank) =>
        h("div", { class: "run", style: { "flex-grow": 1, "--hue": "var(--flat)" } },
          h("div", { class: "part", style: { left: "0%", width: "100%" } }),
          h("span", { class: "label" }, size > 8 ? `${rank * each}…` : `${rank * each}…${(rank + 1) * each - 1}`)))));
    }));
}

// The choice of how many ranks are drawn.
function rankPicker(label, group, about) {
  const set = h("fieldset", { class: "picker", title: about }, h("legend", {}, label));
  for (const size of data.sizes) {
    const input = h("input", { type: "radio", name: `ranks-${group}`, value: size, id: `ranks-${group}-${size}` });
    input.checked = ranks[group] === size;
    input.addEventListener("change", () => setRanks(group, size));
    set.append(input, h("label", { for: input.id }, String(size)));
  }
  return set;
}
