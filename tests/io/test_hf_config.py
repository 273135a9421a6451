"""config.json: three spellings of infinity, findings with line and column, and writing back in the same dialect."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapspec.errors import CheckpointError
from mapspec.io.json_config import parse_config, read_config, write_config

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(lambda k: k != "__float__"), inner),
    max_leaves=8,
)
LIKE = [
    None,
    '{\n  "a": 1\n}\n',
    '{\n    "é": 1\n}',
    '{\n\t"a": [{"__float__": "Infinity"}]\n}\n',
    '{"a": 1, "b": 2}',
    '{"a":1,"b":2}\n',
]


def test_three_spellings_of_infinity() -> None:
    text = (
        '{"a": [0.0, Infinity], "b": {"__float__": "Infinity"}, "c": 1e308, "d": {"__float__": "-Infinity"}, "e": NaN}'
    )
    config = parse_config(text, "config.json")
    assert config["a"] == [0.0, math.inf]
    assert (config["b"], config["c"], config["d"]) == (math.inf, 1e308, -math.inf)
    assert math.isnan(config["e"])


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.sampled_from(LIKE))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_again(config: dict[str, object], like: str | None) -> None:
    config.pop("__float__", None)
    again = parse_config(write_config(config, like).decode(), "config.json")
    assert again == config
    assert list(again) == list(config)


@pytest.mark.parametrize(
    "text",
    [
        '{\n  "z": 1,\n  "limit": [\n    0.0,\n    Infinity\n  ],\n  "a": 1e-05\n}\n',
        '{\n  "limit": [\n    0.0,\n    {\n      "__float__": "Infinity"\n    }\n  ]\n}\n',
        '{\n    "big": 1e+308,\n    "name": "caf\u00e9"\n}',
        '{\n\t"a": 1\n}\n',
        '{"a": 1, "b": [1, 2]}',
        '{"a":1,"b":[1,2]}',
    ],
)
def test_an_unchanged_config_keeps_its_text(text: str) -> None:
    assert write_config(parse_config(text, "config.json"), text).decode() == text


def test_defaults() -> None:
    assert write_config({"b": math.inf, "a": "é"}) == b'{\n  "b": Infinity,\n  "a": "\\u00e9"\n}\n'


def test_strict_json_where_the_reference_is_strict() -> None:
    like = '{"x": {"__float__": "NaN"}, "y": 1}'
    written = write_config({"a": -math.inf, "b": {"c": [math.nan]}}, like).decode()
    assert json.loads(written) == {"a": {"__float__": "-Infinity"}, "b": {"c": [{"__float__": "NaN"}]}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{\n  "a": 1\n  "b": 2\n}', "config.json:3:3: MS603 not JSON: expecting ',' delimiter"),
        (b"", "config.json:1:1: MS603 not JSON: expecting value"),
        (b'{"a": "\xff"}', "config.json: MS603 `config.json` is not UTF-8 text: byte 7 is 0xff"),
        (b"[]", "config.json:1:1: MS603 a config is a JSON object, this is a list"),
        (b"3", "config.json:1:1: MS603 a config is a JSON object, this is a number"),
        (
            b'{\n  "a": {"b": 1},\n  "b": "a\\": {",\n  "a": 2\n}',
            "config.json:4:3: MS604 key `a` stands here a second time",
        ),
        (b'{"x": {"__float__": "big"}}', 'config.json: MS603 `__float__` holds "big"; known are'),
        (b'{"x": ' + b"[" * 100_000, "MS603 nested too deeply"),
    ],
)
def test_findings(tmp_path: Path, text: bytes, expected: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path / "config.json")
    (finding,) = caught.value.diagnostics
    assert expected in finding.one_line()


def test_every_repeated_key_is_found() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config('{"a": 1, "a": 2, "b": [{"c": 1, "\\u0063": 2}]}', "config.json")
    places = [(finding.span.line, finding.span.col, finding.span.end_col) for finding in caught.value.diagnostics]
    assert places == [(1, 10, 13), (1, 33, 41)]


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MS602 `config\.json` is not there"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"MS602 `config\.json` cannot be read: Is a directory"):
        read_config(tmp_path / "config.json")
