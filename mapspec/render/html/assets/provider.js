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
  const fieldRow = ([name, value, origin, group, source, at]) => {
    const line = h("tr", {},
      h("th", { scope: "row" }, h("code", {}, name)),
      h("td", { class: "field-value" }, h("code", {}, value)),
      h("td", {}, badge(origin)),
      h("td", { class: "why" }, origin === "hf" ? h("code", {}, source) : sentence(source), group ? h("span", { class: "when" }, ` when ${group}`) : null),
      h("td", { class: "rule-at" }, place(at)));
    return { line, text: [name, value, origin, source, group].join("\n").toLowerCase() };
  };
  const rows = provider.fields.map(fieldRow);
  // Configs of a model's parts, such as a vision tower: what differs from the config that they start from.
  const parts = provider.parts.map(([name, about, fields]) => {
    const own = fields.map(fieldRow);
    const body = h("tbody", {}, h("tr", { class: "group" }, h("th", { colspan: 5, scope: "rowgroup" }, h("strong", {}, name), h("span", { class: "where" }, sentence(about)))), own.map((row) => row.line));
    return { body, own };
  });
  const unused = provider.unused.map(([key, why]) => ({
    line: h("tr", {}, h("th", { scope: "row" }, h("code", {}, key)), h("td", {}, sentence(why))),
    text: `${key}\n${why}`.toLowerCase(),
  }));
  section("provider", "Provider", `The ${rows.length} Megatron-Core fields that this config means, by ${provider.name}: each with its origin, and the key or the reason behind it.`,
    h("div", { class: "scroll" }, h("table", { class: "fields" },
      h("thead", {}, h("tr", {}, ["field", "value", "origin", "key or reason", "rule"].map((title) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, rows.map((row) => row.line)), parts.map((part) => part.body))),
    unused.length ? h("details", { class: "unused" },
      h("summary", {}, `${plural(unused.length, "key")} of config.json that gave no field`),
      h("div", { class: "scroll" }, h("table", { class: "fields" }, h("tbody", {}, unused.map((row) => row.line))))) : null);
  filtered.push((given) => {
    let shown = 0;
    for (const row of [...rows, ...parts.flatMap((part) => part.own), ...unused]) {
      row.line.hidden = given.length > 0 && !has(row.text);
      shown += row.line.hidden ? 0 : 1;
    }
    for (const part of parts) part.body.hidden = part.own.every((row) => row.line.hidden);
    return shown ? plural(shown, "field") : "";
  });
  onPrint.push((open) => document.querySelectorAll("details.unused").forEach((node) => { node.open = open; }));
}
