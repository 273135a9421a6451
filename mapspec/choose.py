"""Choosing what to apply to a checkpoint: the mapping by its architecture, the flavours by declared marks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic, Note, nearest
from mapspec.documents import available
from mapspec.errors import SpecError
from mapspec.link import Linked, link_spec
from mapspec.names import join, parse_name
from mapspec.text import read_text, read_yaml

__all__ = ["apply_sets", "choose_mapping", "detect_flavours", "listed_architectures", "parse_pairs"]


def choose_mapping(config: Mapping[str, Any], *, where: str, spec: str | None = None) -> Linked:
    """The mapping for a config: the one named, or the one that lists its architecture.

    Raises:
        SpecError: MS409 where no mapping or several list the architecture; what linking finds.
    """
    if spec is not None:
        return link_spec(spec)
    wanted = [str(a) for a in config.get("architectures") or ()]
    listed = listed_architectures("mappings", wanted)
    found = sorted({name for architecture in wanted for name in listed.get(architecture, ())})
    if len(found) == 1:
        return link_spec(found[0])
    listed = listed_architectures("mappings")
    known = "; ".join(f"{architecture} ({', '.join(names)})" for architecture, names in sorted(listed.items()))
    if found:
        message = f"several mappings list {', '.join(wanted)}: {', '.join(found)}"
        raise SpecError(Diagnostic("MS409", message, where=where, help="choose one with --spec"))
    message = (
        f"no mapping lists {', '.join(f'`{a}`' for a in wanted)}" if wanted else "the config names no `architectures`"
    )
    hint = next((h for a in wanted if (h := nearest(a, listed))), None)
    help_ = f"there are: {known}; name a mapping with --spec, or begin one with `mapspec new`"
    raise SpecError(Diagnostic("MS409", message, where=where, hint=hint, help=help_))


def listed_architectures(kind: str, wanted: Collection[str] | None = None) -> dict[str, list[str]]:
    """Architecture -> names of the specs of a kind (`mappings`, `providers`) that list it.

    Args:
        wanted: architectures that are asked for; specs in whose text none of them occurs are not parsed, and what they
            list is left out. By default all are.
    """
    out: dict[str, list[str]] = {}
    document = {"mappings": "Mapping", "providers": "Provider"}[kind]
    for name, path in available(kind).items():
        if wanted is not None and not _may_name(read_text(path), wanted):
            continue
        data = read_yaml(path).data
        if data.get("kind") != document:
            continue  # a folder of MAPSPEC_PATH may hold both kinds side by side
        metadata = data.get("metadata")
        for architecture in (metadata.get("architectures") if isinstance(metadata, dict) else None) or ():
            out.setdefault(str(architecture), []).append(name)
    return out


def _may_name(text: str, wanted: Collection[str]) -> bool:
    """Whether YAML may say one of these words; those that are not plain words, and `\\`, leave it many ways to."""
    return "\\" in text or any(word in text or not word.isidentifier() for word in wanted)


def detect_flavours(linked: Linked, names: Iterable[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Flavours that the tensors of a Hugging Face checkpoint decide, by the marks that the spec declares.

    Raises:
        SpecError: MS410 where marks of two choices are present.
    """
    every = tuple(names)
    out = dict(chosen)
    defaults = {name: flavour.default for name, flavour in linked.flavours().items()}
    for scope in linked.scopes:
        for name, flavour in scope.spec.flavours.items():
            if name in out:
                continue
            hits: dict[str, str] = {}
            for choice, text in flavour.detect.items():
                # The including spec comes first, so what spells the prefix is decided by now.
                pattern = join(scope.prefix("hf", {**defaults, **out}), parse_name(text))
                hit = next((n for n in every if pattern.match(n)), None)
                if hit is not None:
                    hits[choice] = hit
            if len(hits) > 1:
                listed = " and ".join(f"`{hit}` ({choice})" for choice, hit in hits.items())
                message = f"the checkpoint holds two spellings of flavour `{name}`: {listed}"
                help_ = f"choose one with --flavour {name}=..., the other's tensors are then reported as extra"
                raise SpecError(Diagnostic("MS410", message, scope.span("flavours", name, "detect"), help=help_))
            if hits:
                out[name] = next(iter(hits))
    return out


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    """`key=value` arguments as a dictionary.

    Raises:
        SpecError: MS411 for one without `=`, or for a key given twice with different values.
    """
    out: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or (key in out and out[key] != value):
            why = "is given twice with different values" if key in out else "is not of the form key=value"
            raise SpecError(
                Diagnostic("MS411", f"`{pair}` {why}", where=option, help=f"for example {option} key=value")
            )
        out[key] = value
    return out


def apply_sets(config: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """The config with `--set a.b=value` applied; values are JSON, or plain text where they are not.

    Raises:
        SpecError: MS411 for an argument that is no assignment or goes through something that is no mapping.
    """
    out = json.loads(json.dumps(config)) if sets else dict(config)
    for key, text in parse_pairs(sets, "--set").items():
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, last = key.removeprefix("hf.").split(".")
        here = out
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                note = Note(f"`{parent}` is {here!r}")
                raise SpecError(
                    Diagnostic("MS411", f"`{key}` has no place in the config", where="--set", notes=(note,))
                )
        here[last] = value
    return out


def spec_files(paths: Sequence[Path]) -> list[Path]:
    """All spec files among files and folders, sorted, each once."""
    out: dict[Path, None] = {}
    for path in paths:
        found = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        out.update(dict.fromkeys(found))
    return list(out)
