"""`mapspec lint`: everything that can be wrong with specs, found without a checkpoint and without torch.

Beyond what loading checks, a mapping is bound to its reference configs under every flavour, and proven there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mapspec.arrange import parse_arrangement
from mapspec.bind import Bound, Choices, bind
from mapspec.diagnostics import Diagnostic, Severity, nearest
from mapspec.documents import read_mapping
from mapspec.errors import MapspecError, SpecError
from mapspec.expr import parse_expr
from mapspec.io.json_config import read_config
from mapspec.link import Linked, Scope, link
from mapspec.names import parse_name
from mapspec.prove import prove
from mapspec.schema import v1
from mapspec.table import build_table
from mapspec.text import read_yaml

__all__ = ["lint", "reference_configs"]

_FLIPS_UP_TO = 10_000  # rows; larger models have the same rules and would only take longer


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


def reference_configs(scope: Scope) -> Iterator[tuple[str, Path | None]]:
    """Reference names of a mapping with their config files; `None` where there is none.

    A reference is a path relative to the spec, or a name that is looked up in `configs/` beside the spec and in
    `tests/configs/` of the project that the spec lies in.
    """
    here = scope.document.path.resolve().parent
    folders = [here, here / "configs", *(parent / "tests" / "configs" for parent in here.parents)]
    for name in scope.spec.metadata.references:
        files = (folder / (name if name.endswith(".json") else f"{name}.json") for folder in folders)
        yield name, next((f for f in files if f.is_file()), None)


def _lint_mapping(path: Path) -> list[Diagnostic]:
    linked = link(read_mapping(path))
    found = [*_unused(linked.top)]
    bounds: list[Bound] = []
    configs: list[dict[str, Any]] = []
    for i, (name, file) in enumerate(reference_configs(linked.top)):
        if file is None:
            span = linked.top.span("metadata", "references", i)
            help_ = "put NAME.json into `configs/` beside the spec or into `tests/configs/` of the project"
            found.append(Diagnostic("MS307", f"there is no config for the reference `{name}`", span, help=help_))
            continue
        config = read_config(file)
        configs.append(config)
        for choices in _choices(linked):
            if choices.flavours and bounds and sum(len(r.positions) for r in bounds[-1].rules) > _FLIPS_UP_TO:
                continue
            try:
                bound = bind(linked, config, choices)
            except SpecError as error:
                found += [d.with_note(f"for the reference config `{name}`") for d in error.diagnostics]
                break
            bounds.append(bound)
            found += [d.with_note(f"for the reference config `{name}`") for d in prove(build_table(bound)).findings]
    if bounds:
        found += _never_used(linked.top, bounds)
        found += _unknown_keys(linked, configs)
    return found


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
    mounted = {b for mount in spec.mounts.values() for b in mount.blocks}
    if any(mount.kinds_of for mount in spec.mounts.values()):
        mounted |= {b for kind in spec.kinds.values() for b in kind.blocks}
    used = _names_used(spec)
    rules = [rule for block in spec.blocks.values() for rule in block.tensors.values()]
    shapes = {d for rule in rules for d in rule.shape or ()}
    roles = {rule.role for rule in rules}
    groups = (
        ("blocks", spec.blocks, mounted),
        ("dims", spec.dims, shapes | used),
        ("values", spec.values, used),
        ("roles", spec.roles, roles),
        ("axes", spec.axes, used | _axes_used(spec)),
    )
    for section, declared, wanted in groups:
        for name in declared:
            if name not in wanted:
                noun = section.removesuffix("s") if section != "axes" else "axis"
                help_ = "remove it; a variant inherits what it needs from its parent"
                if not spec.extends:
                    yield _warning("MS308", f"{noun} `{name}` is used nowhere", scope, section, name, help=help_)


def _names_used(spec: v1.Mapping) -> set[str]:
    texts: list[str | None] = [*spec.values.values(), *(r.dtype for r in spec.roles.values())]
    for axis in spec.axes.values():
        texts += [axis.size, axis.length, axis.when, *(axis.pattern or ())]
    counts: set[str] = set()
    for dim in spec.dims.values():
        texts += [dim.size, *(dim.segments or {}).values()]
        if dim.order is not None:
            counts = counts.union(*(node.counts() for node in parse_arrangement(dim.order)))
    for block in spec.blocks.values():
        texts += [block.when, *(r.when for r in block.tensors.values()), *(o.when for o in block.objects)]
    texts += [m.when for m in spec.mounts.values()]
    texts += [t.when for t in spec.tied.values()]
    texts += [i.when for i in spec.include.values()]
    return counts.union(*(parse_expr(text).names for text in texts if text is not None))


def _axes_used(spec: v1.Mapping) -> set[str]:
    names = [text for m in spec.mounts.values() for text in (m.megatron, m.hf)]
    for block in spec.blocks.values():
        for key, rule in block.tensors.items():
            names += [key, *([rule.hf] if isinstance(rule.hf, str) else rule.hf.values())]
    used = {hole for text in names for hole in parse_name(text).holes}
    used |= {a for axis in spec.axes.values() for a in axis.ravel or ()}
    used |= {m.kinds_of for m in spec.mounts.values() if m.kinds_of}
    used |= {a for b in spec.blocks.values() for a in b.wildcards}
    return used | {a for m in spec.mounts.values() for a in (*m.wildcards, *m.pin)}


def _never_used(scope: Scope, bounds: list[Bound]) -> Iterator[Diagnostic]:
    """Rules, and lists of exceptions, that no reference config ever needs."""
    live = {(rule.block, rule.key) for bound in bounds for rule in bound.rules if rule.scope == ""}
    for block_name, block in scope.spec.blocks.items():
        for key in block.tensors:
            if (block_name, key) not in live and not scope.spec.extends:
                message = f"rule `{key}` makes no tensor of any reference config"
                help_ = "correct its `when`, or add a config that needs it to `metadata.references`"
                yield _warning("MS505", message, scope, "blocks", block_name, "tensors", key, help=help_)


def _unknown_keys(linked: Linked, configs: list[dict[str, Any]]) -> Iterator[Diagnostic]:
    """Config keys that no reference config has: misspelt inside `default(...)`, one would switch a rule off in silence."""
    scope = linked.top
    known = {path for config in configs for path in _paths(config, "")}
    for path, text in _expressions(scope.spec):
        for key in sorted(parse_expr(text).keys - known):
            message = f"no reference config has the key `{key}`"
            span = scope.span(*path)
            yield Diagnostic(
                "MS412", message, span, severity=Severity.WARNING, hint=nearest(key, known),
                help="correct the key, or add a config that has it to `metadata.references`",
            )  # fmt: skip


def _expressions(spec: v1.Mapping) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, text in spec.values.items():
        yield ("values", name), text
    for name, axis in spec.axes.items():
        for key in ("size", "length", "when"):
            if (value := getattr(axis, key)) is not None:
                yield ("axes", name, key), value
        for i, text in enumerate(axis.pattern or ()):
            yield ("axes", name, "pattern", i), text
    for name, dim in spec.dims.items():
        if dim.size is not None:
            yield ("dims", name, "size"), dim.size
        for segment, text in (dim.segments or {}).items():
            yield ("dims", name, "segments", segment), text
    for name, role in spec.roles.items():
        yield ("roles", name, "dtype"), role.dtype
    for name, block in spec.blocks.items():
        for key, rule in block.tensors.items():
            if rule.when is not None:
                yield ("blocks", name, "tensors", key, "when"), rule.when
    for name, tie in spec.tied.items():
        yield ("tied", name, "when"), tie.when


def _paths(config: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
