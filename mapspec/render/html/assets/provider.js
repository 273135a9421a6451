// The fields of the Megatron-Core config: value, where it comes from, and why.

const ORIGINS = {
  hf: ["config", "read from config.json"],
  default: ["default", "a default of the provider spec, with a reason"],
  constant: ["constant", "a constant of the provider spec, with a reason"],
  derived: ["derived", "computed from other values"],
  override: ["override", "set for this run"],
};

const badge = (origin) => h("span", { class: `badge ${origin}`, title: (ORIGINS[origin] || [])[1] }, (ORIGINS[origin] || [origin])[0]);

function providerSection() {
  const provider = data.provider;
  if (!provider) return;
  if (provider.why) {
    section("provider", "Provider", null, h("p", { class: "empty" }, provider.why));
    return;
  }
  const rows = provider.fields.map(([name, value, origin, group, source, at]) => {
    const line = h("tr", {},
      h("th", { scope: "row" }, h("code", {}, name)),
      h("td", { class: "field-value" }, h("code", {}, value)),
      h("td", {}, badge(origin)),
      h("td", { class: "why" }, origin === "hf" ? h("code", {}, source) : sentence(source), group ? h("span", { class: "when" }, ` when ${group}`) : null),
      h("td", { class: "rule-at" }, place(at)));
    return { line, text: [name, value, origin, source, group].join("\n").toLowerCase() };
  });
  const unused = provider.unused.map(([key, why]) => ({
    line: h("tr", {}, h("th", { scope: "row" }, h("code", {}, key)), h("td", {}, sentence(why))),
    text: `${key}\n${why}`.toLowerCase(),
  }));
  section("provider", "Provider", `The ${rows.length} Megatron-Core fields that this config means, by ${provider.name}: each with its origin, and the key or the reason behind it.`,
    h("div", { class: "scroll" }, h("table", { class: "fields" },
      h("thead", {}, h("tr", {}, ["field", "value", "origin", "key or reason", "rule"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, rows.map((row) => row.line)))),
    unused.length ? h("details", { class: "unused" },
      h("summary", {}, `${plural(unused.length, "key")} of config.json that gave no field`),
      h("div", { class: "scroll" }, h("table", { class: "fields" }, h("tbody", {}, unused.map((row) => row.line))))) : null);
  filtered.push((given) => {
    let shown = 0;
    for (const row of [...rows, ...unused]) {
      row.line.hidden = given.length > 0 && !has(row.text);
      shown += row.line.hidden ? 0 : 1;
    }
    return shown ? plural(shown, "field") : "";
  });
  onPrint.push((open) => document.querySelectorAll("details.unused").forEach((node) => { node.open = open; }));
}
