"""Resolved fields as a table: text for a terminal, Markdown for a review, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.configs import ResolvedConfig, resolve_configs
from mapspec.provider.resolve import Resolved, ResolvedField, resolve_provider
from mapspec.provider.spec import choose_provider, read_provider

__all__ = ["Format", "provider_report", "render_provider"]

type Format = Literal["text", "json", "md"]
FORMAT_VERSION = "1.1"
_HEADS = ("field", "value", "origin", "spec", "source")


def provider_report(
    spec_name: str | None, config_path: str | Path, sets: Sequence[str] = (), fmt: Format = "text"
) -> str:
    """The report of `mapspec provider`.

    Args:
        spec_name: name or path of the spec; `None`: the one that lists the config's architecture.
        config_path: config.json, or the folder that holds it.
        sets: overrides as `field=value`; the value is read as YAML where it is YAML.
        fmt: see `render_provider`.

    Raises:
        SpecError: see `resolve_provider`; MS427 for a `sets` entry without `=`.
        CheckpointError: the config cannot be read.
    """
    path = Path(config_path)
    path = path / "config.json" if path.is_dir() else path
    config = read_config(path)
    spec = choose_provider(config, where=str(path)) if spec_name is None else read_provider(spec_name)
    return render_provider(resolve_provider(spec, config, _overrides(sets), where=str(path)), fmt)


def _overrides(sets: Sequence[str]) -> dict[str, Any]:
    out = {}
    for text in sets:
        name, found, value = text.partition("=")
        if not found:
            message = f"`{text}` sets nothing"
            raise SpecError(Diagnostic("MS427", message, where=f"--set {text}", help="write --set field=value"))
        try:
            out[name.strip()] = YAML(typ="safe", pure=True).load(value)
        except YAMLError:
            out[name.strip()] = value  # patterns such as *E are no YAML
    return out


def render_provider(resolved: Resolved, fmt: Format = "text") -> str:
    """All fields with value, origin, reason or HF keys, and line of the spec, sorted by name.

    Args:
        fmt: `text` (one line per field, for terminals and grep), `md` (a table), or `json` (with `format_version`).
    """
    configs = resolve_configs(resolved.spec, resolved.values(), resolved.overrides)
    if fmt == "json":
        return json.dumps(_data(resolved, configs), indent=2, default=str) + "\n"
    rows = [tuple(row) for row in _rows(resolved.fields)]
    unused = [(key, reason) for key, reason in sorted(resolved.unused.items())]
    meta = resolved.spec.model.metadata
    title = f"{meta.name} {meta.version}, {len(rows)} fields from {resolved.where}"
    if fmt == "md":
        left = _markdown(("HF key", "not carried because"), unused)
        parts = [line for c in configs.values() for line in ("", f"#### {_about(c)}", "", *_markdown(_HEADS, _own(c)))]
        return "\n".join([f"### {title}", "", *_markdown(_HEADS, rows), *parts, "", *left, ""])
    left = ["HF keys without a field:", *_aligned(("key", "reason"), unused)]
    parts = [line for c in configs.values() for line in ("", f"{_about(c)}:", *_aligned(_HEADS, _own(c)))]
    return "\n".join([title, "", *_aligned(_HEADS, rows), *parts, "", *left, ""])


def _about(config: ResolvedConfig) -> str:
    base = "the language model's" if config.origin == "language" else f"`{config.origin}`"
    return f"config {config.name}, {config.about}: {base}, and of its own"


def _own(config: ResolvedConfig) -> list[Sequence[str]]:
    return list(_rows(config.fields))


def _rows(fields: Mapping[str, ResolvedField]) -> Iterator[Sequence[str]]:
    for name in sorted(fields):
        field = fields[name]
        yield name, _value(field.value), _origin(field), _place(field), field.source()


def _origin(field: ResolvedField) -> str:
    return f"{field.origin}, when {field.group}" if field.group else field.origin


def _place(field: ResolvedField) -> str:
    return f"{Path(field.span.path).name}:{field.span.line}" if field.span else ""


def _value(value: Any) -> str:
    return json.dumps(value, default=lambda other: getattr(other, "__name__", None) or str(other))


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their content, but no wider than 40, so that one long pattern does not push all others out."""
    widths = [min(40, max(len(row[i]) for row in (heads, *rows))) for i in range(len(heads))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (heads, *rows)]
    return ["  ".join(row).rstrip() for row in padded]


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _data(resolved: Resolved, configs: Mapping[str, ResolvedConfig]) -> dict[str, Any]:
    meta = resolved.spec.model.metadata
    return {
        "format_version": FORMAT_VERSION,
        "provider": {"name": meta.name, "version": meta.version, "mapping": meta.mapping},
        "config": resolved.where,
        "fields": _fields(resolved.fields),
        "configs": {
            name: {
                "about": config.about,
                "from": config.origin,
                "without": sorted(config.without),
                "fields": _fields(config.fields),
            }
            for name, config in configs.items()
        },
        "not_carried": dict(sorted(resolved.unused.items())),
    }


def _fields(fields: Mapping[str, ResolvedField]) -> dict[str, Any]:
    return {
        name: {
            "value": field.value,
            "origin": field.origin,
            "keys": list(field.keys),
            "reason": field.reason,
            "when": field.group,
            "of": field.of,
            "spec": {"path": Path(field.span.path).name, "line": field.span.line} if field.span else None,
        }
        for name, field in sorted(fields.items())
    }
