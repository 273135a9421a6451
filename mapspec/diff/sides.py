"""The two sides of a comparison: a git revision, the working tree, a folder or a file, and the specs there."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mapspec.diagnostics import Diagnostic, Span
from mapspec.diff.git import Repository, find_repository
from mapspec.diff.model import Place
from mapspec.errors import DiffError, SpecError
from mapspec.text import read_yaml

__all__ = ["Side", "SpecFile", "folder_side", "open_sides"]

_KINDS = {"Mapping": "mapping", "Provider": "provider"}
_DEFAULT = ("mappings", "providers")
_REFERENCE = re.compile(r"([\w./-]+)@\d")
_KIND = re.compile(r"^kind:[ \t]*(\w+)[ \t]*(?:#.*)?$", re.MULTILINE)
_NAME = re.compile(
    r"^metadata:[ \t]*(?:#.*)?\n(?:[ \t]*(?:#.*)?\n)*[ ]+name:[ \t]*([A-Za-z]\w*)[ \t]*(?:#.*)?$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class SpecFile:
    """A spec of a side. `name` is its `metadata.name`, or the file's where that cannot be read."""

    kind: str
    name: str
    path: Path


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        label: in words, for reports.
        root: folder that places are relative to.
        project: folder of the file of accepted changes: the user's, also where `root` is a copy.
        specs: (kind, name) -> file.
    """

    label: str
    root: Path
    specs: Mapping[tuple[str, str], SpecFile] = field(default_factory=dict)
    project: Path = field(default_factory=Path.cwd)

    def place(self, span: Span | None) -> Place | None:
        """A span as a place of this side."""
        return None if span is None else Place(self.relative(Path(span.path)), span.line)

    def relative(self, path: Path) -> str:
        """A path below the root, or as it is."""
        return _relative(path, self.root)

    def lines(self, found: Iterable[Diagnostic]) -> list[str]:
        """Findings as lines, with places below the root."""
        return [f"{place}: {d.code} {d.message}" if (place := self.place(d.span)) else d.one_line() for d in found]

    def sources(self, spec: SpecFile) -> dict[str, str]:
        """The text of a spec and of all that it names, by path below the root; what lies elsewhere is left out.

        Read without YAML: names that happen to look like references only make the set larger.
        """
        by_name: dict[str, list[Path]] = {}
        for other in self.specs.values():
            by_name.setdefault(other.path.stem, []).append(other.path)
        out: dict[str, str] = {}
        waiting = [spec.path]
        while waiting:
            path = waiting.pop()
            if self.relative(path) not in out:
                text = out[self.relative(path)] = path.read_text(encoding="utf-8", errors="replace")
                waiting += [p for name in _REFERENCE.findall(text) for p in by_name.get(name.rpartition("/")[2], ())]
        return out

    def folders(self) -> dict[str, list[Path]]:
        """Where specs of each kind are looked up by name, see `mapspec.documents.looking_first_in`."""
        out: dict[str, list[Path]] = {"mappings": [], "providers": []}
        for spec in self.specs.values():
            folders = out[f"{spec.kind}s"]
            if spec.path.parent not in folders:
                folders.append(spec.path.parent)
        # A folder before those below it: `fragments/x.yaml` is named `fragments/x`, or `x` where nothing else is.
        return {kind: sorted(folders, key=lambda f: len(f.parts)) for kind, folders in out.items()}

    def configs(self) -> dict[str, str]:
        """Name -> hash of every reference config that specs of this side may mean."""
        parents = (parent for spec in self.specs.values() for parent in spec.path.parents)
        folders = {parent for parent in parents if self.root in (parent, *parent.parents)}
        files = {f for p in folders for name in ("configs", "tests/configs") for f in (p / name).glob("*.json")}
        return {self.relative(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)}


def open_sides(
    stack: ExitStack, base: str | None, head: str | None, within: Sequence[str] = (), here: Path | None = None
) -> tuple[Side, Side]:
    """Find both sides. Copies of revisions live as long as `stack`.

    Args:
        stack: closes what is opened.
        base: a revision, a folder or a file; `A..B` and `A...B` (from the merge base) name both sides. `None`: the
            merge base of the main branch and the head.
        head: the same; `None`: the working tree.
        within: folders and files of specs, relative to `here`. Default: `mappings` and `providers`, where there are
            any, else all specs of a folder that was named.
        here: where the user stands.

    Raises:
        DiffError: MS850 to MS854 from git, MS855 for a path that is also a revision, MS856 without any specs.
    """
    here = (here or Path.cwd()).resolve()
    if base is not None and head is None and ".." in base and not Path(here, base).exists():
        left, dots, right = base.partition("...")
        if not dots:
            left, dots, right = base.partition("..")
        repository = find_repository(here)
        left, right = left or "HEAD", right or "HEAD"
        if dots == "...":
            left = repository.merge_base(repository.wanted(left), repository.wanted(right))
        return _pair(_revision(stack, repository, left, within), _revision(stack, repository, right, within))
    head_side = None if head is None else _named(stack, head, within, here)
    if base is not None:
        base_side = _named(stack, base, within, here)
        if head_side is None:
            if _existing(base, here):
                message = f"`{base}` is a file or folder, and there is nothing to compare it with"
                raise DiffError(Diagnostic("MS855", message, where=base, help=f"name both: mapspec diff {base} OTHER"))
            head_side = _working_tree(find_repository(here), within)
        return _pair(base_side, head_side)
    repository = find_repository(here)
    main = repository.main_branch()
    commit = repository.merge_base(main, "HEAD")
    label = f"{main} ({repository.short(commit)})"
    return _pair(_revision(stack, repository, commit, within, label), _working_tree(repository, within))


def _pair(base: Side, head: Side) -> tuple[Side, Side]:
    if not base.specs and not head.specs:
        help_ = "go to the folder that holds `mappings` and `providers`, or name others with --in"
        message = f"there are no specs in {base.label}, nor in {head.label}"
        raise DiffError(Diagnostic("MS856", message, where=str(head.root), help=help_))
    return base, head


def _existing(text: str, here: Path) -> Path | None:
    path = Path(here, text)
    return path if path.exists() else None


def _named(stack: ExitStack, text: str, within: Sequence[str], here: Path) -> Side:
    path = _existing(text, here)
    try:
        repository: Repository | None = find_repository(here)
    except DiffError:
        if path is None:
            message = f"there is no file or folder `{text}`, and this is no git repository"
            raise DiffError(Diagnostic("MS851", message, where=text)) from None
        repository = None
    revision, colon, file = text.partition(":")
    if path is not None:
        if repository is not None and "/" not in text and repository.commit(text):
            message = f"`{text}` is a path here, and a revision too"
            help_ = f"write ./{text} for the path, or refs/heads/{text} for the branch"
            raise DiffError(Diagnostic("MS855", message, where=text, help=help_))
        root = path.resolve()
        if path.is_file():
            return Side(text, _project(root), _listed([root], alone=True))
        return folder_side(root, within, text)
    assert repository is not None
    if colon and file:
        side = _revision(stack, repository, revision, (), text)
        found = side.root / (here.relative_to(repository.root) / file if file.startswith("./") else file)
        if not found.is_file():
            message = f"there is no file `{file}` in `{revision}`"
            raise DiffError(Diagnostic("MS851", message, where=text))
        return Side(text, side.root, _listed([found], alone=True))
    return _revision(stack, repository, text, within)


def folder_side(folder: Path, within: Sequence[str] = (), label: str | None = None) -> Side:
    """A folder that holds `mappings` and `providers`, or specs themselves."""
    root = folder.resolve()
    return Side(label or str(folder), root, _listed(_below(root, within)))


def _project(file: Path) -> Path:
    """What places of a single file are relative to: the folder above `mappings`, or its own."""
    return next((p.parent for p in file.parents if p.name in _DEFAULT), file.parent)


def _revision(
    stack: ExitStack, repository: Repository, revision: str, within: Sequence[str], label: str | None = None
) -> Side:  # fmt: skip
    commit = repository.wanted(revision)
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapspec-diff-"))).resolve()
    repository.extract(commit, root)
    if label is None:
        short = repository.short(commit)
        label = short if commit.startswith(revision) else f"{revision} ({short})"
    here = root / repository.here.relative_to(repository.root.resolve())
    return Side(label, root, _listed(_below(here, within, root)), repository.root)


def _working_tree(repository: Repository, within: Sequence[str]) -> Side:
    root = repository.root.resolve()
    return Side("the working tree", root, _listed(_below(repository.here, within, root)), root)


def _below(folder: Path, within: Sequence[str], top: Path | None = None) -> list[Path]:
    """The folders and files to look for specs in."""
    if within:
        return [found for name in within if (found := (folder / name).resolve()).exists()]
    for start in (folder, top):
        usual = [start / name for name in _DEFAULT if (start / name).is_dir()] if start is not None else []
        if usual:
            return usual
    return [folder] if top is None else []


def _listed(places: Sequence[Path], *, alone: bool = False) -> dict[tuple[str, str], SpecFile]:
    found: dict[tuple[str, str], SpecFile] = {}
    for path in (file for place in places for file in _files(place)):
        spec = _read(path)
        if spec is not None:
            key = (spec.kind, "" if alone else spec.name)
            # Of two specs of one name, the second goes by its path: both are compared, each with its own.
            found[key if key not in found else (spec.kind, f"{spec.name} ({path.name})")] = spec
    return found


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    else:
        yield from sorted(p for p in place.rglob("*") if p.suffix in (".yaml", ".yml") and p.is_file())


def _read(path: Path) -> SpecFile | None:
    """The spec in a file; `None` for a YAML file of another kind."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if "apiVersion: mapspec/" not in text:
        return None
    quick = _KIND.search(text), _NAME.search(text)  # parsing takes a while, and most files are the same on both sides
    if quick[0] and quick[1] and quick[0][1] in _KINDS:
        return SpecFile(_KINDS[quick[0][1]], quick[1][1], path)
    try:
        data = read_yaml(path).data
    except SpecError:
        kind = "provider" if "kind: Provider" in text else "mapping"
        return SpecFile(kind, path.stem, path)
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    known = _KINDS.get(str(data.get("kind")))
    return None if known is None else SpecFile(known, str(name or path.stem), path)


@cache
def _relative(path: Path, root: Path) -> str:
    try:
        return path.resolve().relative_to(root).as_posix()
    except ValueError:
        return str(path)
