"""`run_config.yaml`, which Megatron-Bridge puts beside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.errors import CheckpointError

__all__ = ["read_run_config"]


def read_run_config(file: Path) -> Mapping[str, Any] | None:
    """The file's content, or `None` if there is no such file.

    Nothing that it names is imported or called: `_target_` and `_call_` stay strings, and a tagged value
    (`!!python/name:torch.bfloat16`) becomes the tag's last part (`torch.bfloat16`) if it is empty, else its content.
    """
    if not file.is_file():
        return None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _constructor()
    try:
        content = reader.load(file.read_bytes())
    except (YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark is not None else ""
        raise _unreadable(file, f"{getattr(error, 'problem', None) or first[0]}{place}") from error
    if not isinstance(content, dict):
        raise _unreadable(file, "the file holds no mapping")
    return content


def _unreadable(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        Diagnostic("MS660", what, where=str(file), help="mend the file, or move it away and give the config otherwise")
    )


def _constructor() -> type[Any]:
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

    class Inert(SafeConstructor):
        def tagged(self, node: Node) -> Any:
            if isinstance(node, ScalarNode):
                return node.value or str(node.tag).rpartition(":")[2]
            if isinstance(node, SequenceNode):
                return self.construct_sequence(node, deep=True)
            assert isinstance(node, MappingNode)
            return self.construct_mapping(node, deep=True)

    Inert.add_constructor(None, Inert.tagged)
    return Inert
