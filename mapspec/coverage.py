"""What a checkpoint holds against what the table expects of it: every tensor accounted for, or a finding."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mapspec.bound import BoundRule
from mapspec.collapse import collapse
from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.expr import parse_expr
from mapspec.names import Pattern
from mapspec.table import Table, TensorDecl
from mapspec.tensors import FLOATS, StoredTensor

__all__ = ["Account", "Coverage", "account", "cover"]

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a checkpoint's tensors are accounted for.

    Attributes:
        mapped: names that rules map.
        tied_copies: Hugging Face copies of tied weights that the file holds all the same.
        passthrough, ignored: (name, reason) of the others.
        findings: what is missing, extra, or not of the expected shape or dtype.
    """

    mapped: tuple[str, ...]
    tied_copies: tuple[str, ...]
    passthrough: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]
    findings: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Tensors of a checkpoint, by what becomes of them.

    Attributes:
        missing: what the table expects and the checkpoint lacks.
        extra: names that nothing accounts for.
        present: what is expected and there, whatever its shape and dtype.
        tied_copies, passthrough, ignored: as in `Coverage`.
    """

    missing: tuple[TensorDecl, ...]
    extra: tuple[str, ...]
    present: tuple[tuple[TensorDecl, StoredTensor], ...]
    tied_copies: tuple[str, ...]
    passthrough: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...]


def cover(
    table: Table, surface: str, tensors: Mapping[str, StoredTensor], *, cast_roles: Collection[str] = ()
) -> Coverage:
    """Account for every tensor of a checkpoint.

    Args:
        table: what the spec says for this config.
        surface: `hf` or `stored`.
        tensors: what the checkpoint holds.
        cast_roles: roles whose floating tensors will be cast, so that their dtype here does not matter.
    """
    found = account(table, surface, tensors)
    missing, extra, present = found.missing, found.extra, found.present
    findings = [
        *_missing(table, surface, missing),
        *_extra(table, surface, extra, [decl.name for decl in missing]),
        *_wrong_shape(table, surface, present),
        *_wrong_dtype(present, cast_roles),
    ]
    return Coverage(
        tuple(decl.name for decl, _ in present),
        found.tied_copies,
        found.passthrough,
        found.ignored,
        tuple(findings),
    )


def account(table: Table, surface: str, tensors: Mapping[str, StoredTensor]) -> Account:
    """Sort the tensors of a checkpoint, and what it lacks. Arguments as of `cover`."""
    expected = table.inventory(surface)
    tied = _tied_copies(table) if surface == "hf" else frozenset[str]()
    passthrough, ignored, extra = [], [], []
    lists = _lists(table, surface)
    for name in tensors:
        if name in expected:
            continue
        kind, reason = next(((k, r) for k, pattern, r in lists if pattern.match(name)), ("", ""))
        if kind == "passthrough":
            passthrough.append((name, reason))
        elif kind:
            ignored.append((name, reason))
        else:
            extra.append(name)
    missing = [decl for name, decl in expected.items() if name not in tensors and name not in tied]
    present = [(decl, tensors[name]) for name, decl in expected.items() if name in tensors]
    return Account(
        tuple(missing),
        tuple(extra),
        tuple(present),
        tuple(name for name in tied if name in tensors),
        tuple(passthrough),
        tuple(ignored),
    )


def _tied_copies(table: Table) -> frozenset[str]:
    return frozenset(name for key in table.tied for name in table.by_megatron[key].names("hf"))


def _lists(table: Table, surface: str) -> list[tuple[str, Pattern, str]]:
    bound = table.bound
    if surface == "stored":
        return [("ignored", pattern, reason) for pattern, reason, _ in bound.ignore_megatron]
    return [
        *(("passthrough", pattern, reason) for pattern, reason, _ in bound.passthrough),
        *(("ignored", pattern, reason) for pattern, reason, _ in bound.ignore_hf),
    ]


def side_name(surface: str) -> str:
    """How a surface is called in messages."""
    return {"hf": "Hugging Face", "stored": "torch_dist", "megatron": "Megatron"}[surface]


def _listing(names: Sequence[str], most: int = _SHOWN) -> str:
    patterns = collapse(names)
    shown = ", ".join(f"`{pattern}`" for pattern, _ in patterns[:most])
    return shown + (f" and {len(patterns) - most} more patterns" if len(patterns) > most else "")


def _plural(n: int, noun: str = "tensor") -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _missing(table: Table, surface: str, missing: Iterable[TensorDecl]) -> Iterator[Diagnostic]:
    """One finding per mount that is missing as a whole, and one per rule for the rest."""
    expected: dict[tuple[str, str], int] = {}
    for decl in table.inventory(surface).values():
        key = _mount(decl)
        expected[key] = expected.get(key, 0) + 1
    by_mount: dict[tuple[str, str], list[TensorDecl]] = {}
    for decl in missing:
        by_mount.setdefault(_mount(decl), []).append(decl)
    for key, decls in by_mount.items():
        if len(decls) == expected[key]:
            yield _missing_mount(table, surface, key, decls)
            continue
        by_rule: dict[Span, list[TensorDecl]] = {}
        for decl in decls:
            by_rule.setdefault(decl.members[0].row.rule.span, []).append(decl)
        for span, found in by_rule.items():
            yield _missing_rule(table, surface, span, found)


def _mount(decl: TensorDecl) -> tuple[str, str]:
    rule = decl.members[0].row.rule
    return rule.scope, rule.mount


def _missing_mount(table: Table, surface: str, key: tuple[str, str], decls: Sequence[TensorDecl]) -> Diagnostic:
    scope = next(s for s in table.bound.linked.scopes if s.id == key[0])
    mount = scope.spec.mounts[key[1]]
    message = (
        f"everything in mount `{key[1]}` is missing on the {side_name(surface)} side: {_plural(len(decls))}, "
        f"{_listing([decl.name for decl in decls], 2)}"
    )
    notes: tuple[Note, ...] = ()
    keys: frozenset[str] = frozenset()
    if mount.when is not None:
        notes = (Note(f"the config asks for it: `{mount.when}` holds", scope.span("mounts", key[1], "when")),)
        keys = _keys_behind(mount.when, scope.spec.values)
    setting = " or ".join(f"--set {'.'.join((*scope.configs[0], k))}=..." for k in sorted(keys)) or "--set KEY=VALUE"
    help_ = f"if the checkpoint is meant to be without it, say so: {setting} changes config.json for this run"
    return Diagnostic("MS511", message, scope.span("mounts", key[1], of_key=True), notes=notes, help=help_)


def _keys_behind(text: str, values: Mapping[str, str]) -> frozenset[str]:
    """Config keys that decide an expression, through the values that it names."""
    expr = parse_expr(text)
    return expr.keys.union(*(_keys_behind(values[name], values) for name in expr.names if name in values))


def _missing_rule(table: Table, surface: str, span: Span, decls: Sequence[TensorDecl]) -> Diagnostic:
    rule = decls[0].members[0].row.rule
    message = f"{_plural(len(decls))} missing on the {side_name(surface)} side: {_listing([d.name for d in decls])}"
    counts = ", ".join(f"{axis} = {rule.axes[axis].size}" for axis in rule.positions[0] if axis in rule.axes)
    notes = [Note(f"rule `{rule.key}` in mount `{rule.mount}`" + (f" expects them for {counts}" if counts else ""))]
    help_ = "the checkpoint is incomplete, or config.json promises what it does not hold (see --set)"
    scope = next(s for s in table.bound.linked.scopes if s.id == rule.scope)
    absent = {member.row.megatron for decl in decls for member in decl.members}
    for axis in (a for a in rule.positions[0] if a in rule.axes and rule.axes[a].ravel is None):
        gone = {m.row.position[axis] for d in decls for m in d.members}
        there = {r.position[axis] for r in table.rows if r.rule is rule and r.megatron not in absent}
        if there and max(there) < min(gone):
            declared = scope.span("axes", axis, of_key=True)
            notes.append(
                Note(f"it holds {axis} 0 to {max(there)}, the config promises {rule.axes[axis].size}", declared)
            )
            help_ = scope.spec.axes[axis].shorter or help_
    return Diagnostic("MS511", message, span, notes=tuple(notes), help=help_)


def _extra(table: Table, surface: str, extra: Sequence[str], missing: Sequence[str]) -> Iterator[Diagnostic]:
    if not extra:
        return
    top = table.bound.linked.top
    message = f"{_plural(len(extra))} that no rule maps on the {side_name(surface)} side: {_listing(extra)}"
    hint = nearest(extra[0], missing) if len(missing) < 2000 else None
    section = "`passthrough` or `ignore_hf`" if surface == "hf" else "`ignore_megatron`"
    help_ = (
        f"map them with a rule, or list them under {section} with a reason; a variant that `extends` this one may do so"
    )
    span = top.span("blocks", of_key=True) if top.spec.blocks else top.span()
    yield Diagnostic("MS512", message, span, hint=hint, help=help_, notes=tuple(_switched_off(table, surface, extra)))


def _switched_off(table: Table, surface: str, extra: Sequence[str]) -> Iterator[Note]:
    """Parts of the spec that would take some of the tensors, had the config not switched them off."""
    live = {rule.scope for rule in table.bound.rules}
    for scope in table.bound.linked.scopes:
        prefix = str(scope.prefix("hf" if surface == "hf" else "megatron", table.bound.flavours))
        if scope.id in live or not prefix or not scope.conditions or not any(n.startswith(f"{prefix}.") for n in extra):
            continue
        _, condition, span = scope.conditions[-1]
        yield Note(f"names below `{prefix}` are those of include `{scope.id}`, if only `{condition.text}` held", span)


def _wrong_shape(
    table: Table, surface: str, present: Iterable[tuple[TensorDecl, StoredTensor]]
) -> Iterator[Diagnostic]:
    groups: dict[tuple[Span, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    rules: dict[Span, BoundRule] = {}
    for decl, tensor in present:
        if decl.shape != tensor.shape:
            rule = decl.members[0].row.rule
            key = (rule.span, decl.shape, tensor.shape)
            rules[rule.span] = rule
            groups.setdefault(key, []).append(decl.name)
    for (span, expected, actual), names in groups.items():
        message = (
            f"{_listing(names)}: shape {list(actual)} in the checkpoint, {list(expected)} by the spec and the config"
        )
        help_ = "config.json and the tensors do not belong together, or the rule's `shape` is wrong"
        notes = _sizes_from(table, rules[span], expected, actual)
        yield Diagnostic("MS513", message, span, help=help_, notes=tuple(notes))


def _sizes_from(table: Table, rule: BoundRule, expected: Sequence[int], actual: Sequence[int]) -> Iterator[Note]:
    """Which keys of the config decide the sizes that differ."""
    scope = next(s for s in table.bound.linked.scopes if s.id == rule.scope)
    dims = rule.dims or ()
    if len(expected) != len(actual) or len(expected) != len(dims):
        return
    for dim, promised, found in zip(dims, expected, actual, strict=True):
        declared = scope.spec.dims.get(dim.name)
        if promised == found or declared is None or declared.size is None:
            continue
        keys = sorted(_keys_behind(declared.size, scope.spec.values))
        if keys:
            listed = ", ".join(f"`{'.'.join((*scope.configs[0], key))}`" for key in keys)
            message = (
                f"`{dim.name}` is {promised} by {listed} or their defaults (--set changes config.json for this run)"
            )
            yield Note(message, scope.span("dims", dim.name, "size"))


def _wrong_dtype(
    present: Iterable[tuple[TensorDecl, StoredTensor]], cast_roles: Collection[str]
) -> Iterator[Diagnostic]:
    groups: dict[tuple[Span, str], list[str]] = {}
    roles = {}
    for decl, tensor in present:
        rule = decl.members[0].row.rule
        cast = rule.role_name in cast_roles and tensor.dtype in FLOATS
        if tensor.dtype not in rule.role.accepts and not cast:
            groups.setdefault((rule.span, tensor.dtype), []).append(decl.name)
            roles[rule.span] = rule
    for (span, dtype), names in groups.items():
        rule = roles[span]
        accepts = ", ".join(rule.role.accepts)
        message = f"{_listing(names)}: dtype {dtype}; role `{rule.role_name}` accepts {accepts}"
        if dtype.startswith("float8") or dtype == "uint8":
            help_ = "this is a quantised checkpoint; convert the BF16 release of the model"
        elif rule.role.keep:
            help_ = f"{rule.role.keep}; if the checkpoint is right, pass --cast {rule.role_name}={rule.role.accepts[0]}"
        else:
            help_ = f"add the dtype to `roles.{rule.role_name}.accepts` if it is right"
        yield Diagnostic("MS514", message, span, help=help_)
