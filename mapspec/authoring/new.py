"""`mapspec new`: the specs of a variant of a known model, from its config and the headers of its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapspec.authoring.draft import Draft
from mapspec.authoring.fmt import format_text
from mapspec.authoring.incomplete import incomplete
from mapspec.authoring.provider_variant import parent_provider, provider_draft
from mapspec.authoring.search import search
from mapspec.authoring.trial import Evidence
from mapspec.diagnostics import Diagnostic, Span
from mapspec.documents import available, find_spec, read_mapping
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.keys import read_keys
from mapspec.lint import lint
from mapspec.nogc import gc_paused
from mapspec.provider.lint import lint_provider
from mapspec.text import parse_yaml

__all__ = ["Guess", "Started", "start_variant"]

_VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Guess:
    """A guess, and the line that it made."""

    what: str
    span: Span


@dataclass(frozen=True, slots=True)
class Started:
    """What came of it.

    Attributes:
        name: of the variant.
        files: the files that were written, with what each is.
        guesses: what has to be read and confirmed, in the order of files and lines.
        tensors: how many tensors the checkpoint has; `None` where none were looked at.
        unexplained: how many of them, and of those that rules expect, have no counterpart.
        findings: what is missing, and what lint says.
    """

    name: str
    files: Mapping[Path, str]
    guesses: tuple[Guess, ...]
    tensors: int | None
    unexplained: int
    findings: tuple[Diagnostic, ...]


@gc_paused()
def start_variant(name: str, like: str, config: Path, keys: Path | None, out: Path) -> Started:
    """Write the specs of a variant.

    Args:
        name: of the variant and of its files: `mappings/NAME.yaml`, `providers/NAME.yaml`, `tests/configs/NAME.json`.
        like: the mapping that it is a variant of, by name or path.
        config: its config.json, or the folder of it.
        keys: its checkpoint, or a list of its tensors; `None` to go by the config alone.
        out: folder for the files.

    Raises:
        SpecError: the name is none, a file exists already (MS862), or the parent does not read.
        CheckpointError: config or checkpoint do not read, or the checkpoint is none of Hugging Face (MS865).
    """
    mapping_path, provider_path = out / "mappings" / f"{name}.yaml", out / "providers" / f"{name}.yaml"
    reference = out / "tests" / "configs" / f"{name}.json"
    _check_name(name, (mapping_path, provider_path, reference))
    config_file = config / "config.json" if config.is_dir() else config
    evidence = Evidence(mapping_path, read_config(config_file), None if keys is None else _tensors(keys))
    parent_path = find_spec(like)
    parent = read_mapping(parent_path).model
    provider = parent_provider(parent.metadata.name)
    known = set() if provider is None else set(provider.known_keys())
    taken = [a for a in evidence.config.get("architectures") or () if a in parent.metadata.architectures]
    head = _head(name, "Mapping", parent.metadata.name, evidence.config, taken)
    head["extends"] = _reference(parent_path, like, mapping_path, parent.metadata.version)
    schema = _schema(out)
    trial = search(Draft(head, notes=_notes(name, parent.metadata.name, taken), schema=schema), evidence, known)
    texts = {mapping_path: _formatted(trial.draft, mapping_path)}
    about = {mapping_path: f"the mapping, a variant of {parent.metadata.name}", reference: "the config, for lint"}
    drafts = [(mapping_path, trial.draft)]
    findings: list[Diagnostic] = []
    if provider is not None:
        head = _head(name, "Provider", provider.name, evidence.config, taken)
        head["metadata"] |= {
            "mapping": f"{name}@{_VERSION.split('.')[0]}",
            "megatron": provider.model.metadata.megatron.model_dump(mode="json"),
        }
        path = provider.document.path
        head["extends"] = _reference(path, provider.name, provider_path, provider.model.metadata.version, "providers")
        draft, found = provider_draft(
            provider, Draft(head, schema=schema), trial.draft.changes, evidence.config, provider_path
        )
        findings += found
        texts[provider_path] = _formatted(draft, provider_path)
        about[provider_path] = f"the provider, a variant of {provider.name}"
        drafts.append((provider_path, draft))
    texts[reference] = config_file.read_text(encoding="utf-8-sig")
    _write(texts)
    findings += incomplete(trial, evidence, texts[mapping_path])
    findings += lint([mapping_path])
    if provider is not None and not findings:
        findings += _linted(provider_path)
    guesses = [guess for path, draft in drafts for guess in _guesses(draft, path, texts[path])]
    count = None if evidence.tensors is None or trial.table is None else len(evidence.tensors)
    return Started(
        name,
        {path: about[path] for path in texts},
        tuple(guesses),
        count,
        trial.cost[1],
        tuple(dict.fromkeys(findings)),
    )


def _check_name(name: str, files: Sequence[Path]) -> None:
    if not name.isidentifier():
        help_ = "letters, digits and `_`, beginning with a letter"
        raise SpecError(Diagnostic("MS862", f"`{name}` cannot be the name of a spec", where="NAME", help=help_))
    there = [path for path in files if path.exists()]
    if there:
        listed = ", ".join(f"`{path}`" for path in there)
        message = f"{listed} exist{'s' if len(there) == 1 else ''} already, and nothing is overwritten"
        raise SpecError(
            Diagnostic("MS862", message, where="NAME", help="choose another NAME, or another folder with -o")
        )
    if name in available("mappings"):
        message = f"there is a mapping `{name}` already ({available('mappings')[name]})"
        raise SpecError(Diagnostic("MS862", message, where="NAME", help="choose another name"))


def _tensors(keys: Path) -> Mapping[str, Any]:
    listing = read_keys(keys)
    if listing.kind != "hf":
        message = "this is a Megatron-Core checkpoint; the names of a variant are read from its Hugging Face side"
        raise SpecError(Diagnostic("MS865", message, where=str(keys), help="name the Hugging Face folder with --keys"))
    return listing.tensors


def _head(name: str, kind: str, parent: str, config: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "version": _VERSION, "about": f"{name}, a variant of {parent}"}
    architectures = [str(a) for a in config.get("architectures") or () if a not in taken]
    if architectures:
        metadata["architectures"] = architectures
    metadata["references"] = [name]
    return {"apiVersion": "mapspec/v1", "kind": kind, "metadata": metadata}


def _notes(name: str, parent: str, taken: Sequence[str]) -> tuple[str, ...]:
    notes = [
        f"Begun by `mapspec new {name} --like {parent}`. Read every guess, and remove its comment when it is right."
    ]
    if taken:
        notes.append(f"{parent} lists {', '.join(taken)} too, so this mapping has to be named with --spec.")
    return tuple(notes)


def _schema(out: Path) -> str:
    """Where editors find the grammar, from the folders of the files."""
    shipped = "mapspec/schema/mapspec-v1.schema.json"
    return f"../{shipped if (out / shipped).is_file() else Path(shipped).name}"


def _reference(path: Path, name: str, child: Path, version: str, kind: str = "mappings") -> str:
    """How the child names its parent: by name where that finds it, else by path."""
    if available(kind).get(path.stem) != path:
        name = os.path.relpath(path.with_suffix(""), child.parent)
    return f"{name}@{version.split('.')[0]}"


def _formatted(draft: Draft, path: Path) -> str:
    return format_text(draft.text(), path)


def _write(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _linted(path: Path) -> list[Diagnostic]:
    try:
        return lint_provider(path)
    except SpecError as error:
        return list(error.diagnostics)


def _guesses(draft: Draft, path: Path, text: str) -> Iterator[Guess]:
    tree = parse_yaml(text, str(path))
    found = [Guess(change.what, tree.span(change.at, of_key=True)) for change in draft.changes]
    yield from sorted(found, key=lambda guess: guess.span)
