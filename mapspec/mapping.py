"""A mapping, compiled for one model: look names up and transform tensors, in either direction, for any rank."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mapspec.bind import Choices, bind
from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import PlanError, SpecError
from mapspec.link import Linked, link_spec
from mapspec.prove import Proof, prove
from mapspec.ranks import WHOLE, Shard, local_region, local_shape
from mapspec.regions import Piece, compose, flip
from mapspec.table import SURFACES, Row, RuleForms, Table, build_table
from mapspec.tensors import Box, box_shape, numel

__all__ = ["CompiledMapping", "Resolution", "compile_mapping"]


type Tensor = Any
"""A torch tensor or a numpy array."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """One row that a name belongs to.

    Attributes:
        surface: the side on which the name was found: `hf`, `megatron` or `stored`.
        row: the row; `row.rule.span` is the rule's place, `row.position` its indices.
    """

    name: str
    surface: str
    row: Row


@dataclass(frozen=True)
class CompiledMapping:
    """A spec bound to a config and proven.

    Tensors are torch tensors or numpy arrays; they are sliced and copied, never cast, so the two transforms are
    inverses bit for bit.
    """

    table: Table

    @cached_property
    def proof(self) -> Proof:
        """What `mapspec.prove` says of the table."""
        return prove(self.table)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.table.rows)

    def resolve(self, name: str | None = None, **captures: int) -> tuple[Resolution, ...]:
        """The rows that a name takes part in, or all rows with the given indices.

        Args:
            name: a Hugging Face name, a canonical Megatron name, or a torch_dist key.
            captures: values of holes, for example `layer=3, expert=5`.

        Raises:
            SpecError: MS521 for a name that is on no side.
        """
        if name is None:
            rows = (r for r in self.table.rows if all(r.position.get(k) == v for k, v in captures.items()))
            return tuple(Resolution(row.megatron, "megatron", row) for row in rows)
        out = []
        seen: set[str] = set()
        for surface in ("megatron", "hf", "stored"):
            decl = self.table.inventory(surface).get(name)
            for member in decl.members if decl else ():
                row = member.row
                if row.megatron not in seen and all(row.position.get(k) == v for k, v in captures.items()):
                    seen.add(row.megatron)
                    out.append(Resolution(name, surface, row))
        if not out:
            raise SpecError(self._unknown(name))
        return tuple(out)

    def _unknown(self, name: str) -> Diagnostic:
        first = name.split(".", 1)[0]
        near = [n for surface in SURFACES for n in self.table.inventory(surface) if n.startswith(first + ".")]
        same_length = [n for n in near if abs(len(n) - len(name)) < 12 and n.count(".") == name.count(".")][:3000]
        message = f"`{name}` is on neither side of {self.table.bound.linked.name} for this config"
        help_ = "`mapspec show SPEC --config config.json` lists the rules"
        return Diagnostic("MS521", message, where=name, hint=nearest(name, same_length), help=help_)

    # --- transforms --------------------------------------------------------------------------------------------

    def hf_to_megatron(self, name: str, tensors: Mapping[str, Tensor], shard: Shard = WHOLE) -> Tensor:
        """The Megatron parameter `name` on a rank, out of whole Hugging Face tensors.

        Args:
            name: canonical Megatron name (global layer and expert numbers).
            tensors: at least the Hugging Face tensors that the row is made of, by name.
            shard: the rank; default: the whole, unsharded tensor.

        Returns:
            A new tensor of `local_shape`, dtype as given. Rows that vocabulary padding adds are zero.

        Raises:
            SpecError: MS521 for an unknown name, MS408 where the parallel size does not fit.
            PlanError: MS511 for an absent tensor, MS513 for one of another shape.
        """
        row = self._row(name)
        sources = [self._given(row, n, f.shape, tensors) for n, f in zip(
            row.names("hf"), row.forms.surfaces["hf"], strict=True)]  # fmt: skip
        out = _zeros_like(sources[0], local_shape(row.forms, shard))
        leads = row.leads("hf")
        for piece in self._hf_to_local(row.forms, shard):
            source = sources[piece.left][_slices(leads[piece.left] + piece.left_box)]
            out[_slices(piece.right_box)] = source.reshape([b - a for a, b in piece.right_box])
        return out

    def megatron_to_hf(
        self, tensors: Mapping[str, Tensor | Sequence[Tensor]], shards: Sequence[Shard] = (WHOLE,)
    ) -> dict[str, Tensor]:
        """The Hugging Face tensors that the given Megatron parameters make up.

        Args:
            tensors: canonical name -> the parameter, or one per shard. Where a Hugging Face tensor holds several
                rows (stacked experts), all of them are needed.
            shards: the ranks that the parameters come from, in the order of the sequences.

        Returns:
            New tensors by Hugging Face name.

        Raises:
            PlanError: MS511 where parameters that a Hugging Face tensor needs are absent, MS513 for wrong shapes.
        """
        out: dict[str, Tensor] = {}
        filled: dict[str, set[Box]] = {}
        for name, given in tensors.items():
            row = self._row(name)
            parts: list[Tensor] = list(given) if isinstance(given, list | tuple) else [given]
            if len(parts) != len(shards):
                message = f"`{name}`: {len(parts)} parameters for {len(shards)} ranks"
                raise PlanError(
                    Diagnostic("MS513", message, where=name, help="give one parameter per shard, in rank order")
                )
            names, leads = row.names("hf"), row.leads("hf")
            for hf_name, form in zip(names, row.forms.surfaces["hf"], strict=True):
                if hf_name not in out:
                    out[hf_name] = _zeros_like(parts[0], form.shape)
            for part, shard in zip(parts, shards, strict=True):
                wanted = local_shape(row.forms, shard)
                if tuple(part.shape) != wanted:
                    message = f"`{name}` has shape {list(part.shape)} on {shard}, expected {list(wanted)}"
                    raise PlanError(Diagnostic("MS513", message, where=name))
                for piece in flip(self._hf_to_local(row.forms, shard)):
                    box = leads[piece.right] + piece.right_box
                    target = out[names[piece.right]]
                    target[_slices(box)] = part[_slices(piece.left_box)].reshape([b - a for a, b in box])
                    filled.setdefault(names[piece.right], set()).add(box)
        for hf_name in out:
            decl = self.table.inventory("hf")[hf_name]
            absent = [m.row.megatron for m in decl.members if m.row.megatron not in tensors]
            if absent:
                message = f"`{hf_name}` also needs `{absent[0]}`" + (
                    f" and {len(absent) - 1} more" if absent[1:] else ""
                )
                help_ = "give all rows of a stacked tensor together"
                raise PlanError(Diagnostic("MS511", message, where=hf_name, help=help_))
            # Replicated parameters come once per rank and fill the same boxes; others fill boxes of their own.
            covered = sum(numel(box_shape(box)) for box in filled.get(hf_name, ()))
            if covered != decl.numel:
                message = f"`{hf_name}`: the given ranks hold {covered:,} of its {decl.numel:,} elements"
                raise PlanError(Diagnostic("MS511", message, where=hf_name, help="give the parameters of all ranks"))
        return out

    def _hf_to_local(self, forms: RuleForms, shard: Shard) -> tuple[Piece, ...]:
        return compose(forms.region("hf", "megatron"), local_region(forms, shard))

    def _row(self, name: str) -> Row:
        row = self.table.by_megatron.get(name)
        if row is None:
            raise SpecError(self._unknown(name))
        return row

    @staticmethod
    def _given(row: Row, name: str, shape: tuple[int, ...], tensors: Mapping[str, Any]) -> Any:
        if name not in tensors:
            raise PlanError(Diagnostic("MS511", f"`{row.megatron}` needs `{name}`", row.rule.span, where=name))
        if tuple(tensors[name].shape) != shape:
            message = f"`{name}` has shape {list(tensors[name].shape)}, expected {list(shape)}"
            raise PlanError(Diagnostic("MS513", message, row.rule.span, where=name))
        return tensors[name]


def compile_mapping(
    spec: str | Path | Linked, config: Mapping[str, Any] | str | Path, choices: Choices | None = None
) -> CompiledMapping:
    """Compile a spec for a config, and prove it.

    Args:
        spec: name or path of a mapping, or a linked one.
        config: contents of config.json, or its path.
        choices: flavours, Megatron-Core version, vocabulary padding.

    Raises:
        SpecError: the spec or its binding is wrong, or the table is no bijection (MS5xx).
    """
    linked = spec if isinstance(spec, Linked) else link_spec(str(spec))
    values = config if isinstance(config, Mapping) else json.loads(Path(config).read_text(encoding="utf-8"))
    mapping = CompiledMapping(build_table(bind(linked, values, choices)))
    if mapping.proof.findings:
        raise SpecError(mapping.proof.findings)
    return mapping


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in box)


def _zeros_like(tensor: Any, shape: Sequence[int]) -> Any:
    """A tensor of zeros of the same library, dtype and device."""
    if hasattr(tensor, "new_zeros"):
        return tensor.new_zeros(tuple(shape))
    import numpy as np

    return np.zeros(tuple(shape), dtype=tensor.dtype)
