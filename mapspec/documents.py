"""Find spec files, read them, and apply `extends`: text in, one validated document with spans out."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from mapspec.diagnostics import Diagnostic, Note, Span, nearest
from mapspec.errors import SpecError
from mapspec.schema import GrammarError, v1, validate
from mapspec.text import Path_, Tree, read_yaml

__all__ = [
    "Document",
    "PartlyReadError",
    "available",
    "bundled_folder",
    "find_spec",
    "looking_first_in",
    "merge",
    "merged_tree",
    "read_document",
    "reference_configs",
]


@dataclass(frozen=True)
class Document[M: BaseModel]:
    """A spec after `extends`: the model, and the tree that knows where everything stands."""

    path: Path
    tree: Tree
    model: M
    parents: tuple[Path, ...] = ()


@cache
def bundled_folder(kind: str) -> Path:
    """The folder of the specs that ship with mapspec: `mappings` or `providers`."""
    here = Path(__file__).resolve().parent
    installed = here / "_specs" / kind
    return installed if installed.is_dir() else here.parent / kind


_before_all: ContextVar[Mapping[str, Sequence[Path]]] = ContextVar("_before_all", default=MappingProxyType({}))


@contextmanager
def looking_first_in(folders: Mapping[str, Sequence[Path]]) -> Iterator[None]:
    """While it lasts, names are looked up in these folders (by kind) before all others.

    For a copy of another revision, whose specs mean each other and not those that are installed.
    """
    token = _before_all.set(folders)
    try:
        yield
    finally:
        _before_all.reset(token)


def search_path(kind: str) -> list[Path]:
    """Folders in which specs are looked up by name: `MAPSPEC_PATH` first, then the bundled ones."""
    first = _before_all.get().get(kind, ())
    own = [Path(p) for p in os.environ.get("MAPSPEC_PATH", "").split(os.pathsep) if p]
    bundled = bundled_folder(kind)
    return [*first, *own, *(p / kind for p in own), bundled, bundled / "fragments"]


def available(kind: str) -> dict[str, Path]:
    """Name -> file of every spec that can be found by name; the first folder of the search path wins."""
    found: dict[str, Path] = {}
    for folder in search_path(kind):
        if folder.is_dir():
            for path in sorted(folder.glob("*.yaml")):
                found.setdefault(path.stem, path)
    return found


def find_spec(name: str, kind: str = "mappings", *, near: Path | None = None, span: Span | None = None) -> Path:
    """The file of a spec given by path or by name.

    Args:
        name: `path/to/file.yaml`, or a name that `available` lists.
        near: folder that relative paths and plain names are tried in first (that of the including file).
        span: where the name was written, for the message.

    Raises:
        SpecError: MS301, with what exists.
    """
    candidates = [Path(name)] if name.endswith((".yaml", ".yml")) else []
    if near is not None:
        candidates = [near / name, near / f"{name}.yaml", *candidates]
    for path in candidates:
        if path.is_file():
            return path
    known = available(kind)
    if name in known:
        return known[name]
    help_ = f"there are: {', '.join(sorted(known))}; own specs are found by path or in the folders of MAPSPEC_PATH"
    where = None if span else name
    hint = nearest(name, [*known, *_beside(name, near)])
    raise SpecError(Diagnostic("MS301", f"there is no spec `{name}`", span, where, hint=hint, help=help_))


def _beside(name: str, near: Path | None) -> list[str]:
    """Names, relative to `near`, of the specs in the folder where `name` was looked for."""
    if near is None:
        return []
    parent = (near / name).parent
    return [os.path.relpath(path.with_suffix(""), near) for path in sorted(parent.glob("*.yaml"))]


def reference_configs(document: Document[Any]) -> Iterator[tuple[str, Path | Diagnostic]]:
    """The reference names of a spec, each with its config file, or with the finding that there is none (MS307).

    A reference is a path relative to the spec, or a name that is looked up in `configs/` beside the spec and in
    `tests/configs/` of the project that the spec lies in.
    """
    here = document.path.resolve().parent
    folders = [here, here / "configs", *(parent / "tests" / "configs" for parent in here.parents)]
    for i, name in enumerate(document.model.metadata.references):
        files = (folder / (name if name.endswith(".json") else f"{name}.json") for folder in folders)
        found = next((f for f in files if f.is_file()), None)
        if found is None:
            span = document.tree.span(("metadata", "references", i))
            help_ = "put NAME.json into `configs/` beside the spec or into `tests/configs/` of the project"
            yield name, Diagnostic("MS307", f"there is no config for the reference `{name}`", span, help=help_)
        else:
            yield name, found


class PartlyReadError(SpecError):
    """A mapping with mistakes of grammar, of which the rest can be checked all the same.

    Attributes:
        rest: the mapping without the entries that hold the mistakes.
        lost: section -> names of those entries, which others may refer to.
    """

    def __init__(self, found: Iterable[Diagnostic], rest: Document[v1.Mapping], lost: Mapping[str, set[str]]) -> None:
        super().__init__(found)
        self.rest = rest
        self.lost = lost


def read_document[M: BaseModel](path: Path, model: type[M]) -> Document[M]:
    """Read the spec at `path`, merged onto what it extends.

    Raises:
        SpecError: any mistake of text, schema or `extends`.
    """
    tree, parents = _read(path, ())
    return Document(path, tree, validate(tree, model), parents)


def read_mapping(path: Path) -> Document[v1.Mapping]:
    """Read a parameter-mapping spec.

    Raises:
        PartlyReadError: mistakes of the grammar that leave the rest of the mapping readable.
        SpecError: all others of text, schema or `extends`.
    """
    tree, parents = _read(path, ())
    try:
        return Document(path, tree, validate(tree, v1.Mapping), parents)
    except GrammarError as error:
        lost: dict[str, set[str]] = {}
        rest = _without(tree, error.places, lost)
        if rest is None:
            raise
        try:
            model = validate(rest, v1.Mapping)
        except SpecError:
            raise error from None
        raise PartlyReadError(error.diagnostics, Document(path, rest, model, parents), lost) from None


def _without(tree: Tree, places: Iterable[Path_], lost: dict[str, set[str]]) -> Tree | None:
    """The tree without the entries that hold the places; `None` where whole sections are wrong."""
    data = copy.deepcopy(tree.data)
    for path in places:
        section, *below = path or ("",)
        entries = data.get(str(section))
        if section == "metadata" and below:
            data["metadata"] = {"name": "nameless", "version": "0.0.0"}
        elif not below or not isinstance(entries, dict):
            return None
        elif section == "blocks" and len(below) >= 3 and below[1] == "tensors":
            # Nothing refers to a rule, so its block stays.
            entries.get(str(below[0]), {}).get("tensors", {}).pop(str(below[2]), None)
        else:
            entries.pop(str(below[0]), None)
            lost.setdefault(str(section), set()).add(str(below[0]))
    return Tree(data, tree.keys, tree.values)


def merged_tree(path: Path, tree: Tree) -> Tree:
    """A document that stands at `path`, merged onto what it extends.

    Raises:
        SpecError: any mistake of text or `extends`.
    """
    return _extended(path, tree, ())[0]


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[Tree, tuple[Path, ...]]:
    return _extended(path, read_yaml(path), chain)


def _extended(path: Path, tree: Tree, chain: tuple[Path, ...]) -> tuple[Tree, tuple[Path, ...]]:
    wanted = tree.data.get("extends")
    if not isinstance(wanted, str):
        return tree, ()
    span = tree.span(("extends",))
    name, _, major = wanted.partition("@")
    if not major.isdigit():
        message = f"`{wanted}` does not pin a version"
        raise SpecError(Diagnostic("MS305", message, span, help="write the major version too, for example `name@1`"))
    kind = "providers" if tree.data.get("kind") == "Provider" else "mappings"
    parent_path = find_spec(name, kind, near=path.parent, span=span)
    if parent_path.resolve() in {p.resolve() for p in (*chain, path)}:
        ring = " -> ".join(p.name for p in (*chain, path, parent_path))
        raise SpecError(Diagnostic("MS302", f"`extends` runs in a circle: {ring}", span))
    try:
        parent, ancestors = _read(parent_path, (*chain, path))
    except SpecError as error:
        raise SpecError([d.with_note("extended here", span) for d in error.diagnostics]) from None
    check_major(parent, major, wanted, span)
    return merge(parent, tree), (parent_path, *ancestors)


def check_major(tree: Tree, major: str, wanted: str, span: Span) -> None:
    """Raise MS306 unless the document's version has that major part."""
    metadata = tree.data.get("metadata")
    version = str(metadata.get("version", "")) if isinstance(metadata, dict) else ""
    if version.split(".")[0] != major:
        note = Note(f"its version is {version or 'not given'}", tree.span(("metadata", "version")))
        help_ = "read the changelog of that mapping, adapt this file, then change the number here"
        message = f"`{wanted}` asks for another major version"
        raise SpecError(Diagnostic("MS306", message, span, notes=(note,), help=help_))


# Not inherited: a variant is its own mapping, with its own name, version and architectures.
_OWN_KEYS = ("apiVersion", "kind", "metadata", "extends")


def merge(parent: Tree, child: Tree) -> Tree:
    """The parent's document with the child's changes: by key, the child wins, `null` removes, lists are replaced.

    Raises:
        SpecError: MS303 for every `null` that removes nothing.
    """
    merged = _Merge(parent, child)
    data = {key: value for key, value in parent.data.items() if key not in _OWN_KEYS}
    for key in _OWN_KEYS:
        merged.drop((key,))
    merged.into(data, child.data, (), list(data))
    if merged.found:
        raise SpecError(merged.found)
    return Tree(data, merged.keys, {**merged.values, (): child.values[()]})


class _Merge:
    def __init__(self, parent: Tree, child: Tree) -> None:
        self.child = child
        self.keys = dict(parent.keys)
        self.values = dict(parent.values)
        self.found: list[Diagnostic] = []

    def into(self, data: dict[str, Any], changes: dict[str, Any], at: Path_, inherited: list[str]) -> None:
        for key, value in changes.items():
            path = (*at, key)
            if value is None and ")" in key:
                data[key] = None  # a cut-off expression; the schema says so
                self.take(path)
            elif value is None:
                if key not in inherited:
                    message = f"`{key}` is removed here, but the parent has no such key"
                    span = self.child.span(path, of_key=True)
                    help_ = f"it has: {', '.join(inherited)}" if inherited else "nothing is inherited at this place"
                    self.found.append(Diagnostic("MS303", message, span, hint=nearest(key, inherited), help=help_))
                data.pop(key, None)
                self.drop(path)
            elif isinstance(value, dict) and isinstance(data.get(key), dict):
                self.take(path)
                data[key] = dict(data[key])
                self.into(data[key], value, path, list(data[key]))
            elif isinstance(value, dict):
                # New here: taken key by key all the same, so that a `null` within is seen to remove nothing.
                self.drop(path)
                self.take(path)
                data[key] = {}
                self.into(data[key], value, path, [])
            else:
                self.drop(path)
                data[key] = value
                for known in self.child.values:
                    if known[: len(path)] == path:
                        self.take(known)

    def take(self, path: Path_) -> None:
        """From now on the text at `path` is the child's."""
        self.values[path] = self.child.values[path]
        if path in self.child.keys:
            self.keys[path] = self.child.keys[path]

    def drop(self, path: Path_) -> None:
        for table in (self.keys, self.values):
            for known in [p for p in table if p[: len(path)] == path]:
                del table[known]
