// A comparison: the verdict, changes worst first, what they do to every model, and the versions they ask for.

const LEVELS = {
  silent: "Both versions run through and mean different values",
  breaking: "Something that worked is refused",
  risky: "Nothing tested here changes, or a default does",
  additive: "More works than before",
  neutral: "Nothing that anyone converts changes",
};

function headline() {
  const counts = data.counts.filter(([, n]) => n);
  byId("main").append(h("div", { class: "headline" },
    h("p", { class: "lead" }, "What the specs do, before and after"),
    h("h1", {}, data.title),
    h("p", { class: `verdict ${data.refactor || !data.changes.length ? "calm" : worst()}` }, data.verdict),
    counts.length ? facts(data.counts.map(([level, n]) => [level, count(n), LEVELS[level]])) : null));
}

const worst = () => (data.counts.find(([, n]) => n) || ["neutral"])[0];

// Two texts side by side, with what is the same at both ends set back.
function sides(before, after) {
  let start = 0;
  while (start < Math.min(before.length, after.length) && before[start] === after[start]) start++;
  let end = 0;
  while (end < Math.min(before.length, after.length) - start && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  const mark = (text, kind) => {
    if (!text) return h("span", { class: "absent" }, "absent");
    const middle = text.slice(start, text.length - end);
    return h("code", {}, text.slice(0, start), middle ? h("mark", { class: kind }, middle) : null, end ? text.slice(text.length - end) : null);
  };
  return [mark(before, "was"), mark(after, "now")];
}

function pair(subject, about, before, after, old, now) {
  const [left, right] = sides(before, after);
  return h("div", { class: "pair-of" },
    subject ? h("p", { class: "subject" }, h("code", {}, subject), about ? h("span", { class: "where" }, sentence(about)) : null) : null,
    h("div", { class: "columns" },
      h("div", { class: "side before" }, h("div", { class: "side-head" }, "before", old ? h("span", { class: "place" }, old) : null), left),
      h("div", { class: "side after" }, h("div", { class: "side-head" }, "after", now ? place(now, `${data.sources[now[0]].path}:${now[1]}`) : null), right)));
}

function examples(part) {
  const shown = part.affected.filter((one) => one.megatron.length);
  if (!shown.length) return null;
  const [first] = shown;
  const line = (names) => names.slice(0, 6).map((name) => h("div", {}, nameOf(name))).concat(names.length > 6 ? h("div", { class: "quiet" }, `and ${names.length - 6} more patterns`) : []);
  const changed = first.hf_before.join() !== first.hf_after.join();
  return h("div", { class: "affected" },
    h("p", {}, `${first.model}${first.flavours.length ? `, with ${first.flavours.join(", ")}` : ""}: ${plural(first.tensors, "tensor")}`),
    h("div", { class: "names-of" }, line(first.megatron)),
    changed ? h("div", { class: "columns" }, h("div", { class: "side before" }, line(first.hf_before)), h("div", { class: "side after" }, line(first.hf_after))) : null,
    shown.length > 1 ? h("p", { class: "quiet" }, `likewise in ${shown.slice(1, 12).map((one) => one.model).join(", ")}${shown.length > 12 ? ` and ${shown.length - 12} more` : ""}`) : null);
}

function card(change, number) {
  const body = h("div", { class: "card-body", id: `change-${number}`, hidden: true });
  const button = h("button", { type: "button", class: "card-head", "data-row": true, "aria-expanded": "false", "aria-controls": `change-${number}`, onclick: () => toggle(body.hidden) },
    h("span", { class: "chevron", "aria-hidden": "true" }),
    h("span", { class: `level ${change.level}` }, change.level),
    h("span", { class: "code", title: change.what }, `${change.code} ${change.name}`),
    h("span", { class: "message" }, sentence(change.message)),
    change.accepted !== null ? h("span", { class: "badge" }, "accepted") : null);
  const node = h("article", { class: `card ${change.level}${change.accepted !== null ? " accepted" : ""}` }, button, body);
  function fill() {
    body.append(
      h("p", { class: "about" }, sentence(change.what)),
      ...change.causes.map((cause) => pair(cause.key, "edit", cause.before, cause.after, cause.old, cause.new)),
      ...change.parts.map((part) => h("div", { class: "part-of" },
        part.before || part.after || part.old || part.new ? pair(part.subject, part.where, part.before, part.after, part.old, part.new) : null, examples(part))),
      ...(change.details.length ? [h("ul", { class: "details" }, change.details.map((line) => h("li", {}, sentence(line))))] : []),
      h("dl", { class: "pairs" }, [
        ["earlier", change.earlier ? `checkpoints converted before: ${change.earlier}; ${change.earlier_why}` : ""],
        ["reaches", change.through.join("; ")],
        ["accepted", change.accepted],
        ["near", change.near ? place(change.near, `${data.sources[change.near[0]].path}:${change.near[1]}`) : ""],
        ["fingerprint", h("code", {}, change.fingerprint)],
      ].filter(([, value]) => value).map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))));
  }
  function toggle(open) {
    if (open && !body.firstChild) fill();
    body.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  }
  toggle(["silent", "breaking"].includes(change.level) && change.accepted === null);
  const text = JSON.stringify(change).toLowerCase();
  return { node, text, toggle };
}

function changesSection() {
  const cards = data.changes.map(card);
  section("changes", "Changes", cards.length ? "Worst first. Both texts, both lines, and which tensors of which models." : null,
    cards.length ? h("div", { class: "cards" }, cards.map((one) => one.node)) : h("p", { class: "empty" }, "Every reference model is mapped as before."));
  filtered.push((given) => {
    let shown = 0;
    for (const one of cards) {
      one.node.hidden = given.length > 0 && !has(one.text);
      shown += one.node.hidden ? 0 : 1;
    }
    return shown ? `${shown} of ${plural(cards.length, "change")}` : "";
  });
  onPrint.push((open) => cards.forEach((one) => one.toggle(open)));
}

const PARTS = ["same", "added", "removed", "retargeted", "reordered", "other"];

function modelsSection() {
  const models = data.models.filter((model) => model.kind === "mapping");
  if (!models.length) return;
  const changed = models.filter((model) => model.state !== "identical");
  const row = (model) => {
    const total = PARTS.reduce((sum, part) => sum + model[part], 0);
    const unmapped = model.unmapped && (model.unmapped[0] || model.unmapped[1]) ? model.unmapped.map(count).join(" → ") : "";
    const text = `${model.spec} ${model.model} ${model.state}`.toLowerCase();
    const line = h("tr", {},
      h("th", { scope: "row" }, model.model, h("span", { class: "where" }, model.spec)),
      h("td", {}, h("span", { class: `state ${model.state.replaceAll(" ", "-")}` }, model.state)),
      h("td", { class: "spark" }, total ? h("div", { class: "stack", "aria-hidden": "true" }, PARTS.filter((part) => model[part]).map((part) => h("i", { class: part, style: { "flex-grow": model[part] } }))) : null),
      h("td", { class: "number" }, model.tensors[0] === model.tensors[1] ? count(model.tensors[1]) : model.tensors.map(count).join(" → ")),
      ...PARTS.map((part) => h("td", { class: `number ${model[part] && part !== "same" ? part : ""}` }, model[part] ? count(model[part]) : "")),
      h("td", { class: "number removed" }, unmapped));
    return { line, text };
  };
  const rows = [...changed, ...models.filter((model) => model.state === "identical")].map(row);
  section("models", "Models", changed.length ? `${changed.length} of ${plural(models.length, "reference model")} change.` : `All ${models.length} reference models are mapped as before.`,
    h("div", { class: "scroll" }, h("table", { class: "fields grid" },
      h("thead", {}, h("tr", {}, ["reference model", "", "", "tensors", ...PARTS, "unmapped"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, rows.map((one) => one.line)))));
  filtered.push((given) => {
    rows.forEach((one) => { one.line.hidden = given.length > 0 && !has(one.text); });
    return "";
  });
}

function fieldsSection() {
  const fields = data.changes.filter((change) => change.kind === "provider" && change.code !== "DC901").flatMap((change) => change.parts.filter((part) => part.before || part.after).map((part) => [change, part]));
  if (!fields.length) return;
  section("fields", "Provider fields", "Old and new values.",
    h("div", { class: "scroll" }, h("table", { class: "fields" },
      h("thead", {}, h("tr", {}, ["field", "before", "after", "class", "line"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, fields.map(([change, part]) => {
        const [left, right] = sides(part.before, part.after);
        return h("tr", {}, h("th", { scope: "row" }, h("code", {}, part.subject)), h("td", {}, left), h("td", {}, right), h("td", {}, h("span", { class: `level ${change.level}` }, change.level)), h("td", {}, place(part.new)));
      })))));
}

function versionsSection() {
  const edited = data.specs.filter((spec) => spec.state !== "identical" || spec.version[0] !== spec.version[1] || !spec.bumped);
  if (!edited.length && !data.stale.length) return;
  section("versions", "Versions", null,
    h("div", { class: "scroll" }, h("table", { class: "fields" },
      h("thead", {}, h("tr", {}, ["spec", "before", "after", "should be", "", "line"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, edited.map((spec) => h("tr", {},
        h("th", { scope: "row" }, `${spec.kind} ${spec.name}`), h("td", {}, spec.version[0] || ""), h("td", {}, spec.version[1] || ""), h("td", {}, spec.suggested),
        h("td", {}, h("span", { class: spec.bumped ? "good" : "bad" }, spec.bumped ? "the file says so" : "the file lags behind")), h("td", {}, place(spec.place))))))),
    data.stale.length ? h("p", { class: "note" }, "Accepted, but no change has that fingerprint any more: ", h("code", {}, data.stale.join(", "))) : null);
}

start();
headline();
changesSection();
modelsSection();
fieldsSection();
versionsSection();
