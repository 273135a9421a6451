"""YAML text -> the node tree of YAML 1.2 with the place of every node.

ruamel's own parser is exact and slow: it takes half a second for what one command reads. libyaml is ten times as fast,
and reads by the rules of YAML 1.1. It is asked for texts in which the two are known to agree, which are nearly all;
everything else goes the slow way, and so does every text that libyaml refuses, for the message and its place.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.resolver import Resolver

try:
    from _ruamel_yaml import CParser
except ImportError:  # no wheel for this platform
    CParser = None

__all__ = ["compose", "compose_quickly"]

# What the two read differently: control characters, tabs and the line breaks of YAML 1.1; directives and ends of
# documents; `?` keys, tags (but not `!=`), anchors and aliases; lines of blanks, which a block scalar may begin with;
# comments that touch its header; a last line that does not end.
_DISPUTED = re.compile(
    r"[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    r"|\?|!(?!=)|(?<![^\s,\[{])[&*]\S|^%|^---|^\.\.\.|^ +$|[|>][-+0-9]*#|[^\n]\Z",
    re.MULTILINE,
)
# libyaml's recursion has no end but that of the stack, and ruamel's ends at a few hundred levels.
_DEEPEST = 50


def compose(text: str) -> Node | None:
    """The top node of the one document that `text` holds; `None` for an empty text.

    Raises:
        YAMLError: this is no YAML, or not one document.
        RecursionError: it is nested too deeply.
    """
    quick = compose_quickly(text)
    return YAML(typ="safe", pure=True).compose(text) if quick is None else quick


def compose_quickly(text: str) -> MappingNode | None:
    """The mapping that libyaml reads in `text`; `None` where ruamel's own parser may read something else."""
    if CParser is None or _DISPUTED.search(text):
        return None
    try:
        root = _Quick(text).get_single_node()
    except YAMLError:
        return None
    return root if isinstance(root, MappingNode) else None


class _DisputedError(YAMLError):
    """Only ruamel's own parser knows."""


if CParser is not None:

    class _Quick(CParser, Resolver):  # type: ignore[misc]
        """libyaml with the types of YAML 1.2. It calls these methods by their names."""

        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Resolver.__init__(self)
            self._depth = 0

        def descend_resolver(self, node: Any, index: Any) -> None:
            self._depth += 1
            if self._depth > _DEEPEST:
                raise _DisputedError

        def ascend_resolver(self) -> None:
            self._depth -= 1

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            if kind is ScalarNode and implicit[0] and not value:
                raise _DisputedError  # nothing stands there: the two disagree about the place of nothing
            return super().resolve(kind, value, implicit)
