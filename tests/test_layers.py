"""No arrow points upwards: which module may import which, and what the light commands leave alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mapspec

HERE = Path(mapspec.__file__).parent

# From the bottom up. A module imports from rows above its own only; `render` and `cli` may import everything.
LAYERS = (
    ("_version", "frozen"),
    ("tensors",),
    ("diagnostics", "errors"),
    ("composer",),
    ("text", "names", "arrange", "collapse", "expr", "file_codes", "run_codes", "spec_codes"),
    ("codes", "schema.v1", "schema.provider_v1", "schema.export"),
    ("schema",),
    ("documents", "circles"),
    ("scope",),
    ("verify_parts",),
    ("verify_names",),
    ("link",),
    ("axes", "choose"),
    ("bound",),
    ("bind_values",),
    ("bind_rules",),
    ("bind",),
    ("regions", "open_rules"),
    ("table",),
    ("prove", "coverage", "ranks"),
    ("mapping", "cuts"),
    ("plan", "lint"),
    ("certificate",),
    ("beside",),
    ("prepare",),
    ("memory",),
    ("outputs", "team", "shares"),
    ("resume", "gloo_team", "recruit"),
    ("convert", "verify", "intact", "inventory", "keys", "diff"),
    ("live", "authoring"),
    ("render", "logits"),  # a package of its own with its own renderer
    ("cli",),
)
LEVEL = {module: number for number, row in enumerate(LAYERS) for module in row}
# Reading and writing files stands beside this order: it knows of tensors and findings, and of no spec.
BESIDE = (
    "io",
    "copying",
    "fill",
    "publish",
    "crew",
    "upload",
    "journal",
    "progress",
    "amounts",
    "nogc",
    "boxes",
    "quiet",
)


def _imports(path: Path) -> list[tuple[int, str]]:
    """(line, module below mapspec) of every import of ours; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.ImportFrom)
            or id(node) in typing_only
            or not (node.module or "").startswith("mapspec")
        ):
            continue
        module = (node.module or "").removeprefix("mapspec").removeprefix(".")
        for alias in node.names:
            inner = f"{module}.{alias.name}".lstrip(".")
            is_module = (HERE / Path(*inner.split("."))).with_suffix(".py").is_file()
            found.append((node.lineno, inner if is_module else module))
    return [(line, module) for line, module in found if module]


def _level(module: str) -> int | None:
    """The level of a module, or of the package that it lies in."""
    while module not in LEVEL and "." in module:
        module = module.rpartition(".")[0]
    return LEVEL.get(module)


def _modules() -> list[str]:
    paths = (path.relative_to(HERE).with_suffix("").parts for path in HERE.rglob("*.py"))
    return [".".join(parts).removesuffix(".__init__") for parts in paths]


def _file(module: str) -> Path:
    path = HERE / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_module_of_the_order_exists() -> None:
    assert [module for module in LEVEL if not _file(module).is_file()] == []


@pytest.mark.parametrize("module", [m for m in _modules() if _level(m) is not None])
def test_no_module_imports_from_above(module: str) -> None:
    level = _level(module)
    assert level is not None
    for line, used in _imports(_file(module)):
        other = _level(used)
        if other is not None and used.partition(".")[0] != module.partition(".")[0]:
            assert other <= level, f"mapspec/{module}:{line} imports {used}, which is above it"
            assert other < level or module not in LEVEL or _side_by_side(module, used), f"{module}:{line} and {used}"


def _side_by_side(module: str, used: str) -> bool:
    """Modules of one row may know each other in one direction."""
    return module not in [other for _, other in _imports(_file(used))]


@pytest.mark.parametrize("module", [m for m in _modules() if m.partition(".")[0] in BESIDE])
def test_files_know_nothing_of_specs(module: str) -> None:
    low = LEVEL["errors"]
    for line, used in _imports(_file(module)):
        level = _level(used)
        assert level is None or level <= low, f"mapspec/{module}:{line} imports {used}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import mapspec", ("torch", "rich", "numpy", "pydantic", "ruamel.yaml", "typer")),
        ("import mapspec.table", ("torch", "rich", "megatron", "transformers")),
        ("import mapspec.lint", ("torch", "rich", "megatron", "transformers")),
        ("import mapspec.mapping", ("torch", "rich", "megatron", "transformers")),
        ("import mapspec.prepare", ("torch", "rich", "megatron", "transformers")),
        ("import mapspec.keys", ("torch", "rich", "megatron", "transformers")),
        ("import mapspec.authoring.fmt", ("torch", "rich", "megatron", "numpy")),
        ("import mapspec.schema", ("torch", "rich", "megatron", "numpy")),
        ("import mapspec.cli", ("torch", "rich", "megatron", "transformers", "numpy")),
        (
            "from mapspec.lint import lint; from pathlib import Path; lint([Path('mappings/nemotron_h.yaml')])",
            ("torch",),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_light_imports_stay_light(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    assert done.stdout.split() == []
