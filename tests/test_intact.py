"""The certificate: whatever happens to a file after it was written is found, and the tensor is named."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_convert import small, write_hf
from typer.testing import CliRunner

from mapspec.certificate import FileRecord, read_certificate, seal
from mapspec.cli import app
from mapspec.convert import Output, convert
from mapspec.errors import CheckpointError
from mapspec.intact import check_intact
from mapspec.prepare import Request

HOME = "megatron/iter_0000000"
# one of each class: data, its framing, metadata, common state, config, index, carried files, files above
MEGATRON = (
    "__0_0.distcp", "__0_3.distcp", ".metadata", "metadata.json", "common.pt", "run_config.yaml", "train_state.pt",
    "hf/config.json", "hf/model.safetensors.index.json", "hf/tokenizer.json", "mapspec.json",
    "../latest_checkpointed_iteration.txt", "../latest_train_state.pt",
)  # fmt: skip
HF = (
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    "config.json", "tokenizer.json", "mapspec.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of both kinds as `convert` writes them: `megatron` and `hf`."""
    root = tmp_path_factory.mktemp("intact")
    source = write_hf(root / "source", small(), shards=2)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    convert(Request(source), Output(root / "megatron"))
    convert(Request(root / "megatron"), Output(root / "hf"))
    return root


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def codes(path: Path) -> list[str]:
    return [finding.code for finding in check_intact(path).findings]


def test_what_was_written_is_intact(written: Path) -> None:
    for path in (written / "megatron", written / HOME, written / "hf"):
        done = check_intact(path)
        assert done.findings == ()
        assert done.tensors == 35
    files = {p.relative_to(written / HOME).as_posix() for p in (written / HOME).rglob("*") if p.is_file()}
    certificate = read_certificate(written / HOME / "mapspec.json")
    assert set(certificate.files) == files - {"mapspec.json"}
    assert set(certificate.above) == {"latest_checkpointed_iteration.txt", "latest_train_state.pt"}
    assert certificate.head["source"]["files"].keys() >= {"config.json", "model-00001-of-00002.safetensors"}


def test_every_byte_of_a_data_file_counts_once(written: Path) -> None:
    for home in (written / HOME, written / "hf"):
        for name, record in read_certificate(home / "mapspec.json").files.items():
            spans = [(offset, offset + nbytes) for _, offset, nbytes, _ in record.chunks]
            assert spans == sorted(spans)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
            assert record.size == (home / name).stat().st_size
            assert bool(spans) == name.endswith((".distcp", ".safetensors"))


@given(st.sampled_from([*((HOME, f) for f in MEGATRON), *(("hf", f) for f in HF)]), st.integers(0), st.integers(0, 7))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_found_and_named(written: Path, at: tuple[str, str], position: int, bit: int) -> None:
    folder, name = at
    path = written / folder / name
    before = path.read_bytes()
    position %= len(before)
    after = bytearray(before)
    after[position] ^= 1 << bit
    root = written / folder.partition("/")[0]
    record = read_certificate(written / folder / "mapspec.json").files.get(name)
    try:
        path.write_bytes(after)
        if name == "mapspec.json":
            with pytest.raises(CheckpointError) as caught:
                check_intact(root)
            assert caught.value.diagnostics[0].code in ("MS730", "MS731")
            return
        (finding,) = check_intact(root).findings
    finally:
        path.write_bytes(before)
    assert Path(finding.where or "").name == path.name
    hit = [t for t, start, n, _ in (record.chunks if record else ()) if start <= position < start + n]
    if hit:
        assert finding.code == "MS732"
        assert f"`{hit[0]}`" in finding.message
    else:
        assert finding.code == ("MS736" if record and record.chunks else "MS738")


@given(st.sampled_from([(HOME, "__0_1.distcp"), ("hf", HF[0])]), st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_names_what_it_lost(written: Path, at: tuple[str, str], share: float) -> None:
    path = written / at[0] / at[1]
    before = path.read_bytes()
    size = int(share * len(before))
    try:
        path.write_bytes(before[:size])
        (finding,) = check_intact(written / at[0]).findings
    finally:
        path.write_bytes(before)
    chunks = read_certificate(written / at[0] / "mapspec.json").files[at[1]].chunks
    lost = {tensor for tensor, start, n, _ in chunks if start + n > size}
    assert finding.code == "MS734"
    assert f"{size:,} of its {len(before):,} bytes" in finding.message
    if len(lost) == 1:
        assert f"lost: `{lost.pop()}`" in finding.message


def test_files_exchanged_gone_added_and_longer(copied: Path) -> None:
    home = copied / HOME
    (home / "__0_0.distcp").rename(home / "x")
    (home / "__0_1.distcp").rename(home / "__0_0.distcp")
    (home / "x").rename(home / "__0_1.distcp")
    (home / "__0_2.distcp").unlink()
    (home / "hf" / "tokenizer.json").unlink()
    with (home / "__0_3.distcp").open("ab") as file:
        file.write(b"\0")
    (home / "__0_4.distcp").write_bytes(b"")
    (home / "hf" / "code.py").write_text("pass")
    (home / ".git").mkdir()
    (home / ".git" / "config").write_text("")
    found = {(Path(f.where or "").name, f.code): f.message for f in check_intact(copied / "megatron").findings}
    assert found.keys() == {
        ("__0_0.distcp", "MS735"), ("__0_1.distcp", "MS735"), ("__0_2.distcp", "MS733"), ("__0_3.distcp", "MS734"),
        ("__0_4.distcp", "MS737"), ("tokenizer.json", "MS733"), ("code.py", "MS737"),
    }  # fmt: skip
    assert "; it held `" in found["__0_2.distcp", "MS733"]


def test_shards_of_equal_framing_exchanged(tmp_path: Path) -> None:
    # All tensors alike: header and framing agree, only the values tell which file is which.
    source = write_hf(tmp_path / "source", small(), shards=1)
    convert(Request(source), Output(tmp_path / "megatron"))
    home = tmp_path / HOME
    record = read_certificate(home / "mapspec.json").files["__0_0.distcp"]
    data = bytearray((home / "__0_0.distcp").read_bytes())
    for _, start, _, _ in record.chunks:
        data[start] ^= 1
    (home / "__0_0.distcp").write_bytes(data)
    found = check_intact(tmp_path / "megatron").findings
    assert {f.code for f in found} == {"MS732"}
    named = " ".join(f.message for f in found)
    assert len(record.chunks) <= 10 or f"{len({c[0] for c in record.chunks})} tensors" in named


def test_written_anew_by_another_tool(copied: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    tensors = load_file(copied / "hf" / name)
    save_file({f"model.{key}": value for key, value in tensors.items()}, copied / "hf" / name)
    (finding,) = check_intact(copied / "hf").findings
    assert finding.code == "MS735"
    assert name in (finding.where or "")
    # the same tensors under another header
    shutil.copy(copied / HOME / "hf/config.json", copied / "hf/config.json")
    save_file(tensors, copied / "hf" / name, metadata={"format": "np"})
    assert codes(copied / "hf") == ["MS736"]


def test_without_a_certificate(copied: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["verify", str(copied / "megatron")]).exit_code == 0
    for path in (copied / "source", copied / "nowhere"):
        with pytest.raises(CheckpointError) as caught:
            check_intact(path)
        assert caught.value.diagnostics[0].code == "MS730"
    path = copied / "hf" / "mapspec.json"
    head = json.loads(path.read_text())
    del head["digests"], head["seal"]
    path.write_text(json.dumps(head))
    with pytest.raises(CheckpointError) as caught:
        check_intact(copied / "hf")
    assert caught.value.diagnostics[0].code == "MS730"
    (copied / "hf" / "mapspec.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError) as caught:
        check_intact(copied / "hf")
    assert caught.value.diagnostics[0].code == "MS731"


def test_several_iterations(copied: Path) -> None:
    shutil.copytree(copied / HOME, copied / "megatron/iter_0000007")
    assert check_intact(copied / "megatron").folder.name == "iter_0000000"
    (copied / "megatron/latest_checkpointed_iteration.txt").write_text("7")
    assert check_intact(copied / "megatron").folder.name == "iter_0000007"
    (copied / "megatron/latest_checkpointed_iteration.txt").write_text("8")
    with pytest.raises(CheckpointError, match="there are several"):
        check_intact(copied / "megatron")


def test_an_unreadable_file(copied: Path) -> None:
    (copied / HOME / "common.pt").unlink()
    (copied / HOME / "common.pt").mkdir()
    assert codes(copied / "megatron") == ["MS739"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(copied: Path) -> None:
    data = next((copied / "megatron").rglob("*.distcp"))
    data.unlink()
    os.mkfifo(data)
    assert codes(copied / "megatron") == ["MS739"]


def test_casts_and_passthrough_are_certified(tmp_path: Path) -> None:
    source = write_hf(tmp_path / "source", small())
    convert(Request(source, dtype="float16"), Output(tmp_path / "megatron"))
    done = check_intact(tmp_path / "megatron")
    assert done.findings == ()
    assert done.certificate.head["value_steps"][0]["kind"] == "cast"


def test_odd_names_survive(tmp_path: Path) -> None:
    names = ['a "quoted" name', "ünïcode\n", "\\"]
    files = {name: FileRecord(3, "0" * 32, ((name, 0, 3, "1" * 32),)) for name in names}
    (tmp_path / "mapspec.json").write_bytes(seal({"format_version": "1.0"}, files, {}))
    assert read_certificate(tmp_path / "mapspec.json").files == files
