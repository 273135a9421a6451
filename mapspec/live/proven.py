"""The table of a live model, bound and proven once for the same model and spec, however often it is asked for.

Reinforcement learning exports a model every few seconds. Binding and proving take up to 5 s for the largest
configs and depend on nothing that a training step changes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mapspec.bind import Choices
from mapspec.errors import SpecError
from mapspec.link import Linked
from mapspec.live.choosing import choose_for_model
from mapspec.prove import prove
from mapspec.table import Table, build_table

__all__ = ["table_for"]

_KEPT = 2  # a model and, say, its teacher
_tables: OrderedDict[tuple[object, ...], Table] = OrderedDict()


def table_for(
    linked: Linked, config: Mapping[str, Any], choices: Choices, shapes: Mapping[str, tuple[int, ...]], tp_size: int
) -> Table:
    """The proven table of a model; arguments as for `choose_for_model`.

    Raises:
        SpecError: what binding and proving find.
    """
    spec = tuple((s.id, str(s.document.path), s.document.model.model_dump_json()) for s in linked.scopes)
    text = json.dumps([config, _plain(choices)], sort_keys=True, default=str)
    key = (spec, text, frozenset(shapes.items()), tp_size)
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    table = build_table(choose_for_model(linked, config, choices, shapes, tp_size))
    proof = prove(table)
    if proof.findings:
        raise SpecError(proof.findings)
    _tables[key] = table
    while len(_tables) > _KEPT:
        _tables.popitem(last=False)
    return table


def _plain(choices: Choices) -> list[object]:
    """The choices as something that JSON can spell."""
    return [dict(choices.flavours), list(choices.megatron_version), choices.padded_vocab_size]
