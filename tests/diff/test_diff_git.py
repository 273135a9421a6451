"""In real repositories: revisions, missing history, the pull-request check, pre-commit's hooks, git's own diff."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from planted import CLASSES, ROOT, TOY, Edit, apply_to, toy_side
from ruamel.yaml import YAML

from mapspec.diff.compare import compare
from mapspec.diff.model import Report
from mapspec.diff.sides import open_sides
from mapspec.errors import DiffError

SWAP, SILENT, REFACTOR = CLASSES["DC101"][0], CLASSES["DC107"][0], CLASSES["DC501"][0]
LINE = 1 + TOY.joinpath("mappings", "toy.yaml").read_text().splitlines().index(
    "        hf: {q: q.weight, k: k.weight, v: v.weight}"
)
BIN = Path(sys.executable).parent
CLEAN = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "GITHUB_"))},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "PYTHONPATH": str(ROOT),
}


def run(where: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=where, env={**CLEAN, **(env or {})}, capture_output=True, text=True, check=False)


def git(where: Path, *words: str) -> str:
    done = run(where, "git", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(where: Path, message: str, *edits: Edit) -> None:
    apply_to(where, *edits)
    git(where, "add", "-A")
    git(where, "commit", "-qm", message)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """main; a branch off it with an exchange; main went on with a comment."""
    for name in [n for n in os.environ if n.startswith(("GIT_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    folder = toy_side(tmp_path / "repository")
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "start")
    git(folder, "switch", "-qc", "topic")
    commit(folder, "exchange", SWAP)
    git(folder, "switch", "-q", "main")
    commit(folder, "a comment", REFACTOR)
    git(folder, "switch", "-q", "topic")
    monkeypatch.chdir(folder)
    return folder


def compared(*arguments: str) -> Report:
    with ExitStack() as stack:
        base, head = (*arguments, None, None)[:2]
        return compare(*open_sides(stack, base, head))


def codes(*arguments: str) -> set[str]:
    return {change.code for change in compared(*arguments).changes}


def test_the_default_is_the_merge_base_and_the_working_tree(repository: Path) -> None:
    assert codes() == {"DC101", "DC901"}
    apply_to(repository, SILENT)
    assert codes() == {"DC101", "DC107", "DC901"}
    report = compared()
    assert report.head == "the working tree"
    assert re.fullmatch(r"main \([0-9a-f]+\)", report.base)
    assert [str(place) for place in report.changes[0].place] == [f"mappings/toy.yaml:{LINE}"] * 2


def test_revisions_ranges_folders_and_files(repository: Path, tmp_path: Path) -> None:
    assert codes("main", "topic") == {"DC101", "DC901"}
    assert codes("main..topic") == codes("main...topic") == codes("main", "topic")
    assert codes("HEAD", "HEAD") == set()
    assert codes("HEAD~1") == {"DC101", "DC901"}
    assert codes("topic", "main") == {"DC101", "DC901"}
    assert codes("main:mappings/toy.yaml", "mappings/toy.yaml") == {"DC101", "DC901"}
    other = toy_side(tmp_path / "other")
    assert codes(str(other), str(repository)) == {"DC101", "DC901"}
    assert codes(str(other / "mappings" / "toy.yaml"), "mappings/toy.yaml") == {"DC101", "DC901"}
    (repository / "below").mkdir()
    os.chdir(repository / "below")
    assert codes("main") == {"DC101", "DC901"}


def test_the_target_of_a_pull_request(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--branch", "topic", repository.as_uri(), str(clone))
    monkeypatch.chdir(clone)
    monkeypatch.setenv("GITHUB_BASE_REF", "main")
    assert codes() == {"DC101", "DC901"}
    monkeypatch.setenv("GITHUB_BASE_REF", "release")
    with pytest.raises(DiffError, match=r"MS852.*origin/release"):
        compared()


def test_what_cannot_be_compared_is_said(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiffError, match=r"MS851.*nowhere"):
        compared("nowhere")
    git(repository, "branch", "mappings")
    with pytest.raises(DiffError, match=r"MS855.*a revision too"):
        compared("mappings", "topic")
    with pytest.raises(DiffError, match=r"MS855.*nothing to compare"):
        compared("./mappings")
    git(repository, "switch", "-q", "--orphan", "other")
    git(repository, "commit", "-q", "--allow-empty", "-m", "nothing")
    with pytest.raises(DiffError, match="MS853"):
        compared()
    with pytest.raises(DiffError, match="MS856"):
        compared("other", "other")
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    with pytest.raises(DiffError, match="MS850"):
        compared()
    with pytest.raises(DiffError, match=r"MS851.*no git repository"):
        compared("main", "topic")
    monkeypatch.setenv("PATH", str(outside))
    with pytest.raises(DiffError, match=r"MS850.*program"):
        compared()


def test_a_shallow_clone_says_what_to_fetch(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    git(repository, "switch", "-q", "main")
    git(
        tmp_path, "clone", "-q", "--depth=1", "--no-single-branch", "--branch", "topic", repository.as_uri(), str(clone)
    )
    monkeypatch.chdir(clone)
    with pytest.raises(DiffError) as raised:
        compared()
    assert raised.value.diagnostics[0].code == "MS853"
    assert "git fetch --unshallow" in str(raised.value.diagnostics[0].help)
    with pytest.raises(DiffError) as raised:
        compared("HEAD~1")
    assert "shallow" in str(raised.value.diagnostics[0].help)


def test_objects_that_a_clone_leaves_out(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = git(repository, "rev-parse", "main:mappings/toy.yaml").strip()
    path = repository / ".git" / "objects" / blob[:2] / blob[2:]
    path.chmod(0o600)
    path.unlink()
    with pytest.raises(DiffError, match="MS854"):
        compared("main", "topic")


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def mapspec(tmp_path: Path) -> dict[str, str]:
    """An environment in which `mapspec` is this checkout's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "mapspec"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mapspec "$@"\n')
    script.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), str(BIN), os.environ["PATH"]])}


def test_the_command_fails_from_a_level_on_and_accepts(repository: Path, mapspec: dict[str, str]) -> None:
    done = run(repository, "mapspec", "diff", env=mapspec)
    assert done.returncode == 1, done.stderr
    assert run(repository, "mapspec", "diff", "--fail-on", "never", env=mapspec).returncode == 0
    prints = re.findall(r"\b[0-9a-f]{12}\b", done.stdout)
    words = [w for p in prints for w in ("--accept", p)]
    done = run(repository, "mapspec", "diff", *words, "--reason", "they were wrong before", env=mapspec)
    assert done.returncode == 0, done.stderr
    done = run(repository, "mapspec", "diff", "--fail-on", "any", env=mapspec)
    assert done.returncode == 0, done.stdout
    assert "2 accepted" in done.stdout


# --- the check on pull requests ------------------------------------------------------------------------------------


def test_the_action_runs(repository: Path, mapspec: dict[str, str], tmp_path: Path) -> None:
    """Its steps as the runner has them: the scripts in bash, inputs as environment, outputs in files."""
    action = YAML(typ="safe").load((ROOT / ".github" / "actions" / "mapspec-diff" / "action.yml").read_text())
    inputs = {name: entry["default"] for name, entry in action["inputs"].items()} | {"install": "false"}
    files = {name: tmp_path / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    steps = [s for s in action["runs"]["steps"] if s.get("if") != "inputs.install == 'true'"]
    assert len(steps) == len(action["runs"]["steps"]) - 1
    for expected, base in ((1, ""), (0, "HEAD")):
        for step in steps:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"], "inputs reach scripts through the environment only"
            given = {k: v.replace("${{ inputs.", "").replace(" }}", "") for k, v in step.get("env", {}).items()}
            env = {k: ({**inputs, "base": base})[v] for k, v in given.items()}
            env |= mapspec | {k: str(v) for k, v in files.items()} | {"RUNNER_TEMP": str(tmp_path)}
            script = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"])
            done = run(repository, *script, env=env)
            assert done.returncode == expected, done.stdout + done.stderr
        if expected:
            assert f"::error file=mappings/toy.yaml,line={LINE}," in done.stdout
            assert "DC101 tensors-exchanged" in files["GITHUB_STEP_SUMMARY"].read_text()
    report = files["GITHUB_OUTPUT"].read_text().splitlines()[0].removeprefix("report=")
    assert json.loads(Path(report).read_text())["format_version"]


def test_the_workflow_runs_commands_that_exist(repository: Path, mapspec: dict[str, str]) -> None:
    workflow = YAML(typ="safe").load((ROOT / ".github" / "workflows" / "mapspec.yml").read_text())
    steps = workflow["jobs"]["specs"]["steps"]
    for step in steps:
        used = str(step.get("uses", ""))
        assert not used.startswith("./") or (ROOT / used / "action.yml").is_file()
        if step.get("run", "").startswith("mapspec"):
            done = run(repository, *step["run"].split(), env=mapspec)
            assert done.returncode in (0, 1), done.stdout + done.stderr
    assert next(s for s in steps if "checkout" in str(s.get("uses")))["with"]["fetch-depth"] == 0


def test_pre_commit_runs_the_hooks(repository: Path, mapspec: dict[str, str], tmp_path: Path) -> None:
    """The repository's own hook definitions, with `mapspec` as installed: nothing is fetched."""
    yaml = YAML(typ="safe")
    hooks = [{**hook, "language": "system"} for hook in yaml.load((ROOT / ".pre-commit-hooks.yaml").read_text())]
    with (repository / ".pre-commit-config.yaml").open("w") as file:
        yaml.dump({"repos": [{"repo": "local", "hooks": hooks}]}, file)
    git(repository, "add", "-A")
    env = mapspec | {"PRE_COMMIT_HOME": str(tmp_path / "cache")}
    words = (sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose")
    run(repository, *words, env=env)  # the first run writes canonical form
    git(repository, "add", "-A")
    done = run(repository, *words, env=env)
    said = dict(re.findall(r"^mapspec (\w+)\.+(\w+)$", done.stdout, re.MULTILINE))
    assert said["fmt"] == "Passed", done.stdout
    found = re.findall(r"MS\d{3}", done.stdout)
    assert set(found) <= {"MS412", "MS505"}, done.stdout  # a toy has keys that no config has
    apply_to(repository, CLASSES["DC209"][0])
    git(repository, "add", "-A")
    done = run(repository, *words, env=env)
    assert done.returncode == 1
    assert "hiden" in done.stdout


def test_git_shows_what_a_file_does(repository: Path, mapspec: dict[str, str]) -> None:
    shutil.copy(ROOT / ".gitattributes", repository / ".gitattributes")
    git(repository, "config", "diff.mapspec.command", "mapspec driver")
    done = run(repository, "git", "diff", "main", "--", "mappings/toy.yaml", env=mapspec)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a/mappings/toy.yaml -> b/mappings/toy.yaml: 1 silent")
    assert "DC101 tensors-exchanged" in done.stdout
    done = run(repository, "git", "diff", "--no-ext-diff", "main", "--", "mappings/toy.yaml", env=mapspec)
    assert "@@" in done.stdout
    (repository / "mappings" / "toy.yaml").unlink()
    done = run(repository, "git", "diff", "--", "mappings/toy.yaml", env=mapspec)
    assert "DC210 spec-removed" in done.stdout
