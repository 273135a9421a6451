"""Modelling code beside a checkpoint: the files that config files name and what those import, one after the other.

transformers loads `module.Class` of an `auto_map` from `module.py` beside the config, and reads its relative imports. A
file that is missing there is noticed only when someone loads the checkpoint. Code is read as text, never run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["CodeFiles", "follow_code"]


@dataclass(frozen=True, slots=True)
class CodeFiles:
    """Attributes: files (to carry, each once, sorted), missing (one sentence for each file that is not there)."""

    files: tuple[str, ...]
    missing: tuple[str, ...]


def follow_code(root: Path, files: tuple[str, ...]) -> CodeFiles:
    """Files to carry, with everything that Python files among them import from beside themselves.

    Args:
        root: the Hugging Face folder.
        files: names relative to it. Imports may lead into folders that they leave out, but not out of `root`.
    """
    found = dict.fromkeys(files)
    missing: dict[str, None] = {}
    waiting = [name for name in files if name.endswith(".py")]
    for source, module in _named_modules(root, files):
        name = f"{module.replace('.', '/')}.py"
        if not (root / name).is_file():
            missing[f"`{source}` names the code file `{name}`, which is not there"] = None
        elif name not in found:
            found[name] = None
            waiting.append(name)
    while waiting:
        importer = waiting.pop()
        for module, options in _imports(root, importer):
            here = [name for name in options if (root / name).is_file()]
            if not here:
                missing[f"`{importer}` imports `{module}`, but `{options[0]}` is not there"] = None
            for name in (*here, *(package for file in here for package in _packages(root, file))):
                if name not in found:
                    found[name] = None
                    waiting.append(name)
    return CodeFiles(tuple(sorted(found)), tuple(sorted(missing)))


def _named_modules(root: Path, files: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(file, module) of every local class that an `auto_map` names."""
    for name in ("config.json", *(f for f in files if f.endswith("config.json") and "/" not in f)):
        try:
            content = json.loads((root / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file says so
        if isinstance(content, Mapping):
            for target in _targets(content):
                if "--" not in target and "." in target:  # `repository--module.Class` lies elsewhere
                    yield name, target.rpartition(".")[0]


def _targets(config: Mapping[str, Any]) -> Iterator[str]:
    auto_map = config.get("auto_map")
    for value in auto_map.values() if isinstance(auto_map, Mapping) else ():
        for target in value if isinstance(value, list) else (value,):
            if isinstance(target, str):
                yield target
    for part in config.values():
        if isinstance(part, Mapping) and part is not auto_map:
            yield from _targets(part)


def _imports(root: Path, importer: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module as written, files that would do) of the relative imports of a file.

    Imports within `try` may fail, those for type checkers alone do not happen: both are left out where no file is.
    """
    try:
        tree = ast.parse((root / importer).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    optional = {id(inner) for node in ast.walk(tree) if _may_fail(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = PurePosixPath(importer).parent
        for _ in range(node.level - 1):
            if folder == PurePosixPath("."):
                break  # above the folder there is nothing to carry
            folder = folder.parent
        else:
            dots = "." * node.level
            written = [(node.module or "", dots + (node.module or ""))] if node.module else []
            # `from . import a`: a file, or a name in the package's own file; `from .a import b`: b may be a file too.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}" if node.module else alias.name
                written.append((inner, f"{dots}{inner}"))
            base = folder / "__init__.py"
            for module, shown in written:
                path = folder / PurePosixPath(*module.split("."))
                options = (f"{path}.py", str(path / "__init__.py"))
                certain = module == node.module or (not node.module and not (root / base).is_file())
                if any((root / option).is_file() for option in options) or (certain and id(node) not in optional):
                    yield shown, options


def _packages(root: Path, name: str) -> list[str]:
    """The files of the packages that a module lies in, which Python reads before it."""
    inits = [str(folder / "__init__.py") for folder in PurePosixPath(name).parents if folder != PurePosixPath(".")]
    return [init for init in inits if (root / init).is_file()]


def _may_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.Try):
        return True
    test = node.test if isinstance(node, ast.If) else None
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"
