"""`mapspec lint`: everything that can be wrong with specs, found without a checkpoint and without torch.

Beyond what loading checks, a mapping is bound to its reference configs under every flavour, and proven there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mapspec.arrange import parse_arrangement
from mapspec.bind import Bound, Choices, bind
from mapspec.diagnostics import Diagnostic, Severity, Span, nearest
from mapspec.documents import read_mapping, reference_configs
from mapspec.errors import MapspecError, SpecError
from mapspec.expr import parse_expr
from mapspec.io.json_config import read_config
from mapspec.link import Linked, Scope, link_file
from mapspec.names import parse_name
from mapspec.prove import prove
from mapspec.schema import v1
from mapspec.table import build_table
from mapspec.text import Path_, read_yaml

__all__ = ["expressions", "lint"]

_FLIPS_UP_TO = 2_000  # rows; larger models have the same rules and would only take longer


def lint(
    paths: Iterable[Path], *, others: Mapping[str, Callable[[Path], list[Diagnostic]]] | None = None
) -> list[Diagnostic]:
    """Check spec files.

    Args:
        paths: the files.
        others: kind -> check, for documents that are no mappings.
    """
    found: list[Diagnostic] = []
    for path in paths:
        try:
            kind = str(read_yaml(path).data.get("kind"))
            if others and kind in others:
                found += others[kind](path)
            else:
                found += _lint_mapping(path)
        except MapspecError as error:
            found += error.diagnostics
    return sorted(set(found), key=Diagnostic.sort_key)


def _lint_mapping(path: Path) -> list[Diagnostic]:
    linked = link_file(path)
    found = [*_unused(linked.top)]
    bounds: list[Bound] = []
    configs: list[dict[str, Any]] = []
    bound_to: list[tuple[Diagnostic, str]] = []
    for name, file in reference_configs(linked.top.document):
        if isinstance(file, Diagnostic):
            found.append(file)
            continue
        try:
            config = read_config(file)
        except MapspecError as error:
            found += error.diagnostics
            continue
        configs.append(config)
        for choices in _choices(linked):
            if choices.flavours and bounds and sum(len(r.positions) for r in bounds[-1].rules) > _FLIPS_UP_TO:
                continue
            where = ", ".join([f"`{name}`", *(f"{f}={c}" for f, c in choices.flavours.items())])
            try:
                bound = bind(linked, config, choices)
            except SpecError as error:
                bound_to += [(d, where) for d in error.diagnostics]
                break
            bounds.append(bound)
            bound_to += [(d, where) for d in prove(build_table(bound)).findings]
    found += _once(bound_to)
    if bounds:
        known = {path for config in configs for path in _paths(config, "")}
        found += _never_used(linked.top, bounds, known)
        found += _unknown_keys(linked.top, known)
    return found


def _once(found: Iterable[tuple[Diagnostic, str]]) -> Iterator[Diagnostic]:
    """Each mistake once, with the first config that shows it and how many others do."""
    first: dict[tuple[str, Span | None], Diagnostic] = {}
    places: dict[tuple[str, Span | None], list[str]] = {}
    for finding, where in found:
        key = (finding.code, finding.span)
        first.setdefault(key, finding)
        places.setdefault(key, []).append(where)
    for key, finding in first.items():
        others = len(set(places[key])) - 1
        yield finding.with_note(
            f"for the reference config {places[key][0]}" + (f" and {others} more" if others else "")
        )


def _choices(linked: Linked) -> Iterator[Choices]:
    """The defaults, then every other choice of each flavour by itself."""
    yield Choices()
    for name, flavour in linked.flavours().items():
        for choice in flavour.choices:
            if choice != flavour.default:
                yield Choices(flavours={name: choice})


def _warning(code: str, message: str, scope: Scope, *path: str | int, help: str | None = None) -> Diagnostic:
    return Diagnostic(code, message, scope.span(*path, of_key=True), severity=Severity.WARNING, help=help)


def _unused(scope: Scope) -> Iterator[Diagnostic]:
    """Declarations that nothing refers to."""
    spec = scope.spec
    used = {name for _, text in expressions(spec) for name in parse_expr(text).names}
    for dim in spec.dims.values():
        if dim.order is not None:
            used |= {name for node in parse_arrangement(dim.order) for name in node.counts()}
    rules = [rule for block in spec.blocks.values() for rule in block.tensors.values()]
    shapes = {d for rule in rules for d in rule.shape or ()}
    roles = {rule.role for rule in rules}
    spelled = {c for rule in rules for c in rule.flavours} | {c for m in spec.mounts.values() for c in m.flavours}
    for include in spec.include.values():
        spelled |= {
            c for flavours in (include.flavours, *(r.flavours for r in include.remount.values())) for c in flavours
        }
    switches = {name for name, flavour in spec.flavours.items() if spelled & set(flavour.choices)}
    by_kind = any(mount.kinds_of for mount in spec.mounts.values())
    groups = (
        ("value", "values", spec.values, used),
        ("flavour", "flavours", spec.flavours, used | switches),
        ("axis", "axes", spec.axes, used | _axes_used(spec)),
        ("dim", "dims", spec.dims, shapes | used),
        ("role", "roles", spec.roles, roles),
        ("kind", "kinds", spec.kinds, set(spec.kinds) if by_kind else set()),
        ("block", "blocks", spec.blocks, _mounted(spec)),
    )
    if spec.extends:
        return  # a variant inherits more than it needs
    for noun, section, declared, wanted in groups:
        for name in declared:
            if name not in wanted:
                help_ = "remove it, or use it; a misspelt name elsewhere may have been meant"
                yield _warning("MS308", f"{noun} `{name}` is used nowhere", scope, section, name, help=help_)


def _mounted(spec: v1.Mapping) -> set[str]:
    """Blocks that some mount places."""
    mounted = {b for mount in spec.mounts.values() for b in mount.blocks}
    if any(mount.kinds_of for mount in spec.mounts.values()):
        mounted |= {b for kind in spec.kinds.values() for b in kind.blocks}
    return mounted


def _axes_used(spec: v1.Mapping) -> set[str]:
    names = [text for m in spec.mounts.values() for text in (m.megatron, m.hf)]
    for block in spec.blocks.values():
        for key, rule in block.tensors.items():
            names += [key, *([rule.hf] if isinstance(rule.hf, str) else rule.hf.values())]
    used = {hole for text in names for hole in parse_name(text).holes}
    used |= {a for axis in spec.axes.values() for a in axis.ravel or ()}
    used |= {m.kinds_of for m in spec.mounts.values() if m.kinds_of}
    used |= {a for b in spec.blocks.values() for a in b.wildcards}
    used |= {o.each for b in spec.blocks.values() for o in b.objects if o.each}
    return used | {a for m in spec.mounts.values() for a in (*m.wildcards, *m.pin)}


def _never_used(scope: Scope, bounds: list[Bound], known: set[str]) -> Iterator[Diagnostic]:
    """Rules that no reference config ever needs; those that wait for an unknown key are reported for that."""
    live = {(rule.block, rule.key) for bound in bounds for rule in bound.rules if rule.scope == ""}
    mounted = _mounted(scope.spec)
    for block_name, block in scope.spec.blocks.items():
        if block_name not in mounted:
            continue  # reported as used nowhere
        for key, rule in block.tensors.items():
            misspelt = {k for text in (rule.when, block.when) if text for k in parse_expr(text).keys} - known
            if (block_name, key) not in live and not misspelt and not scope.spec.extends:
                message = f"rule `{key}` makes no tensor of any reference config"
                help_ = "correct its `when`, or add a config that needs it to `metadata.references`"
                yield _warning("MS505", message, scope, "blocks", block_name, "tensors", key, help=help_)


def _unknown_keys(scope: Scope, known: set[str]) -> Iterator[Diagnostic]:
    """Config keys that no reference config has: a misspelt one inside `default(...)` switches a rule off in silence."""
    inherited = {key for spec in _parents(scope) for _, text in expressions(spec) for key in parse_expr(text).keys}
    for path, text in expressions(scope.spec):
        for key in sorted(parse_expr(text).keys - known - inherited):
            message = f"no reference config has the key `{key}`"
            span = scope.span(*path).part(text, max(text.find(f"hf.{key}"), 0), len(f"hf.{key}"))
            yield Diagnostic(
                "MS412", message, span, severity=Severity.WARNING, hint=nearest(key, known),
                help="correct the key, or add a config that has it to `metadata.references`",
            )  # fmt: skip


def _parents(scope: Scope) -> Iterator[v1.Mapping]:
    """What a variant extends; for the keys that it inherits, its parent has references."""
    yield from (read_mapping(path).model for path in scope.document.parents[:1])


def expressions(spec: v1.Mapping) -> Iterator[tuple[Path_, str]]:
    """Every expression of a spec, with its path."""
    for path, text in _all_expressions(spec):
        if text is not None:
            yield path, text


def _all_expressions(spec: v1.Mapping) -> Iterator[tuple[Path_, str | None]]:
    for name, text in spec.values.items():
        yield ("values", name), text
    for name, axis in spec.axes.items():
        for key in ("size", "length", "when"):
            yield ("axes", name, key), getattr(axis, key)
        for i, text in enumerate(axis.pattern or ()):
            yield ("axes", name, "pattern", i), text
    for name, dim in spec.dims.items():
        yield ("dims", name, "size"), dim.size
        for segment, text in (dim.segments or {}).items():
            yield ("dims", name, "segments", segment), text
    for name, role in spec.roles.items():
        yield ("roles", name, "dtype"), role.dtype
    for name, block in spec.blocks.items():
        yield ("blocks", name, "when"), block.when
        for key, rule in block.tensors.items():
            yield ("blocks", name, "tensors", key, "when"), rule.when
        for i, objects in enumerate(block.objects):
            yield ("blocks", name, "objects", i, "when"), objects.when
    for name, mount in spec.mounts.items():
        yield ("mounts", name, "when"), mount.when
    for name, tie in spec.tied.items():
        yield ("tied", name, "when"), tie.when
    for name, include in spec.include.items():
        yield ("include", name, "when"), include.when


def _paths(config: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
