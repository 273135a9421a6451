"""Provider specs before and after: the fields of every reference model, and what depends on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapspec.diagnostics import Diagnostic
from mapspec.diff.edits import Edit, edits_between
from mapspec.diff.loaded import ProviderVersion, files_of
from mapspec.diff.model import ModelDiff, State, Through
from mapspec.diff.parts import Found, Names, Store
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.configs import resolve_configs
from mapspec.provider.export import to_hf_config
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.resolved import Resolved, ResolvedField
from mapspec.provider.spec import ProviderSpec
from mapspec.text import Path_, read_yaml

__all__ = ["compare_provider"]

# Fields of Megatron-Core's TransformerConfig and models that decide which parameters exist or how large they are, and
# that no HF key need be behind. Fields with an HF key are told by the mapping, which computes shapes from the same key.
_STRUCTURAL = frozenset({
    "add_bias_linear", "add_qkv_bias", "gated_linear_unit", "hybrid_layer_pattern", "is_hybrid_model", "kv_channels",
    "make_vocab_size_divisible_by", "moe_grouped_gemm", "moe_router_enable_expert_bias", "moe_shared_expert_gate",
    "mtp_hybrid_override_pattern", "mtp_num_layers", "mtp_use_repeated_layer", "multi_latent_attention",
    "normalization", "norms", "position_embedding_type", "qk_layernorm", "share_embeddings_and_output_weights",
    "should_pad_vocab", "vocab_size",
})  # fmt: skip
# How a run goes, and nothing of what the model computes from its weights.
_OF_A_RUN = frozenset({
    "attention_backend", "attention_dropout", "backend", "deallocate_pipeline_outputs", "hf_model_id", "hidden_dropout",
    "init_method_std", "moe_aux_loss_coeff", "moe_token_dispatcher_type", "mtp_loss_scaling_factor",
    "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage", "parallel_output", "persist_layer_norm",
    "pipeline_dtype", "seq_length", "sequence_parallel",
})  # fmt: skip
_RUN_ENDINGS = ("_fusion", "_overlap", "_parallel_size")
_UNSET = "(not set)"


def compare_provider(
    old: ProviderVersion, new: ProviderVersion, store: Store, owners: Mapping[str, str]
) -> tuple[ModelDiff, ...]:
    """Compare a provider spec that both sides have; what is found goes to `store`.

    Args:
        owners: file -> name of the spec in it, for what is included or extended.
    """
    name = new.file.name
    if new.spec is None or old.spec is None:
        if new.spec is None and old.spec is not None:
            place = new.side.place(new.findings[0].span)
            found = Found("DC209", ("provider", name), name, name, "", "", None, place, kind="provider")
            found.details += new.side.lines(new.findings)
            store.add(found)
        elif old.spec is None and new.spec is not None:
            words = ("could not be read", "can be read")
            store.add(Found("DC401", ("provider", name), name, name, *words, kind="provider"))
        return ()
    return _Comparison(old, new, store, owners).run()


class _Comparison:
    def __init__(
        self, old: ProviderVersion, new: ProviderVersion, store: Store, owners: Mapping[str, str]
    ) -> None:  # fmt: skip
        assert old.spec is not None
        assert new.spec is not None
        self.old, self.new, self.store, self.owners = old, new, store, owners
        self.was, self.now = old.spec, new.spec
        self.name = new.file.name
        olds, news = ({v.side.relative(p): p for p in v.files} for v in (old, new))
        if not olds.keys() & news.keys():  # one file against another
            olds, news = ({"": v.file.path} for v in (old, new))
        self.edits = [
            edit
            for file in news
            if file in olds
            for edit in edits_between(read_yaml(olds[file]), read_yaml(news[file]), old.side, new.side, file)
        ]

    def run(self) -> tuple[ModelDiff, ...]:
        models = []
        for name in dict.fromkeys((*self.new.references, *self.old.references)):
            path = self.new.references.get(name) or self.old.references.get(name)
            if path is not None:
                models.append(self.model(name, path))
            if name not in self.old.references:
                self.found("DC401", name, "no reference model", "a reference model")
            elif name not in self.new.references:
                self.found("DC306", name, "a reference model", "not looked at any more")
        self.declared()
        return tuple(models)

    # --- one model ----------------------------------------------------------------------------------------------

    def model(self, name: str, path: Path) -> ModelDiff:
        config = read_config(path)
        one, _ = _resolve(self.was, config, name)
        other, findings = _resolve(self.now, config, name)
        if one is None or other is None:
            state = State.STILL_BROKEN if one is None and other is None else State.MENDED
            if one is not None:
                state = State.BROKEN
                place = self.new.side.place(findings[0].span)
                identity = tuple(sorted({d.code for d in findings}))
                found = self.store.add(
                    Found("DC208", (self.name, *identity), self.name, self.name, "", "", None, place, kind="provider")
                )
                found.details = found.details or self.new.side.lines(findings[:5])
                self.cause(found, self.edits)
                found.models[self.name, name] = Names()
            return ModelDiff("provider", self.name, name, state)
        changed = 0
        was, now = _all_fields(one), _all_fields(other)
        for key in dict.fromkeys((*was, *now)):
            before, after = was.get(key), now.get(key)
            if _text(before) != _text(after):
                changed += 1
                self.field(name, key, before, after)
        self.exported(name, one, other)
        counts = len(was), len(now)
        same = len(was.keys() & now.keys()) - changed
        state = State.CHANGED if changed else State.IDENTICAL
        return ModelDiff("provider", self.name, name, state, counts, max(same, 0), other=changed)

    def field(self, model: str, key: str, before: ResolvedField | None, after: ResolvedField | None) -> None:
        here = after or before
        assert here is not None
        spec = self.now if after is not None else self.was
        entry = spec.entries.get(key)
        section = entry.section if entry else f"config `{key.partition('.')[0]}`"
        why = self.shapes(key)
        if why is not None:
            code, note = "DC211", why
        elif section == "defaults" or key in _OF_A_RUN or key.endswith(_RUN_ENDINGS):
            code, note = "DC304", "no shape depends on it"
        else:
            code, note = "DC107", "no shape depends on it"
        group = f" of `{here.group}`" if here.group else ""
        where = f"{section}{group}; origin {_origin(before)} -> {_origin(after)}; {note}"
        if _origin(before) == _origin(after):
            where = f"{section}{group}; origin {_origin(after)}; {note}"
        old = None if before is None else self.old.side.place(before.span)
        new = None if after is None else self.new.side.place(after.span)
        file = next((place.path for place in (new, old) if place), "")
        owner = self.owners.get(file, self.name)
        found = self.store.add(
            Found(code, (owner, key), owner, key, _text(before), _text(after), old, new, kind="provider")
        )
        found.where = found.where or [where]
        self.through(found, owner)
        found.models.setdefault((self.name, model), Names())
        mine = [edit for edit in self.edits if key.rpartition(".")[2] in edit.path]
        self.cause(found, mine or [e for e in self.edits if e.path[:1] in (("values",), ("maps",)) or "if" in e.path])

    def through(self, found: Found, owner: str) -> None:
        """How an edit of another spec reaches this one."""
        if owner == self.name or self.name in found.through:
            return
        for side, spec in ((self.new.side, self.now), (self.old.side, self.was)):
            ways = [
                ("include", ("include", part, "provider"), files_of(inner)) for part, inner in spec.included.items()
            ]
            for how, path, files in (*ways, ("extends", ("extends",), iter(spec.document.parents))):
                place = side.place(spec.document.tree.span(path))
                if place and any(self.owners.get(side.relative(file)) == owner for file in files):
                    found.through[self.name] = Through(self.name, how, place)
                    return

    def shapes(self, key: str) -> str | None:
        """Why shapes, or which tensors there are, depend on a field; `None` where they do not."""
        keys = self.old.shape_keys | self.new.shape_keys
        for spec in (self.now, self.was):
            entry = spec.entries.get(key)
            read = [k for k in getattr(entry.decl, "hf", ()) if k in keys] if entry else []
            if read:
                return f"shapes depend on it: the mapping computes them from `{read[0]}`"
        return "which tensors there are or their shapes depend on it" if key in _STRUCTURAL else None

    def exported(self, model: str, one: Resolved, other: Resolved) -> None:
        """The config that is written on the way back, from the same fields."""
        fields = {k: v for k, v in one.values().items() if k in other.fields}
        try:
            was, now = (to_hf_config(spec, fields) for spec in (self.was, self.now))
        except SpecError:
            return  # a field that the other side needs is new: said as such
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                before, after = (json.dumps(c[key], default=str) if key in c else "(absent)" for c in (was, now))
                found = self.found("DC309", key, before, after)
                found.models.setdefault((self.name, model), Names())
                self.cause(
                    found, [e for e in self.edits if e.path[:1] == ("export",) or key in e.path or "write" in e.path]
                )

    # --- what the spec declares ---------------------------------------------------------------------------------

    def declared(self) -> None:
        was, now = self.was.model, self.now.model
        for architecture in was.metadata.architectures:
            if architecture not in now.metadata.architectures:
                self.found("DC213", architecture, "listed", "not listed", ("metadata", "architectures"))
        for architecture in now.metadata.architectures:
            if architecture not in was.metadata.architectures:
                self.found("DC404", architecture, "not listed", "listed", ("metadata", "architectures"))
        ranges = [
            (m.megatron.at_least, m.megatron.below, ", ".join(m.megatron.tested)) for m in (was.metadata, now.metadata)
        ]
        for what, before, after in zip(("at_least", "below", "tested"), *ranges, strict=True):
            if before != after:
                self.found("DC307", what, before, after, ("metadata", "megatron", what))
        if was.metadata.mapping != now.metadata.mapping:
            self.found("DC307", "mapping", was.metadata.mapping, now.metadata.mapping, ("metadata", "mapping"))
        self.keys()
        for part in ("checks", "bridge"):
            if getattr(was, part) != getattr(now, part):
                code = "DC308" if part == "checks" else "DC309"
                self.found(code, part, "as before", "other ones", (part,))

    def keys(self) -> None:
        """HF keys that are read, waived or unknown."""
        ways = [{key: _way(spec, key) for key in sorted(spec.known_keys())} for spec in (self.was, self.now)]
        for key in dict.fromkeys((*ways[0], *ways[1])):
            before, after = (way.get(key, "unknown") for way in ways)
            if before == after or (before.startswith("gives") and after.startswith("gives")):
                continue
            code = "DC303" if before.startswith("gives") and after == "unknown" else "DC308"
            found = self.found(code, key, before, after)
            self.cause(found, [edit for edit in self.edits if key in edit.path])

    def found(self, code: str, subject: str, before: str, after: str, path: Path_ | None = None) -> Found:
        old = new = None
        if path is not None:
            old = self.old.side.place(self.was.span(*path))
            new = self.new.side.place(self.now.span(*path))
        found = self.store.add(
            Found(code, (self.name, subject), self.name, subject, before, after, old, new, kind="provider")
        )
        if path is not None:
            self.cause(found, [edit for edit in self.edits if edit.path[: len(path)] == path])
        return found

    @staticmethod
    def cause(found: Found, edits: list[Edit]) -> None:
        found.edits.update({(edit.file, edit.cause.key): edit for edit in edits})


def _resolve(
    spec: ProviderSpec, config: Mapping[str, Any], where: str
) -> tuple[Resolved | None, tuple[Diagnostic, ...]]:
    try:
        resolved = resolve_provider(spec, config, where=where)
        resolve_configs(spec, resolved.values())
        return resolved, ()
    except SpecError as error:
        return None, error.diagnostics


def _all_fields(resolved: Resolved) -> dict[str, ResolvedField]:
    """The fields of the model and of its further configs, those as `config.field`."""
    out = dict(resolved.fields)
    for name, config in resolve_configs(resolved.spec, resolved.values()).items():
        out.update({f"{name}.{key}": field for key, field in config.fields.items()})
    return out


def _way(spec: ProviderSpec, key: str) -> str:
    """What becomes of an HF key."""
    if key in spec.keys:
        return f"gives {spec.keys[key][0].name}"
    _, waiver = spec.waived[key]
    accepts = (
        "" if waiver.accepts is None else f", accepts {' or '.join(json.dumps(v, default=str) for v in waiver.accepts)}"
    )
    return f"waived{accepts}"


def _text(field: ResolvedField | None) -> str:
    return _UNSET if field is None else json.dumps(field.value, default=str)


def _origin(field: ResolvedField | None) -> str:
    if field is None:
        return "none"
    return f"{field.origin} ({', '.join(field.keys)})" if field.keys else field.origin
