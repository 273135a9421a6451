"""For git's own diff: one file before and after, among the other specs of the working tree."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from mapspec.diff.compare import compare
from mapspec.diff.model import Report
from mapspec.diff.sides import folder_side

__all__ = ["compare_file"]

_SPECS = ("mappings", "providers")
_CONFIGS = (("tests", "configs"), ("tests", "keys"), ("configs",))


def compare_file(path: str, before: Path, after: Path, top: Path) -> Report:
    """What a change of one file does; the specs beside it are those of the working tree on both sides.

    Args:
        path: the file, relative to `top`.
        before, after: files with its content on both sides; `/dev/null` where it is absent.
        top: the top of the working tree.
    """
    with ExitStack() as stack:
        sides = []
        for label, content in ((f"a/{path}", before), (f"b/{path}", after)):
            root = Path(stack.enter_context(TemporaryDirectory(prefix="mapspec-driver-")))
            within = [name for name in dict.fromkeys((*_SPECS, Path(path).parts[0])) if (top / name).is_dir()]
            for name in within:
                shutil.copytree(top / name, root / name, ignore=_all_but_specs)
            for parts in _CONFIGS:
                if top.joinpath(*parts).is_dir() and not root.joinpath(*parts).exists():
                    root.joinpath(*parts).parent.mkdir(parents=True, exist_ok=True)
                    root.joinpath(*parts).symlink_to(top.joinpath(*parts).resolve())
            file = root / path
            file.unlink(missing_ok=True)
            if content.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(content, file)
            sides.append(folder_side(root, within, label))
        before_side, after_side = sides
        return compare(before_side, after_side)


def _all_but_specs(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not n.endswith((".yaml", ".yml", ".json")) and not Path(folder, n).is_dir()]
