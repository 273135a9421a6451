"""What mapspec asks git, by running it: revisions, the merge base, and the files of a revision in a folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import DiffError

__all__ = ["Repository", "find_repository"]

_LARGEST = 4_000_000  # bytes; no spec and no config is as large
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Repository:
    """A git working tree. `root` is its top folder, `here` where the user stands."""

    root: Path
    here: Path

    def commit(self, revision: str) -> str | None:
        """The full hash of the commit that a revision names, `None` where it names none."""
        done = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        return done.stdout.decode().strip() if done.returncode == 0 else None

    def wanted(self, revision: str) -> str:
        """The full hash of a commit.

        Raises:
            DiffError: MS851 where there is no such commit here.
        """
        found = self.commit(revision)
        if found is not None:
            return found
        help_ = "`git branch --all` and `git tag` list what there is"
        if self.is_shallow():
            help_ = f"this clone is shallow: `git fetch --unshallow`, or `git fetch --depth=1 origin {revision}`"
        elif not revision.startswith("origin/") and self.commit(f"origin/{revision}"):
            help_ = f"did you mean `origin/{revision}`?"
        message = f"`{revision}` is no commit of this repository, and no file or folder"
        raise DiffError(Diagnostic("MS851", message, where=str(self.root), help=help_))

    def main_branch(self) -> str:
        """The branch that changes go to: GITHUB_BASE_REF, what `origin/HEAD` names, or main or master.

        Raises:
            DiffError: MS852 where none of them exists.
        """
        target = os.environ.get("GITHUB_BASE_REF")
        done = self._git("symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD")
        named = done.stdout.decode().strip() if done.returncode == 0 else None
        asked = [f"origin/{target}"] if target else []
        tried = [*asked, *([named] if named else []), "origin/main", "origin/master", "main", "master"]
        for name in asked or tried:
            if self.commit(name):
                return name
        shown = ", ".join(f"`{name}`" for name in dict.fromkeys(asked or tried))
        message = f"there is no main branch to compare with: tried {shown}"
        help_ = "name the revision: mapspec diff REVISION"
        if asked:
            help_ = f"fetch it first: git fetch origin {target} (in a workflow: actions/checkout with `fetch-depth: 0`)"
        raise DiffError(Diagnostic("MS852", message, where=str(self.root), help=help_))

    def merge_base(self, one: str, other: str) -> str:
        """The commit at which two branches parted.

        Raises:
            DiffError: MS853 where they have none here.
        """
        done = self._git("merge-base", one, other)
        if done.returncode == 0:
            return done.stdout.decode().split()[0]
        message = f"`{one}` and `{other}` have no common commit in this clone"
        help_ = f"name the base itself: mapspec diff {one}"
        if self.is_shallow():
            help_ = (
                "the clone is shallow, so the commit is not there: git fetch --unshallow "
                "(in a workflow: actions/checkout with `fetch-depth: 0`)"
            )
        raise DiffError(Diagnostic("MS853", message, where=str(self.root), help=help_))

    def is_shallow(self) -> bool:
        """Whether history is cut off in this clone."""
        return self._git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true"

    def short(self, commit: str) -> str:
        """A commit as people write it."""
        done = self._git("rev-parse", "--short", commit)
        return done.stdout.decode().strip() or commit[:9]

    def extract(self, commit: str, target: Path) -> None:
        """Write the YAML and JSON files of a commit below `target`; others are no part of specs.

        Raises:
            DiffError: MS854 where git cannot read them.
        """
        listing = self._git("ls-tree", "-r", "-l", "-z", "--full-tree", commit)
        files: list[tuple[str, str]] = []
        for entry in listing.stdout.split(b"\0"):
            head, _, name = entry.partition(b"\t")
            words = head.split()
            path = os.fsdecode(name)
            if len(words) != 4 or words[1] != b"blob" or words[0] == b"120000" or not path.endswith(_SUFFIXES):
                continue
            if not words[3].isdigit() or int(words[3]) <= _LARGEST:  # git knows no size of what it has not got
                files.append((words[2].decode(), path))
        wanted = "".join(f"{blob}\n" for blob, _ in files).encode()
        done = self._git("cat-file", "--batch", stdin=wanted)
        if listing.returncode or done.returncode:
            why = (listing.stderr or done.stderr).decode(errors="replace").strip()
            raise DiffError(Diagnostic("MS854", f"git cannot read `{commit}`: {why}", where=str(self.root)))
        out, at = done.stdout, 0
        for _, path in files:
            end = out.index(b"\n", at)
            words = out[at:end].split()
            if len(words) != 3 or words[1] != b"blob":
                message = f"git has not got `{path}` of `{commit}`"
                help_ = "this clone leaves files out; fetch them: git fetch --refetch --filter=blob:limit=10m"
                raise DiffError(Diagnostic("MS854", message, where=str(self.root), help=help_))
            size = int(words[2])
            file = target / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(out[end + 1 : end + 1 + size])
            at = end + size + 2

    def _git(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return _run(self.root, arguments, stdin)


def find_repository(here: Path) -> Repository:
    """The repository that a folder lies in.

    Raises:
        DiffError: MS850 without git, or outside of a repository.
    """
    done = _run(here, ("rev-parse", "--show-toplevel"))
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        message = f"this is no git repository: {why[-1] if why else here}"
        help_ = "compare files or folders instead: mapspec diff OLD NEW"
        raise DiffError(Diagnostic("MS850", message, where=str(here), help=help_))
    return Repository(Path(os.fsdecode(done.stdout.rstrip(b"\n"))), here.resolve())


def _run(folder: Path, arguments: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], input=stdin, capture_output=True, check=False)
    except FileNotFoundError:
        help_ = "install git, or compare files or folders: mapspec diff OLD NEW"
        raise DiffError(Diagnostic("MS850", "there is no program `git`", where="PATH", help=help_)) from None
