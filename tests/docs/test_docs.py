"""The documentation says what the program does: its commands, outputs, YAML, links and tables are checked here.

How pages are marked:

* ```console blocks are run, those of a page in order and in one fresh folder. Lines with `$ ` are commands, `# exit N`
  behind one is the exit code that it must have (default 0), the lines below it are its output, stdout and stderr. There
  `...` stands for anything, within a line or across lines, and runs of blanks are one blank. The folder holds the
  checkpoints of `FOLDERS`, and links to `mappings`, `providers` and `tests`.
* ```yaml blocks with an `apiVersion` are linked, others are linked as variants of nemotron_h. Behind the word `yaml`,
  `wrong=CODE` means that this finding must come out, `file=NAME` that the block is a file for the page's commands,
  `provider` that the block is a variant of the provider spec.
* ```python blocks with `>>>` are doctests, run in a folder like that of the commands; `...` stands for anything.
"""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from mapspec import cli
from mapspec.certificate import read_certificate
from mapspec.codes import CODES
from mapspec.documents import read_mapping
from mapspec.errors import MapspecError
from mapspec.link import link
from mapspec.mapping import compile_mapping
from mapspec.provider.spec import read_provider

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))))
_BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """(words behind the language, text) of the page's code blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [(*m["info"].partition(" "), m["body"]) for m in _BLOCK.finditer(text)]
    return [(words, body) for name, _, words, body in found if name == language]


# --- checkpoints that commands use -----------------------------------------------------------------------------


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2))


def _repeated(folder: Path) -> None:
    _change_config(folder, num_nextn_predict_layers=2)


def _without_mtp(folder: Path) -> None:
    _change_config(folder, num_nextn_predict_layers=1, mtp_hybrid_override_pattern="*E")


def _saved_by_training(folder: Path) -> None:
    """As training leaves it: without what mapspec puts beside the weights."""
    run("convert", str(folder), str(folder.with_name("converted")), "--iteration", "100")
    shutil.rmtree(folder)
    folder.with_name("converted").rename(folder)
    shutil.rmtree(folder / "iter_0000100" / "hf")
    (folder / "iter_0000100" / "mapspec.json").unlink()


def _odd(folder: Path) -> None:
    _change_config(folder, mamba_gate=True)


def _biased(folder: Path) -> None:
    _change_config(folder, use_bias=True)


def _converted(folder: Path) -> None:
    source = folder.with_name("source")
    folder.rename(source)
    run("convert", str(source), str(folder))
    shutil.rmtree(source)


def _native_names(folder: Path) -> None:
    _converted(folder)
    megatron = folder.with_name("megatron")
    folder.rename(megatron)
    run("convert", str(megatron), str(folder), "--flavour", "names=native")
    shutil.rmtree(megatron)


def _swapped(folder: Path) -> None:
    """Converted with k and v exchanged."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    k, v = (f"backbone.layers.2.mixer.{name}_proj.weight" for name in "kv")
    tensors[k], tensors[v] = tensors[v], tensors[k]
    save_file(tensors, path, metadata={"format": "pt"})
    _converted(folder)


def _flipped(folder: Path) -> None:
    """Converted, with one bit of a tensor flipped."""
    _converted(folder)
    path = folder / "iter_0000000" / "__0_0.distcp"
    chunks = read_certificate(path.with_name("mapspec.json")).files[path.name].chunks
    data = bytearray(path.read_bytes())
    data[chunks[-1][1] + 1] ^= 16
    path.write_bytes(data)


def _cut_off(folder: Path) -> None:
    _converted(folder)
    with (folder / "iter_0000000" / "__0_1.distcp").open("r+b") as file:
        file.truncate(10_000)


def _acme(folder: Path) -> None:
    """The variant of docs/variant.md."""
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = name.replace("backbone.layers.", "transformer.blocks.").replace("backbone.", "transformer.")
        tensors[new.replace(".mixer.o_proj.", ".mixer.out_proj.")] = tensor
        if new.endswith("q_proj.weight"):
            for norm in ("q_norm", "k_norm"):
                tensors[new.replace("q_proj", norm)] = torch.rand(16).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _change_config(folder, architectures=["AcmeHForCausalLM"], use_qk_norm=True)
    configs = folder.parent / "configs"
    configs.mkdir()
    shutil.copyfile(folder / "config.json", configs / "acme_h.json")


def _odd_h(folder: Path) -> None:
    """The same with parameters that nobody knows."""
    _acme(folder)
    shutil.rmtree(folder.parent / "configs")
    tensors = load_file(folder / "model.safetensors")
    sinks = {f"{place}.mixer.sinks": torch.rand(64) for place in ("transformer.blocks.2", "mtp.layers.0")}
    save_file({**tensors, **sinks}, folder / "model.safetensors", metadata={"format": "pt"})


def _more_specs(folder: Path, body: str) -> None:
    """For docs/variant.md: specs with the mistakes that the page shows."""
    body = body.replace("[AcmeHForCausalLM]", "[]")
    (folder / "with-typo.yaml").write_text(body.replace("[head]", "[heads]", 1))
    (folder / "with-overlap.yaml").write_text(body.replace("mixer.k_norm", "mixer.q_norm"))


# page -> folder -> (variant of tests/fixtures_hf.py, what is changed)
FOLDERS: Mapping[str, Mapping[str, tuple[str, Callable[[Path], None] | None]]] = {
    "README.md": {"my-model": ("mtp1", None)},
    "docs/convert.md": {
        "my-model": ("mtp1", None),
        "saved-by-training": ("mtp1", _saved_by_training),
        "without-mtp": ("moe", _without_mtp),
        "repeated-mtp": ("mtp1", _repeated),
        "odd-vocab": ("odd_vocab", None),
        "tied": ("tied", None),
    },
    "docs/cluster.md": {"my-model": ("moe", None)},
    "docs/variant.md": {"odd-tiny": ("mtp1", _odd_h), "acme-tiny": ("mtp1", _acme)},
    "docs/providers.md": {"my-model": ("mtp1", None), "odd": ("moe", _odd), "biased": ("moe", _biased)},
    "docs/live.md": {"my-model": ("mtp1", None)},
    "docs/start.md": {"my-model": ("mtp1", None)},
    "docs/megatron_bridge.md": {"my-model": ("mtp1", None)},
    "docs/megatron_lm.md": {"my-model": ("mtp1", None), "converted": ("mtp1", _converted)},
    "docs/verify.md": {
        "my-model": ("mtp1", None),
        "my-megatron": ("mtp1", _converted),
        "native-names": ("mtp1", _native_names),
        "flipped": ("mtp1", _flipped),
        "cut-off": ("mtp1", _cut_off),
        "swapped": ("mtp1", _swapped),
    },
}


def _review(folder: Path) -> None:
    """For docs/review.md: the specs, with k and v exchanged, and with an axis renamed."""
    planted = runpy.run_path(str(ROOT / "tests" / "diff" / "planted.py"))
    mistakes = {edit.name: edit for _, edit in planted["PLANTED"]}
    sides = {"before": (), "after": (mistakes["k and v swapped"],), "tidied": (planted["REFACTORS"][1],)}
    for name, edits in sides.items():
        planted["write_side"](folder / name, *edits, models=planted["FEW"])


@pytest.fixture
def stage(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the folder of a page, and goes there."""

    def make(page: str) -> Path:
        monkeypatch.chdir(tmp_path)
        for link_name in ("mappings", "providers", "tests"):
            (tmp_path / link_name).symlink_to(ROOT / link_name)
        if page == "docs/review.md":
            _review(tmp_path)
        for folder, (variant, change) in FOLDERS.get(page, {}).items():
            shutil.copytree(tiny(variant), tmp_path / folder)
            if change is not None:
                change(tmp_path / folder)
        return tmp_path

    return make


# --- commands --------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    """Run the command line in this process; its exit code."""
    before = sys.argv
    sys.argv = ["mapspec", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before


def commands(body: str) -> Iterator[tuple[str, int, str]]:
    """(command, exit code, output) of a console block."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        command, _, comment = line.partition("  # ")
        yield command, int(comment.removeprefix("exit ") or 0), output


def says(expected: str, actual: str) -> bool:
    """Whether the output is the expected one, `...` being anything."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    return re.fullmatch(r"\s*.*\s*".join(parts), " ".join(actual.split()), re.DOTALL) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_commands_do_what_the_page_says(
    page: str, stage: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    tmp_path = stage(page)
    for words, body in blocks(page, "yaml"):
        if words.startswith("file="):
            (tmp_path / words.removeprefix("file=")).write_text(body)
            if page == "docs/variant.md":
                _more_specs(tmp_path, body)
    capsys.readouterr()
    for _, body in blocks(page, "console"):
        for command, code, expected in commands(body):
            words = shlex.split(command)
            with monkeypatch.context() as environment:
                while "=" in words[0]:
                    environment.setenv(*words.pop(0).split("=", 1))
                assert words[0] == "mapspec", f"{page}: only mapspec commands are run, not `{command}`"
                actual = run(*words[1:])
            out, err = capsys.readouterr()
            err = "\n".join(line for line in err.splitlines() if not re.match(r"\s*\d+ %  ", line))
            text = (out + err).replace(f"{ROOT}{os.sep}", "")
            assert actual == code, f"{page}: `{command}` ended with {actual}, not {code}:\n{text}"
            assert says(expected, text), f"{page}: `{command}` does not say that, but:\n{text}"


def test_every_option_of_the_pages_exists() -> None:
    group = typer.main.get_command(cli.app)
    known = {option for command in group.commands.values() for p in command.params for option in _names(p)}  # type: ignore[attr-defined]
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        # Options of other programs stand there too.
        others = {
            "--load",
            "--update-golden",
            "--stdio",
            "--install-completion",
            "--use-checkpoint-args",
            "--ckpt-format",
            "--no-ext-diff",
        }
        if page == "docs/megatron_lm.md":  # a test of its own reads them
            continue
        if page == "docs/cluster.md":  # those of torchrun, srun and sbatch
            text = re.sub(r"^#SBATCH.*$|^srun torchrun(.*\\\n)*?(?=    -m mapspec)", "", text, flags=re.MULTILINE)
        if page == "docs/performance.md":  # those of benchmarks/convert.py
            others |= {"--scratch", "--rounds", "--size-gb", "--only"}
        if page == "docs/live.md":  # that of benchmarks/live_reads.py
            others |= {"--measure"}
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known - others
        assert not unknown, f"{page} names options that no command has: {sorted(unknown)}"


def _names(parameter: Any) -> list[str]:
    return [*parameter.opts, *parameter.secondary_opts]


def test_the_table_of_commands_is_complete() -> None:
    table = set(re.findall(r"^\| `mapspec ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert table == set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_the_table_of_exit_codes_is_that_of_the_program() -> None:
    text = (ROOT / "README.md").read_text().partition("| exit code | meaning |")[2].partition("\n\n")[0]
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    said = {int(code) for code in re.findall(r"(\d+) (?:done|findings|cannot|bug|interrupted)", cli.__doc__ or "")}
    assert codes == said == {0, 1, 2, 3, 130}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z]+)`", (ROOT / page).read_text()))
        assert named <= targets, page


def test_the_table_of_models_is_proven() -> None:
    rows = re.findall(r"^\| (nemotron-\S+) \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 11
    for name, cells in rows:
        numbers = [int(cell.replace(",", "")) for cell in cells.split("|")]
        proof = compile_mapping("nemotron_h", ROOT / "tests" / "configs" / f"{name}.json").proof
        assert not proof.findings
        found = [proof.hf_tensors, proof.hf_elements, proof.megatron_tensors, proof.stored_tensors]
        assert found == numbers, name


# --- YAML, Python, links ---------------------------------------------------------------------------------------

_VARIANT = """\
apiVersion: mapspec/v1
kind: Mapping
metadata: {name: fragment, version: 1.0.0}
extends: nemotron_h@1
"""
_PROVIDER = """\
apiVersion: mapspec/v1
kind: Provider
metadata:
  name: fragment
  version: 1.0.0
  mapping: nemotron_h@1
  megatron: {at_least: "0.17", below: "0.21", tested: ["0.19.2"]}
extends: nemotron_h@1
"""


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_yaml_is_what_the_language_allows(page: str, tmp_path: Path) -> None:
    for number, (words, body) in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        provider = "provider" in words.split()
        path.write_text(body if "apiVersion:" in body else (_PROVIDER if provider else _VARIANT) + body)
        wanted = {word.removeprefix("wrong=") for word in words.split() if word.startswith("wrong=")}
        try:
            if provider:
                read_provider(path)
            else:
                link(read_mapping(path))
            found = set()
        except MapspecError as error:
            found = {diagnostic.code for diagnostic in error.diagnostics}
        assert found == wanted, f"{page}, block {number}:\n{body}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_prints_what_the_page_says(page: str, stage: Callable[[str], Path]) -> None:
    stage(page)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8", optionflags=flags)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", here.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (here.parent / path).resolve() if path else here
        assert file.is_file(), f"{page}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(title) for title in titles}, f"{page}: {target}"


def _anchor(title: str) -> str:
    """The fragment that a heading gets in rendered Markdown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_codes_exist(page: str) -> None:
    named = set(re.findall(r"\bMS\d{3}\b", (ROOT / page).read_text(encoding="utf-8")))
    assert named <= set(CODES), f"{page}: {sorted(named - set(CODES))}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    """Paths in backticks that begin with a folder of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:mapspec|mappings|providers|tests|docs)/[\w./-]*)`", text):
        if "NAME" not in path and not re.fullmatch(r"mapspec/v\d", path):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_key_reference_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, old, new in generate["updated"]():
        assert old == new, f"{path.name} is out of date; run: python docs/generate.py"


def test_no_module_imports_from_a_later_layer() -> None:
    """The table of layers in docs/architecture.md, from bottom to top."""
    table = (ROOT / "docs" / "architecture.md").read_text().partition("| layer | modules |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", row) for row in table.splitlines()[2:]]
    layer = {module: number for number, modules in enumerate(rows) for module in modules}
    package = ROOT / "mapspec"
    assert not [m for m in layer if not (package / m).is_dir() and not (package / f"{m}.py").is_file()]
    for path in package.rglob("*.py"):
        module = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mapspec."):
                used = str(node.module).split(".")[1]
                # A module that is new is in no row yet.
                late = layer.get(used, 0) > layer.get(module, len(rows))
                assert not late, f"{path.relative_to(ROOT)}:{node.lineno} imports `{used}`, of a later layer"
