"""transformers' Omni and ours compute the same; each known difference alone costs what docs/verify.md says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_omni import OMNI, write_tiny_omni
from omni_parity import DIFFERENCES, Compared, Difference, compare

from mapspec.backends.reference import one_process_group

pytestmark = pytest.mark.megatron

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
NO_NORM = Difference({"fields": {"vision_final_layernorm": False}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    root = tmp_path_factory.mktemp("parity")
    with one_process_group():
        yield {name: write_tiny_omni(OMNI[name].but(dtype="float32"), root / name) for name in OMNI}


@pytest.mark.parametrize(
    ("name", "video"),
    [("omni", False), ("omni", True), ("published", False), ("mtp", False), ("mtp", True), ("vl", False)],
)
def test_features_and_logits_agree_to_rounding(folders: dict[str, Path], name: str, video: bool) -> None:
    seen = compare(folders[name], OMNI[name].but(dtype="float32"), video=video)
    assert seen.keys() == {"vision features", "logits"} | ({"sound features"} if OMNI[name].sound else set())
    for what, compared in seen.items():
        assert compared.relative < 1e-5, what
        assert compared.cosine > 1 - 1e-9, what


def rows() -> dict[str, tuple[float, float]]:
    """Difference -> cosine of the features it touches and of the logits, as the page has them."""
    found = re.findall(r"^\| ([^|]+?) \| (\d\.\d+) \| (\d\.\d+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {title: (float(features), float(logits)) for title, features, logits in found}


def test_the_table_has_every_difference() -> None:
    assert list(rows()) == [*DIFFERENCES, "no norm behind the vision tower, where there is MTP"]


@pytest.mark.parametrize("title", [*DIFFERENCES, "no norm behind the vision tower, where there is MTP"])
def test_each_difference_alone(folders: dict[str, Path], title: str) -> None:
    name, difference = ("published", DIFFERENCES[title]) if title in DIFFERENCES else ("mtp", NO_NORM)
    seen = compare(folders[name], OMNI[name].but(dtype="float32"), difference)
    features, logits = rows()[title]
    assert touched(seen).cosine == pytest.approx(features, abs=5e-4)
    assert seen["logits"].cosine == pytest.approx(logits, abs=5e-4)


def touched(seen: dict[str, Compared]) -> Compared:
    """Vision or sound features, whichever are further apart."""
    return min(seen["vision features"], seen["sound features"], key=lambda c: c.cosine)
