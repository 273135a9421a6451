"""Trying a draft: bind it to the config, write its table out, and hold that against the tensors of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mapspec.authoring.draft import Draft
from mapspec.bind import Choices, bind
from mapspec.choose import detect_flavours
from mapspec.coverage import account
from mapspec.diagnostics import Diagnostic
from mapspec.documents import Document, merged_tree
from mapspec.errors import SpecError
from mapspec.link import Linked, link
from mapspec.prove import prove
from mapspec.schema import v1, validate
from mapspec.table import Table, TensorDecl, build_table
from mapspec.tensors import StoredTensor
from mapspec.text import parse_yaml

__all__ = ["Evidence", "Trial", "try_draft"]


@dataclass(frozen=True)
class Evidence:
    """What a variant has to fit: a config, and the tensors of a checkpoint where its headers are at hand.

    Attributes:
        path: where the spec will stand.
        config: contents of config.json.
        tensors: of the Hugging Face side; `None` without a checkpoint.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor] | None


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of a draft.

    Attributes:
        draft: the draft.
        linked: the linked spec, `None` where it does not link.
        table: its rows for the config, `None` where it does not bind.
        findings: why there is no table, or what its proof finds.
        missing: tensors that the table expects and the checkpoint lacks.
        extra: tensors that nothing takes.
        misshapen: tensors whose shape is another than expected.
    """

    draft: Draft
    linked: Linked | None
    table: Table | None
    findings: tuple[Diagnostic, ...]
    missing: tuple[TensorDecl, ...] = ()
    extra: tuple[str, ...] = ()
    misshapen: tuple[TensorDecl, ...] = ()

    @cached_property
    def cost(self) -> tuple[int, int]:
        """The smaller, the better: whether there is no proven table, and how many tensors are not explained."""
        return (len(self.findings), len(self.missing) + len(self.extra) + len(self.misshapen))

    def proven(self) -> Trial:
        """The same with what the proof finds. Trials go without: it takes longer than all the rest."""
        return self if self.table is None else replace(self, findings=tuple(prove(self.table).findings))

    @property
    def fits(self) -> bool:
        """Whether nothing is left to explain."""
        return self.cost == (0, 0)


def try_draft(draft: Draft, evidence: Evidence) -> Trial:
    """Read the draft as the file that it will be, and see how far it goes."""
    linked: Linked | None = None
    try:
        tree = merged_tree(evidence.path, parse_yaml(draft.text(), str(evidence.path)))
        linked = link(Document(evidence.path, tree, validate(tree, v1.Mapping)))
        flavours = detect_flavours(linked, evidence.tensors or (), {})
        table = build_table(bind(linked, evidence.config, Choices(flavours)), "hf", evidence.tensors or {})
    except SpecError as error:
        return Trial(draft, linked, None, error.diagnostics)
    if evidence.tensors is None:
        return Trial(draft, linked, table, ())
    found = account(table, "hf", evidence.tensors)
    misshapen = tuple(decl for decl, tensor in found.present if decl.shape != tensor.shape)
    return Trial(draft, linked, table, (), found.missing, found.extra, misshapen)
