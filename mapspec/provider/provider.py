"""Provider objects: a model's fields as attributes, and the way from them to a real Megatron-Core model.

The interface is the one that users of Megatron-Bridge know: attributes are overridden, then `finalize()` and
`provide()`. What differs: every mistake is an error that names the fields, and each value knows where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.build import Assembly, build_model
from mapspec.provider.export import to_hf_config
from mapspec.provider.installed import NOT_LITERAL, config_fields
from mapspec.provider.objects import to_name, to_object
from mapspec.provider.resolve import Resolved, ResolvedField, resolve_provider
from mapspec.provider.rules import finalized, padded_vocab_size
from mapspec.provider.spec import ProviderSpec, choose_provider, read_provider

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
        if self._final is None and name in self._overrides:
            value = self._overrides[name]
        else:
            fields = self.fields
            if name not in fields and name not in spec.entries and name not in config_fields():
                raise AttributeError(self._unknown(name))
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
        return sorted({*super().__dir__(), *self.resolved.fields})

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

    # --- the model ----------------------------------------------------------------------------------------------

    def finalize(self) -> None:
        """Check all fields against each other and fill in what follows from them.

        Layer count from the pattern; MTP blocks merged into the pattern (`main/mtp/mtp`); expert tensor parallel size 1
        with expert parallelism; sequence parallelism off at tensor parallel size 1; pipeline dtype. A second call does
        nothing.

        Raises:
            SpecError: all findings, see `mapspec.provider.rules.finalized`.
        """
        if self._final is None:
            self.__dict__["_final"] = finalized(self.resolved.values(), frozenset(self._overrides))

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and the output layer over all tensor-parallel ranks."""
        return padded_vocab_size(self.fields)

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> nn.Module:
        """The real Megatron-Core HybridModel of this rank, with weights as Megatron-Core initialises them.

        Args:
            pre_process: whether this rank has the embedding; by default whether it is the first pipeline stage.
            post_process: whether it has the output layer; by default whether it is the last.
            vp_stage: has to be `None`.

        Raises:
            SpecError: findings of `finalize()`; Megatron-Core, its process groups or the backend are not there
                (MS440 to MS443); Megatron-Core refuses the fields (MS447); a virtual stage was asked for (MS434).
        """
        if vp_stage is not None:
            message = f"`vp_stage` is {vp_stage}; hybrid models have no virtual pipeline stages"
            raise SpecError(Diagnostic("MS434", message, help="call provide() without vp_stage"))
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


def _kind(spec: ProviderSpec, name: str) -> Any:
    return spec.entries[name].decl.kind if name in spec.entries else "plain"


def _plain(spec: ProviderSpec, name: str, value: Any) -> Any:
    return to_name(_kind(spec, name), value)
