// Both sides as trees of modules; layers of one kind are one branch.

const SEPARATOR = /\.(?![^{]*\})/; // a dot that is not inside braces

// Leaves as a trie; chains of single children are one node.
function grow(leaves) {
  const root = { children: new Map(), total: 0 };
  for (const [pattern, n, rule, extents] of leaves) {
    let node = root;
    for (const part of pattern.split(SEPARATOR)) {
      if (!node.children.has(part)) node.children.set(part, { label: part, children: new Map(), total: 0, blocks: new Set() });
      node = node.children.get(part);
      node.total += n;
      node.blocks.add(data.rules[rule].block);
    }
    // Two leaves with one name: a stacked tensor that several rules fill.
    if (!node.leaf) node.leaf = { pattern, count: n, rules: [rule], shape: extents };
    else if (!node.leaf.rules.includes(rule)) node.leaf.rules.push(rule);
  }
  root.children.forEach(squeeze);
  return root;
}

function squeeze(node) {
  while (node.children.size === 1 && !node.leaf) {
    const [only] = node.children.values();
    node.label += `.${only.label}`;
    node.children = only.children;
    node.leaf = only.leaf;
  }
  node.children.forEach(squeeze);
}

function treeSection() {
  const left = pane(["hf"]);
  const right = pane(["megatron", "stored"]);
  const panes = [left, right];
  section("names", "Names", "Both sides as modules; a branch stands for all layers of one kind. Choosing a tensor shows its counterpart.",
    h("div", { class: "panes" }, left.node, right.node));
  for (const one of panes) one.onChoose = (rules) => panes.forEach((other) => other !== one && other.highlight(rules));
  filtered.push((given) => {
    panes.forEach((one) => one.filter(given));
    return "";
  });
  onPrint.push((open) => panes.forEach((one) => one.openAll(open)));
}

let treeCount = 0;

function pane(surfaces) {
  const self = { onChoose: () => {} };
  const holder = h("div", { class: "tree-holder" });
  const head = h("div", { class: "pane-head" });
  self.node = h("div", { class: "pane" }, head, holder);
  let current = null;
  const show = (surface) => {
    current = makeTree(data.trees[surface], SIDES[surface], (rules) => self.onChoose(rules));
    holder.replaceChildren(current.node);
    current.filter(words);
    for (const button of head.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.surface === surface));
  };
  if (surfaces.length === 1) head.append(h("h3", {}, SIDES[surfaces[0]]));
  else for (const surface of surfaces)
    head.append(h("button", { type: "button", class: "tab", "data-surface": surface, onclick: () => show(surface) }, surface === "stored" ? "torch_dist keys" : "Megatron-Core"));
  show(surfaces[0]);
  self.highlight = (rules) => current.highlight(rules);
  self.filter = (given) => current.filter(given);
  self.openAll = (open) => current.openAll(open);
  return self;
}

function makeTree(leaves, label, onChoose) {
  const root = grow(leaves);
  const top = h("ul", { role: "tree", "aria-label": `${label} names`, class: "tree" });
  const nodes = [];
  const tree = { node: top };

  function item(node) {
    const branch = node.children.size > 0;
    const row = h("div", { class: "node", style: { "--level": node.level } },
      h("span", { class: branch ? "chevron" : "chevron none", "aria-hidden": "true" }),
      node.blocks.size === 1 ? dot([...node.blocks][0]) : h("span", { class: "dot none" }),
      nameOf(node.label),
      h("span", { class: "shape" }, node.leaf && !branch ? `[${node.leaf.shape.map(count).join(", ")}]` : ""),
      node.total > 1 ? h("span", { class: "times" }, `${count(node.total)}`) : null);
    node.element = h("li", { role: "treeitem", "aria-level": node.level, tabindex: -1, "aria-expanded": branch ? "false" : null, "aria-label": `${node.label}, ${plural(node.total, "tensor")}` }, row);
    node.element.node = node;
    row.addEventListener("click", () => {
      focus(node);
      if (branch) expand(node, node.element.getAttribute("aria-expanded") !== "true");
      else choose(node);
    });
    row.addEventListener("dblclick", () => node.leaf && goToRule(node.leaf.rules[0]));
    return node.element;
  }

  // Children are made when a branch is first opened.
  function expand(node, wanted) {
    if (!node.children.size) return;
    node.element.setAttribute("aria-expanded", String(wanted));
    let list = node.element.querySelector(":scope > ul");
    if (!list && wanted) {
      list = h("ul", { role: "group" });
      for (const child of node.children.values()) list.append(child.element || item(child));
      node.element.append(list);
      node.children.forEach(mark);
    }
    if (list) list.hidden = !wanted;
  }

  function build(parent, level, above) {
    for (const child of parent.children.values()) {
      child.level = level;
      child.above = above;
      nodes.push(child);
      build(child, level + 1, child);
    }
  }

  function focus(node) {
    for (const other of nodes) if (other.element && other.element.tabIndex === 0) other.element.tabIndex = -1;
    node.element.tabIndex = 0;
    node.element.focus({ preventScroll: false });
  }

  function choose(node) {
    for (const other of nodes) other.chosen = other === node;
    nodes.forEach(mark);
    if (node.leaf) onChoose(node.leaf.rules);
  }

  function reveal(node) {
    for (let up = node.above; up; up = up.above) if (up.above) reveal(up);
    if (node.above) expand(node.above, true);
  }

  function mark(node) {
    if (!node.element) return;
    node.element.classList.toggle("chosen", Boolean(node.chosen));
    node.element.hidden = Boolean(node.out);
  }

  const visible = () => [...top.querySelectorAll('[role="treeitem"]')].filter((element) => element.offsetParent !== null);

  top.addEventListener("keydown", (event) => {
    const element = event.target.closest('[role="treeitem"]');
    if (!element || event.ctrlKey || event.metaKey || event.altKey) return;
    const node = element.node;
    const open = element.getAttribute("aria-expanded") === "true";
    const rows = visible();
    const at = rows.indexOf(element);
    const to = (target) => target && focus(target.node);
    const keys = {
      ArrowDown: () => to(rows[at + 1]),
      ArrowUp: () => to(rows[at - 1]),
      Home: () => to(rows[0]),
      End: () => to(rows[rows.length - 1]),
      ArrowRight: () => (node.children.size && !open ? expand(node, true) : open && to(rows[at + 1])),
      ArrowLeft: () => (open ? expand(node, false) : node.above && focus(node.above)),
      " ": () => (node.children.size ? expand(node, !open) : choose(node)),
      Enter: () => (node.leaf && !node.children.size ? (choose(node), goToRule(node.leaf.rules[0])) : expand(node, !open)),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  tree.highlight = (rules) => {
    let first = null;
    for (const node of nodes) {
      node.chosen = Boolean(node.leaf && node.leaf.rules.some((rule) => rules.includes(rule)));
      if (node.chosen) {
        reveal(node);
        first = first || node;
      }
    }
    nodes.forEach(mark);
    if (first) {
      const holder = top.parentElement;
      const middle = first.element.offsetTop - holder.clientHeight / 2;
      holder.scrollTo({ top: middle });
    }
  };

  tree.filter = (given) => {
    const keep = (node) => {
      const own = node.leaf ? node.leaf.rules.some((rule) => { const hits = data.rules[rule].hits; return !hits || hits.length; }) : false;
      let any = own;
      node.children.forEach((child) => { any = keep(child) || any; });
      node.out = given.length > 0 && !any;
      return any;
    };
    root.children.forEach(keep);
    nodes.forEach(mark);
  };

  tree.openAll = (open) => {
    const all = (node) => {
      expand(node, open || node.level === 1);
      if (open) node.children.forEach(all);
    };
    root.children.forEach(all);
  };

  build(root, 1, null);
  for (const child of root.children.values()) top.append(item(child));
  // Open, level by level, as much as is seen at a glance.
  let seen = root.children.size;
  for (const node of nodes.filter((one) => one.children.size).sort((a, b) => a.level - b.level)) {
    seen += node.children.size;
    if (node.level > 1 && seen > 22) break;
    reveal(node);
    expand(node, true);
  }
  const [first] = root.children.values();
  if (first) first.element.tabIndex = 0;
  return tree;
}
