"""What a mapping declares, before and after, of which the tensors of reference models show nothing."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from mapspec.diff.faults import LISTS
from mapspec.diff.loaded import Version
from mapspec.diff.mappings import MappingDiff
from mapspec.diff.parts import Found, Store
from mapspec.errors import SpecError
from mapspec.expr import ExprError, parse_expr
from mapspec.lint import expressions
from mapspec.names import join, parse_name
from mapspec.schema import v1
from mapspec.text import Path_

__all__ = ["compare_declared"]

_WORDS = ("about", "note", "shorter")


def compare_declared(diff: MappingDiff, store: Store) -> None:
    """Compare what a mapping declares in its own file. To be called when all models of all mappings are known."""
    if diff.old.linked is not None and diff.new.linked is not None:
        _Declared(diff, store).run()


class _Declared:
    def __init__(self, diff: MappingDiff, store: Store) -> None:
        assert diff.old.linked is not None
        assert diff.new.linked is not None
        self.old, self.new, self.store = diff.old, diff.new, store
        self.was, self.now = diff.old.linked.top.spec, diff.new.linked.top.spec
        self.name = diff.new.file.name
        self.file = diff.new.side.relative(diff.new.file.path)
        self.edits = [edit for edit in diff.edits if edit.file == self.file]

    def run(self) -> None:
        if not self.edits:
            return  # everything that differs stands in files of others
        self.listed_names()
        self.lists()
        if self.now.extends is None and self.was.extends is None:
            self.rules()
            self.keys()
        self.words()

    def found(self, code: str, subject: str, before: str, after: str, path: Path_, more: str = "") -> Found:
        old, new = (
            version.side.place(version.linked.top.span(*path, of_key=True)) if version.linked else None
            for version in (self.old, self.new)
        )
        found = self.store.add(Found(code, (self.name, subject, more), self.name, subject, before, after, old, new))
        mine = [e for e in self.edits if e.path[: len(path)] == path or path[: len(e.path)] == e.path]
        found.edits.update({(edit.file, edit.cause.key): edit for edit in mine})
        return found

    # --- names that users write -----------------------------------------------------------------------------------

    def listed_names(self) -> None:
        was, now = self.was.metadata.architectures, self.now.metadata.architectures
        path: Path_ = ("metadata", "architectures")
        for name in was:
            if name not in now:
                self.found("DC213", name, "listed", "not listed", path)
        for name in now:
            if name not in was:
                self.found("DC404", name, "not listed", "listed", path)
        for flavour in dict.fromkeys((*self.was.flavours, *self.now.flavours)):
            before = self.was.flavours[flavour].choices if flavour in self.was.flavours else ()
            after = self.now.flavours[flavour].choices if flavour in self.now.flavours else ()
            texts = [", ".join(choices) or "absent" for choices in (before, after)]
            if set(before) - set(after):
                self.found("DC214", flavour, texts[0], texts[1], ("flavours", flavour))
            elif set(after) - set(before):
                self.found("DC404", flavour, texts[0], texts[1], ("flavours", flavour))

    def lists(self) -> None:
        """Entries of the lists that no tensor of a reference model has shown to matter."""
        told = [f for f in self.store.found.values() if f.code in ("DC103", "DC201", "DC206")]
        for section in LISTS:
            was, now = getattr(self.was, section), getattr(self.now, section)
            for pattern in dict.fromkeys((*was, *now)):
                if (pattern in was) == (pattern in now) or any(f"`{pattern}`" in f.before + f.after for f in told):
                    continue
                words = ("listed", "not listed") if pattern in was else ("not listed", "listed")
                self.found("DC305", pattern, *words, (section, pattern), section)

    # --- rules that no reference model needs, and conditions -------------------------------------------------------

    def rules(self) -> None:
        olds, news = _rules_of(self.was), _rules_of(self.now)
        for name in dict.fromkeys((*olds, *news)):
            old, new = olds.get(name), news.get(name)
            here = new or old
            assert here is not None
            if self.known(old, self.old) or self.known(new, self.new):
                # Its tensors have been compared; what is left is when it applies.
                if old and new and old.when != new.when and not (self.told(old) or self.told(new)):
                    self.found("DC301", here.key, _shown(old.when), _shown(new.when), here.path, here.block)
                continue
            if (old and old.effect) != (new and new.effect) or (old and new and old.when != new.when):
                words = ["absent" if rule is None else _shown(rule.when) for rule in (old, new)]
                self.found("DC302", here.key, words[0], words[1], here.path, here.block)

    def known(self, rule: _Rule | None, version: Version) -> bool:
        """Whether some reference model has tensors of the rule."""
        file = version.side.relative(version.file.path)
        return rule is not None and (file, rule.block, rule.key) in self.store.alive

    def told(self, rule: _Rule) -> bool:
        return any((self.file, rule.block, rule.key) == touched for touched in self.store.touched)

    def keys(self) -> None:
        """Config keys that the spec reads no more."""
        was, now = (
            {key for _, text in expressions(spec) for key in parse_expr(text).keys} for spec in (self.was, self.now)
        )
        for key in sorted(was - now):
            place = next(p for p, text in expressions(self.was) if key in parse_expr(text).keys)
            self.found("DC303", key, "read", "not read", place)

    def words(self) -> None:
        """Notes, reasons and the like."""
        for edit in self.edits:
            reason = edit.path[0] in LISTS and edit.cause.before and edit.cause.after
            if edit.path[-1] in _WORDS or reason:
                self.found("DC502", ".".join(map(str, edit.path)), edit.cause.before, edit.cause.after, edit.path)


class _Rule:
    """A rule at a mount, in a form in which equal meanings are equal."""

    def __init__(self, spec: v1.Mapping, mount: str, block: str, key: str) -> None:
        rule, place = spec.blocks[block].tensors[key], spec.mounts[mount]
        self.block, self.key = block, key
        self.path: Path_ = ("blocks", block, "tensors", key)
        conditions = [text for text in (place.when, spec.blocks[block].when, rule.when) if text is not None]
        self.when = frozenset(_inlined(text, spec.values) for text in conditions)
        spelled = [(c, s.megatron, str(s.hf), s.stored) for c, s in rule.flavours.items()]
        self.effect = (str(rule.hf), rule.shape, rule.role, rule.stored, place.hf, tuple(spelled))


def _rules_of(spec: v1.Mapping) -> dict[str, _Rule]:
    """Full Megatron name -> rule."""
    out = {}
    for mount, place in spec.mounts.items():
        blocks = list(place.blocks)
        if place.kinds_of is not None:
            blocks += [block for kind in spec.kinds.values() for block in kind.blocks]
        for block in dict.fromkeys(blocks):
            for key in spec.blocks[block].tensors if block in spec.blocks else ():
                name = join(parse_name(place.megatron), parse_name(key))
                out[f"{mount} {block} {name}" if str(name) in out else str(name)] = _Rule(spec, mount, block, key)
    return out


def _inlined(text: str, values: Mapping[str, str]) -> str:
    """An expression with named values written out, in one spelling."""

    class Inline(ast.NodeTransformer):
        def __init__(self) -> None:
            self.running: list[str] = []

        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id not in values or node.id in self.running:
                return node
            self.running.append(node.id)
            try:
                inner: ast.expr = self.visit(ast.parse(values[node.id], mode="eval").body)
                return inner
            finally:
                self.running.pop()

    try:
        return ast.unparse(Inline().visit(ast.parse(parse_expr(text).text.strip(), mode="eval").body))
    except (ExprError, SpecError, SyntaxError):
        return text


def _shown(conditions: frozenset[str]) -> str:
    return " and ".join(sorted(conditions)) or "always"
