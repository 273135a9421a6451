"""Code beside a checkpoint travels along with everything that it imports, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path

from mapspec.io.remote_code import follow_code
from mapspec.io.side_files import sort_files
from mapspec.sources import open_reference


def write(root: Path, **files: str) -> tuple[str, ...]:
    """Write files (`a__b` is `a/b.py`) and give the side files that sorting finds."""
    (root / "config.json").write_text("{}", encoding="utf-8")
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sort_files(root).side_files


def test_a_chain_of_imports_leads_into_a_folder_that_is_left_out(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        modeling="from .configuration import Config\nfrom .tower.radio import Radio\nimport transformers\n",
        configuration="from .tower import sizes\n",
        tower__radio="from .blocks import Block\nfrom ..helper import mean\n",
        tower__blocks="from . import sizes\n",
        tower__sizes="WIDTH = 1\n",
        tower__unused="",
        helper="from .modeling import missing_on_purpose_is_a_name\n",
    )
    # A tower with a config of its own looks like another checkpoint, which is not carried as a whole.
    (tmp_path / "tower" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tower" / "__init__.py").write_text("", encoding="utf-8")
    files = sort_files(tmp_path).side_files
    assert not any(name.startswith("tower/") for name in files)
    code = follow_code(tmp_path, files)
    assert code.missing == ()
    assert code.files == (
        "configuration.py", "helper.py", "modeling.py", "tower/__init__.py", "tower/blocks.py", "tower/radio.py",
        "tower/sizes.py",
    )  # fmt: skip


def test_missing_files_are_named_with_who_needs_them(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        modeling=(
            "from .audio_model import Encoder\nfrom . import evs\n"
            "try:\n    from .fast import kernel\nexcept ImportError:\n    kernel = None\n"
            "if TYPE_CHECKING:\n    from .types import Thing\n"
            "from ....outside import nothing\n"
        ),
        broken="def (",
    )
    auto_map = {
        "AutoConfig": "configuration.Config",
        "AutoModel": "modeling.Model",
        "AutoTokenizer": ["tokenizing.Slow", None],
        "AutoModelForCausalLM": "someone/else--modeling_other.Model",
    }
    text = json.dumps({"auto_map": auto_map, "vision_config": {"auto_map": {"AutoModel": "radio_model.Radio"}}})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "processing.P"}}', encoding="utf-8")
    code = follow_code(tmp_path, (*files, "processor_config.json"))
    assert code.missing == (
        "`config.json` names the code file `configuration.py`, which is not there",
        "`config.json` names the code file `radio_model.py`, which is not there",
        "`config.json` names the code file `tokenizing.py`, which is not there",
        "`modeling.py` imports `.audio_model`, but `audio_model.py` is not there",
        "`modeling.py` imports `.evs`, but `evs.py` is not there",
        "`processor_config.json` names the code file `processing.py`, which is not there",
    )
    assert open_reference(tmp_path).missing == code.missing


def test_a_folder_without_code_has_nothing_to_say(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    reference = open_reference(tmp_path)
    assert (reference.files, reference.missing) == (("tokenizer.json",), ())
