"""`mapspec migrate`: nothing to do yet; with a renamed key, only that word of the text changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mapspec.authoring import migrate
from mapspec.authoring.migrate import MIGRATIONS, Renamed, migrate_files
from mapspec.authoring.order import key_order
from mapspec.choose import spec_files
from mapspec.errors import SpecError
from mapspec.schema import API_VERSIONS
from mapspec.text import parse_yaml

ROOT = Path(__file__).resolve().parents[2]

OLD = """\
# a comment
apiVersion: mapspec/v1
kind: Mapping
metadata: {name: old, version: 1.0.0}
dims:
  # sharded, as it was called once
  ffn: {size: hf.ffn,   shard: tensor}   # kept as it is
  "shard":
      size: 3
      'shard': tensor  # quotes go with the old word
blocks:
  a:
    objects:
      - shard: here
"""
RENAMED = (Renamed("Mapping", ("dims", "*", "shard"), "split", "1.1.0"),)


def test_shipped_specs_have_nothing_to_migrate(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    count = len(spec_files([ROOT / "mappings", ROOT / "providers"]))
    assert run("migrate", "--check")[:2] == (0, f"{count} specs up to date, nothing to migrate\n")


def test_migrations_lead_to_names_that_the_grammar_has() -> None:
    for step in (*MIGRATIONS, *RENAMED):
        path = tuple("x" if part == "*" else part for part in step.at[:-1])
        assert step.new in key_order(step.kind, path)
        assert step.at[-1] not in key_order(step.kind, path)


def test_a_renamed_key_is_all_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    (done,) = migrate_files([path], RENAMED)
    assert done.after == OLD.replace("  shard: tensor}", "  split: tensor}").replace("'shard': tensor", "split: tensor")
    assert [(d.code, d.span.line, d.span.col) for d in done.found if d.span] == [("MS866", 7, 25), ("MS866", 10, 7)]
    assert parse_yaml(done.after, "x").data["dims"]["shard"] == {"size": 3, "split": "tensor"}
    path.write_text(done.after)
    assert migrate_files([path], RENAMED)[0].after == done.after


def test_other_kinds_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.replace("kind: Mapping", "kind: Provider"))
    assert not migrate_files([path], RENAMED)[0].diff


def test_the_command(tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate.migrate_files, "__defaults__", (RENAMED,))
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    code, out, _ = run("migrate", "--check", str(path))
    assert code == 1
    assert "`shard` is called `split` since mapspec 1.1.0" in out
    assert "+  ffn: {size: hf.ffn,   split: tensor}   # kept as it is" in out
    assert path.read_text() == OLD
    assert run("migrate", str(path))[0] == 0
    assert "split: tensor}   # kept as it is" in path.read_text()
    assert run("migrate", "--check", str(path))[:2] == (0, "1 spec up to date, nothing to migrate\n")


@pytest.mark.parametrize(
    ("version", "says"), [("mapspec/v2", "mapspec 2.0 or later reads it"), ("mapspec/v12", "mapspec 12.0")]
)
def test_a_newer_grammar_names_the_release_that_reads_it(version: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(OLD.replace("mapspec/v1", version))
    with pytest.raises(SpecError) as caught:
        migrate_files([path])
    (finding,) = caught.value.diagnostics
    assert finding.code == "MS003"
    assert says in (finding.help or "")
    assert version not in API_VERSIONS


def test_a_misspelt_grammar_is_none_of_a_newer_release(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(OLD.replace("mapspec/v1", "mapspec/1"))
    with pytest.raises(SpecError) as caught:
        migrate_files([path])
    assert caught.value.diagnostics[0].hint == "mapspec/v1"
