// Tensor names, written out from patterns and index sets when somebody asks for them.

// Every position of a rule, in order; a position gives each axis its index.
function* positions(rule) {
  const { fixed, axes, sets } = rule.positions;
  if (!axes.length) {
    yield fixed;
    return;
  }
  for (const product of sets) yield* spread(product, axes, 0, fixed);
}

function* spread(product, axes, depth, position) {
  if (depth === axes.length) {
    yield position;
    return;
  }
  for (const [first, last] of product[depth])
    for (let n = first; n <= last; n++) yield* spread(product, axes, depth + 1, { ...position, [axes[depth]]: n });
}

const HOLE = /\{(?:\*\*)?(\w+)\}/g;
const fill = (pattern, position) => pattern.replace(HOLE, (_, hole) => position[hole]);

// One tensor of a rule with its names on all surfaces.
function tensorAt(rule, position) {
  const names = (forms) => forms.map(([pattern]) => fill(pattern, position));
  return { position, hf: names(rule.hf), megatron: names(rule.megatron), stored: names(rule.stored) };
}

// What the filter looks through: names in lower case, in the order of `positions`. Made once, on the first search.
function searchable(rule) {
  if (!rule.searchable) {
    const patterns = [...rule.hf, ...rule.megatron, ...rule.stored].map(([pattern]) => pattern);
    const text = patterns.join("\n").toLowerCase();
    rule.searchable = [];
    for (const position of positions(rule)) rule.searchable.push(fill(text, lower(position)));
  }
  return rule.searchable;
}

// Holes were lowered with the text around them.
function lower(position) {
  const out = {};
  for (const [axis, value] of Object.entries(position)) out[axis.toLowerCase()] = String(value).toLowerCase();
  return out;
}

// What is known of a rule apart from its names.
function aboutRule(rule) {
  if (!rule.about) {
    const at = rule.at ? `${data.sources[rule.at[0]].path}:${rule.at[1]}` : "";
    const patterns = [...rule.hf, ...rule.megatron, ...rule.stored].map(([pattern]) => pattern);
    const parts = [rule.key, rule.scope, rule.mount, rule.block, rule.cut, rule.role, rule.dtype, ...rule.dims, at, ...patterns];
    rule.about = parts.join("\n").toLowerCase();
  }
  return rule.about;
}

// Indices of the rule's tensors that have all words, in their names or in what is known of the rule.
function matches(rule, given) {
  const about = aboutRule(rule);
  const rest = given.filter((word) => !about.includes(word));
  if (!rest.length) return null; // all of them
  const out = [];
  searchable(rule).forEach((text, i) => rest.every((word) => text.includes(word)) && out.push(i));
  return out;
}
