// What all reports share: elements, links to specs, the theme, the filter, keys, printing.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// An element; children are text or elements, never markup.
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
function s(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children.flat()) node.append(child);
  return node;
}

const count = (n) => n.toLocaleString("en-US");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const SIDES = { hf: "Hugging Face", megatron: "Megatron-Core", stored: "torch_dist" };

// --- names -----------------------------------------------------------------------------------------------------

// A dotted name that may break behind its dots; `quiet` leading characters are set back, holes stand out.
function nameOf(text, quiet = 0) {
  const out = h("span", { class: "name" });
  let at = 0;
  for (const part of text.split(/(\{[^}]*\}|\.(?=[A-Za-z_{]))/)) {
    if (!part) continue;
    const hole = part.startsWith("{");
    const shown = hole ? abbreviate(part) : part;
    const kind = hole ? "hole" : at < quiet ? "quiet" : null;
    out.append(kind ? h("span", { class: kind, title: shown === part ? null : part }, shown) : shown);
    if (part === ".") out.append(h("wbr"));
    at += part.length;
  }
  return out;
}

// `{0,2,4,7,9}` as `{0,2...9}`: long sets are told in full when they are pointed at.
function abbreviate(set) {
  const runs = set.slice(1, -1).split(",");
  if (set.length <= 20 || runs.length < 4) return set;
  const last = runs[runs.length - 1].split("...").pop();
  return `{${runs[0]},${runs[1]},…,${last}}`;
}

// How much of a pattern leads to the part that says what a tensor is.
function lead(pattern) {
  const hole = pattern.indexOf("}.");
  return hole < 0 ? 0 : hole + 2;
}

// A sentence with names in `backticks`.
const sentence = (text) => text.split(/`([^`]*)`/).map((part, i) => (i % 2 ? h("code", {}, part) : part));

// --- spec lines ------------------------------------------------------------------------------------------------

function place(at, label) {
  if (!at) return null;
  const [file, line] = at;
  const source = data.sources[file];
  const text = label || `${source.path.split("/").pop()}:${line}`;
  const href = source.href.replaceAll("{line}", String(line));
  const link = h("a", { class: "place", href, title: `${source.path}:${line}` }, text);
  link.addEventListener("click", (event) => {
    if (!source.text || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    view(file, line);
  });
  return link;
}

function sourceLines(file, first, last, marked, indent = 0) {
  const lines = data.sources[file].text.split("\n");
  const out = h("div", { class: "source" });
  for (let n = Math.max(first, 1); n <= Math.min(last, lines.length); n++) {
    const text = lines[n - 1].slice(indent);
    const comment = text.search(/(^|\s)#/);
    const [code, remark] = comment < 0 ? [text, ""] : [text.slice(0, comment), text.slice(comment)];
    out.append(
      h("div", { class: n === marked ? "line marked" : "line" },
        h("span", { class: "number", "aria-hidden": "true" }, String(n)),
        h("code", {}, code, remark ? h("span", { class: "remark" }, remark) : null)));
  }
  return out;
}

// The lines of a declaration: its own, and those indented deeper below it.
function excerpt(at) {
  const [file, line] = at;
  const lines = data.sources[file].text.split("\n");
  if (!lines[line - 1]) return null;
  const indent = (text) => text.length - text.trimStart().length;
  let last = line;
  while (last < lines.length && last < line + 24 && lines[last].trim() && indent(lines[last]) > indent(lines[line - 1])) last++;
  return sourceLines(file, line, last, 0, indent(lines[line - 1]));
}

function view(file, line) {
  const source = data.sources[file];
  byId("viewer-title").textContent = source.path;
  byId("viewer-link").setAttribute("href", source.href.replaceAll("{line}", String(line)));
  byId("viewer-text").replaceChildren(sourceLines(file, 1, Infinity, line));
  byId("viewer").showModal();
  const marked = byId("viewer-text").querySelector(".marked");
  if (marked) marked.scrollIntoView({ block: "center" });
  byId("viewer-text").focus({ preventScroll: true });
}

// --- sections --------------------------------------------------------------------------------------------------

function section(id, title, about, ...children) {
  const node = h("section", { id, "aria-labelledby": `${id}-title` },
    h("div", { class: "section-head" }, h("h2", { id: `${id}-title` }, title), about ? h("p", { class: "about" }, about) : null),
    ...children);
  byId("main").append(node);
  byId("nav").append(h("a", { href: `#${id}` }, title));
  return node;
}

function facts(items) {
  return h("dl", { class: "facts" }, items.map(([label, value, note]) =>
    h("div", {}, h("dt", {}, label), h("dd", { class: "value" }, value), note ? h("dd", { class: "note" }, note) : null)));
}

// A long list in steps: the first `step` items now, more when asked for.
function inSteps(container, total, make, step = 100) {
  let shown = 0;
  const more = h("button", { type: "button", class: "more" });
  const add = () => {
    const end = Math.min(shown + step, total);
    const fresh = [];
    for (; shown < end; shown++) fresh.push(make(shown));
    more.before(...fresh);
    if (shown >= total) more.remove();
    else more.textContent = `${count(Math.min(step, total - shown))} more of ${count(total - shown)}`;
  };
  more.addEventListener("click", add);
  container.append(more);
  add();
  return container;
}

// --- the filter ------------------------------------------------------------------------------------------------

// Each part of a page registers what the filter does to it: a function of the words; it returns what it found, in words.
const filtered = [];
let words = [];

let scrolled = 0;

function applyFilter() {
  const before = words.length;
  words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const said = filtered.map((apply) => apply(words)).filter(Boolean);
  byId("found").textContent = words.length ? said.join(" · ") || "nothing matches" : "";
  // What the filter does not touch steps aside, so that what it found begins at the top; and comes back as it was.
  if (!before && words.length) scrolled = scrollY;
  document.body.classList.toggle("filtering", words.length > 0);
  if (!before && words.length) scrollTo(0, 0);
  else if (before && !words.length) scrollTo(0, scrolled);
}

const has = (text) => words.every((word) => text.includes(word));

function setFilter(text) {
  byId("filter").value = text;
  applyFilter();
}

// --- start -----------------------------------------------------------------------------------------------------

function remember(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* pages opened from disk may have no storage */ }
  return null;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

// What is folded opens before printing; each part registers how.
const onPrint = [];
let printed = false;
function beforePrint() {
  if (printed) return;
  printed = true;
  for (const open of onPrint) open(true);
}
function afterPrint() {
  printed = false;
  for (const open of onPrint) open(false);
}

function start() {
  byId("kind").textContent = data.kind;
  if (data.table_hash) byId("hash").textContent = `table ${data.table_hash.slice(0, 16)}`;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(remember("mapspec-theme") || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => remember("mapspec-theme") || setTheme(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remember("mapspec-theme", theme);
    setTheme(theme);
  });
  byId("viewer-close").addEventListener("click", () => byId("viewer").close());
  byId("viewer").addEventListener("click", (event) => event.target === byId("viewer") && byId("viewer").close());

  let waiting = 0;
  byId("filter").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(applyFilter, 60);
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey || byId("viewer").open) return;
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("filter").focus();
      byId("filter").select();
    } else if (event.key === "Escape" && event.target === byId("filter")) {
      setFilter("");
      byId("filter").blur();
    } else if (event.key === "e" && !typing) {
      const opened = document.querySelectorAll("[data-row][aria-expanded=true]").length;
      for (const open of onPrint) open(!opened);
    } else if (event.target.matches("[data-row]") && ["ArrowDown", "ArrowUp", "Home", "End"].includes(event.key)) {
      event.preventDefault();
      const rows = [...document.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
      const at = rows.indexOf(event.target);
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (rows[to]) rows[to].focus();
    }
  });
  addEventListener("beforeprint", beforePrint);
  addEventListener("afterprint", afterPrint);
}
