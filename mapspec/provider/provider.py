"""Provider objects: a model's fields as attributes, and the way from them to a real Megatron-Core model.

The interface is the one that users of Megatron-Bridge know: attributes are overridden, then `finalize()` and
`provide()`. What differs: every mistake is an error that names the fields, and each value knows where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.build import Assembly, build_model, build_multimodal, freeze, part_config
from mapspec.provider.configs import (
    ResolvedConfig,
    contradictions,
    failed_checks,
    frozen_parts,
    inactive_value,
    require_config,
    resolve_configs,
)
from mapspec.provider.declared import ProviderSpec
from mapspec.provider.export import to_hf_config
from mapspec.provider.installed import NOT_LITERAL, config_fields
from mapspec.provider.objects import to_name, to_object
from mapspec.provider.resolve import Resolved, ResolvedField, resolve_provider
from mapspec.provider.rules import finalized, padded_vocab_size, part_divisions
from mapspec.provider.spec import choose_provider, read_provider
from mapspec.schema.provider_v1 import FieldKind

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Provider"]


class Provider:
    """Fields of one model. Every field is an attribute that can be read and, until `finalize()`, set.

    Fields that name a Python object (activation, dtypes, attention backend) are kept by name; reading the attribute
    gives the object, and either may be set. Fields of Megatron-Core's TransformerConfig that the spec does not mention
    can be set too; until then they read as Megatron-Core's default.
    """

    def __init__(self, resolved: Resolved) -> None:
        self.__dict__.update(_resolved=resolved, _overrides=dict(resolved.overrides), _stale=False, _final=None)

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any] | str | Path, spec: str | ProviderSpec | None = None, **overrides: Any
    ) -> Provider:
        """The provider for an HF config.

        Args:
            config: contents of config.json, its path, or the path of the folder that holds it.
            spec: name or path of the provider spec; by default the one that lists the config's architecture.
            overrides: fields to set.

        Raises:
            SpecError: see `resolve_provider`.
            CheckpointError: the file cannot be read.
        """
        where = "config.json"
        if not isinstance(config, Mapping):
            path = Path(config)
            path = path / "config.json" if path.is_dir() else path
            config, where = read_config(path), str(path)
        if spec is None:
            spec = choose_provider(config, where=where)
        elif isinstance(spec, str):
            spec = read_provider(spec)
        named = {name: _plain(spec, name, value) for name, value in overrides.items()}
        return cls(resolve_provider(spec, config, named, where=where))

    # --- attributes ---------------------------------------------------------------------------------------------

    @property
    def resolved(self) -> Resolved:
        """All fields with their origins, overrides applied, before `finalize()`."""
        if self._stale:
            old: Resolved = self._resolved
            self.__dict__["_resolved"] = resolve_provider(old.spec, old.config, self._overrides, where=old.where)
            self.__dict__["_stale"] = False
        out: Resolved = self._resolved
        return out

    @property
    def fields(self) -> dict[str, Any]:
        """Field -> plain value (objects by name): what `finalize()` derived, once it was called."""
        return dict(self.resolved.values() if self._final is None else self._final)

    def origin(self, name: str) -> ResolvedField:
        """Where the value of a field comes from.

        Raises:
            AttributeError: there is no such field.
        """
        fields = self.resolved.fields
        if name not in fields:
            raise AttributeError(self._unknown(name))
        return fields[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        spec: ProviderSpec = self.__dict__["_resolved"].spec
        part = name.removesuffix("_config")
        if part != name and name not in spec.entries and part in ("language", *spec.model.configs):
            return partial(self.config, part)
        if self._final is None and name in self._overrides:
            value = self._overrides[name]
        else:
            fields = self.fields
            if name not in fields and name not in spec.entries and name not in config_fields():
                raise AttributeError(self._unknown(name))
            if name not in fields and name in spec.entries:
                value = inactive_value(spec, spec.entries[name], fields)
            else:
                value = fields.get(name, config_fields().get(name))
        if value is NOT_LITERAL:
            raise AttributeError(f"`{name}` is not set; Megatron-Core computes its default when the model is built")
        return to_object(_kind(spec, name), value)

    def __setattr__(self, name: str, value: Any) -> None:
        spec: ProviderSpec = self.__dict__["_resolved"].spec
        if name not in spec.entries and name not in config_fields():
            raise AttributeError(self._unknown(name))
        if self._final is not None:
            raise AttributeError(
                f"`{name}` cannot change after finalize(): the fields that follow from it are fixed. "
                "Set it before, or begin with provider.copy()"
            )
        self._overrides[name] = _plain(spec, name, value)
        self.__dict__["_stale"] = True

    def __dir__(self) -> list[str]:
        configs = {f"{name}_config" for name in ("language", *self.resolved.spec.model.configs)}
        return sorted({*super().__dir__(), *self.resolved.fields, *configs})

    def __repr__(self) -> str:
        state = "finalized" if self._final is not None else f"{len(self._overrides)} overrides"
        return f"<Provider {self._resolved.spec.name} of {self._resolved.where}, {state}>"

    def _unknown(self, name: str) -> str:
        spec: ProviderSpec = self.__dict__["_resolved"].spec
        hint = nearest(name, {*spec.entries, *config_fields()})
        more = f"; did you mean `{hint}`?" if hint else ""
        return f"`{name}` is a field neither of provider `{spec.name}` nor of Megatron-Core's config{more}"

    def copy(self) -> Provider:
        """The same provider before `finalize()`, to be changed on its own."""
        return Provider(self.resolved)

    # --- what follows from the fields -----------------------------------------------------------------------------

    def finalize(self) -> None:
        """Check all fields against each other and fill in what follows from them.

        Layer count from the pattern; MTP blocks merged into the pattern (`main/mtp/mtp`); expert tensor parallel size 1
        with expert parallelism; sequence parallelism off at tensor parallel size 1; pipeline dtype. A second call does
        nothing.

        Raises:
            SpecError: all findings, see `mapspec.provider.rules.finalized`; then those of the spec's own checks (MS460)
                and of the configs of parts (MS430, MS431, MS461, MS462).
        """
        if self._final is None:
            spec = self.resolved.spec
            final = finalized(self.resolved.values(), frozenset(self._overrides))
            found = list(failed_checks(spec, final))
            if not found:
                configs = resolve_configs(spec, final, self._overrides)
                found += contradictions(spec, configs, final)
                towers = {name: config for name, config in configs.items() if config.origin == "language"}
                found += [d for name, config in towers.items() for d in part_divisions(name, config.values(final))]
            if found:
                raise SpecError(found)
            self.__dict__["_final"] = final

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the output layer over all tensor-parallel ranks."""
        return padded_vocab_size(self.fields)

    # --- configs of parts -----------------------------------------------------------------------------------------

    @property
    def configs(self) -> dict[str, ResolvedConfig]:
        """The configs of the model's parts beside the language model, each field with its origin.

        Raises:
            SpecError: a field cannot be computed (MS461).
        """
        return resolve_configs(self.resolved.spec, self.fields, self._overrides)

    def config(self, name: str) -> Any:
        """The config of a part, as the part takes it: a TransformerConfig, or a dictionary.

        `provider.vision_config()` is short for `provider.config("vision")`.

        Args:
            name: `language`, or an entry of the spec's `configs`.

        Raises:
            SpecError: findings of `finalize()`; the model has no such part (MS461); Megatron-Core is missing or lacks
                fields (MS440 to MS442), or refuses them (MS447).
        """
        self.finalize()
        configs = self.configs
        if name != "language":
            require_config(self.resolved.spec, configs, name)
        return part_config(self.assembly(), configs, name)

    def set_config(self, name: str, **fields: Any) -> None:
        """Set fields of the config of one part, as `provider.field = value` sets those of the language model.

        Raises:
            SpecError: the model has no such part (MS461), or the part no such field (MS427, on next use).
            AttributeError: the provider is finalized.
        """
        spec: ProviderSpec = self._resolved.spec
        if name not in spec.model.configs:
            require_config(spec, {}, name)
        if self._final is not None:
            raise AttributeError(f"`{name}` cannot change after finalize(); begin with provider.copy()")
        declared = spec.model.configs[name]
        kinds: dict[str, FieldKind] = {n: d.kind for n, d in declared.constants.items()}
        kinds |= {n: d.kind for n, d in declared.derived.items()}
        for field, value in fields.items():
            self._overrides[f"{name}.{field}"] = to_name(kinds.get(field, "plain"), value)
        self.__dict__["_stale"] = True

    # --- the model ----------------------------------------------------------------------------------------------

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> nn.Module:
        """The real Megatron-Core model of this rank, with weights as Megatron-Core initialises them.

        A HybridModel; where the spec builds a multimodal model, one with encoders and projectors around it, those on
        the first pipeline stage only.

        Args:
            pre_process: whether this rank has the embedding; by default whether it is the first pipeline stage.
            post_process: whether it has the output layer; by default whether it is the last.
            vp_stage: has to be `None`.

        Raises:
            SpecError: findings of `finalize()`; Megatron-Core, its process groups or the backend are not there
                (MS440 to MS443); Megatron-Core refuses the fields (MS447); a virtual stage was asked for (MS434).
        """
        if self._resolved.spec.model.builds == "language":
            return self.provide_language_model(pre_process, post_process, vp_stage)
        _no_virtual_stage(vp_stage)
        self.finalize()
        spec = self.resolved.spec
        model = build_multimodal(self.assembly(), self.configs, pre_process, post_process)
        freeze(model, frozen_parts(spec, self.fields))
        return model

    def provide_language_model(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> nn.Module:
        """The language model alone: Megatron-Core's HybridModel of this rank. Arguments and errors as `provide`."""
        _no_virtual_stage(vp_stage)
        self.finalize()
        return build_model(self.assembly(), pre_process, post_process)

    def assembly(self) -> Assembly:
        """The finalized fields, sorted by who takes them."""
        self.finalize()
        spec: ProviderSpec = self._resolved.spec
        owners = {name: entry.decl.of for name, entry in spec.entries.items()}
        kinds = {name: entry.decl.kind for name, entry in spec.entries.items()}
        return Assembly(self.fields, owners, kinds, spec.model.metadata.megatron)

    def to_hf_config(self, dialect: str | None = None, *, reference: bool | Mapping[str, Any] = True) -> dict[str, Any]:
        """The HF config of this model.

        Args:
            dialect: spelling, see the spec's `dialects`; by default that of the reference.
            reference: `True`: the config that the provider was made from; `False`: none; or another config.
        """
        base = self._resolved.config if reference is True else reference or None
        fields = self.fields
        former = fields.pop("hybrid_override_pattern", None)
        if former is not None:
            fields["hybrid_layer_pattern"] = former
        return to_hf_config(self._resolved.spec, fields, dialect=dialect, reference=base)


def _no_virtual_stage(vp_stage: int | None) -> None:
    if vp_stage is not None:
        message = f"`vp_stage` is {vp_stage}; hybrid models have no virtual pipeline stages"
        raise SpecError(Diagnostic("MS434", message, help="call provide() without vp_stage"))


def _kind(spec: ProviderSpec, name: str) -> Any:
    return spec.entries[name].decl.kind if name in spec.entries else "plain"


def _plain(spec: ProviderSpec, name: str, value: Any) -> Any:
    return to_name(_kind(spec, name), value)
