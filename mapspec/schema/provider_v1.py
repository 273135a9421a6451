"""The Pydantic models of `apiVersion: mapspec/v1`, kind `Provider`: how an HF config becomes Megatron-Core fields.

A provider spec is a table that is read in both directions. Meaning (names that exist, keys given twice) is checked in
`mapspec.provider.spec`; expressions are those of `mapspec.expr`, where a plain name is a provider field or an entry of
`values`. An HF key may be a path: `a.b` is the key `b` of the part `a`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from mapspec.schema.v1 import Expression, Identifier, Metadata, Model, Reason, Reference

__all__ = [
    "BridgeFormat",
    "Check",
    "Constant",
    "Derived",
    "Dialect",
    "Export",
    "FieldKind",
    "Freeze",
    "Group",
    "IncludedProvider",
    "MegatronRange",
    "Owner",
    "Place",
    "Provider",
    "ProviderField",
    "ProviderMetadata",
    "Section",
    "Spelling",
    "SubConfig",
    "Waiver",
    "Written",
]

MajorMinor = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
# `a.b` is the key `b` of the part `a`.
ConfigKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
ClassPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$")]
Owner = Literal["config", "model", "provider"]
FieldKind = Literal["plain", "activation", "dtype", "attention_backend"]


def _spellings(value: Any) -> Any:
    """One key, or a list of keys, is short for keys with nothing more to say about them."""
    if isinstance(value, str):
        return {value: {}}
    return {key: {} for key in value} if isinstance(value, list) and all(isinstance(k, str) for k in value) else value


class Place(Model):
    """Where a part of an HF config may stand."""

    dialects: tuple[Identifier, ...] | None = Field(
        None, description="Dialects that have the part there; default: all. `[]`: it is read, never written."
    )


Places = Annotated[
    dict[ConfigKey, Place],
    BeforeValidator(_spellings, json_schema_input_type=str | list[str] | dict[str, Place]),
    Field(min_length=1),
]


class Spelling(Model):
    """How one HF key spells a field."""

    dialects: tuple[Identifier, ...] | None = Field(
        None,
        description="Dialects in which this key is written; default: all. `[]`: it is read, and rewritten where a "
        "reference config has it, but never added.",
    )
    symbols: Identifier | None = Field(None, description="The value is text, one symbol of this map per layer.")
    names: Identifier | None = Field(None, description="The value is a list, one name of this map per layer.")


Spellings = Annotated[
    dict[ConfigKey, Spelling],
    BeforeValidator(_spellings, json_schema_input_type=str | list[str] | dict[str, Spelling]),
    Field(min_length=1),
]


class ProviderField(Model):
    """A provider field that HF configs have under one or several keys. The first present, non-null key counts."""

    hf: Spellings = Field(
        description="HF keys, the one that is written by default first; `a.b` is the key `b` within `a`."
    )
    map: Identifier | None = Field(None, description="Entry of `maps` that translates the value.")
    default: Expression | None = Field(None, description="Value where no key is present; needs a `reason`.")
    derive: Expression | None = Field(
        None, description="Computed instead of read; a key that is present has to agree with it."
    )
    write: Expression | None = Field(None, description="Value for the HF config, where it is not the field's own.")
    reason: Reason | None = Field(None, description="Why the default, the derivation or the written value is right.")
    of: Owner = Field("config", description="Who takes the field: TransformerConfig, HybridModel, or the provider.")
    kind: FieldKind = Field("plain", description="What a name in the value stands for when the model is built.")


class Constant(Model):
    """A field with a value that no HF key gives."""

    value: Any = Field(description="The value.")
    reason: Reason = Field(description="Why this value.")
    of: Owner = Field("config", description="Who takes the field.")
    kind: FieldKind = Field("plain", description="What a name in the value stands for when the model is built.")


class Derived(Model):
    """A field that is computed from other fields."""

    value: Expression = Field(description="Expression over fields, `values` and `hf.` keys.")
    reason: Reason = Field(description="Why it follows.")
    of: Owner = Field("config", description="Who takes the field.")
    kind: FieldKind = Field("plain", description="What a name in the value stands for when the model is built.")


class Waiver(Model):
    """An HF key that has no provider field. It stays in the config wherever a reference is at hand."""

    reason: Reason = Field(description="Why the key is not carried.")
    accepts: tuple[Any, ...] | None = Field(
        None,
        description="The values that Megatron-Core has built in; any other is an error. The first is written where "
        "there is no reference config.",
    )
    write: bool = Field(True, description="Whether the first accepted value is written at all.")


class Check(Model):
    """Something that has to hold between fields."""

    that: Expression = Field(description="Has to be true.")
    message: Reason = Field(
        description="What is wrong otherwise, naming the fields; `{name}` is the value of a field or of an entry of "
        "`values`."
    )
    help: str = Field("", description="What to do; `{name}` as in `message`.")
    at: Literal["config", "finalize"] = Field(
        "config",
        description="When: as soon as a config is read, or once a provider is finalized (fields may be set until then, "
        "one after the other; `hf.` keys count no more).",
    )


class Section(Model):
    """Fields of one part of the model."""

    fields: dict[Identifier, ProviderField] = Field(default_factory=dict, description="Two-sided fields.")
    constants: dict[Identifier, Constant] = Field(
        default_factory=dict, description="What the family fixes; a run may still override it."
    )
    defaults: dict[Identifier, Constant] = Field(
        default_factory=dict, description="What a run chooses, with the value it has until then."
    )
    derived: dict[Identifier, Derived] = Field(default_factory=dict, description="One-sided, computed fields.")
    waived: dict[ConfigKey, Waiver] = Field(default_factory=dict, description="HF keys without a field.")
    checks: tuple[Check, ...] = Field((), description="Relations between fields.")


class Group(Section):
    """Fields that exist only where a condition on other fields holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    condition: Expression = Field(alias="if", description="Expression over fields and `values` (not over `hf.`).")
    about: Reason = Field(description="What the condition means, for findings and reports.")


class IncludedProvider(Model):
    """Another provider spec whose fields belong to this one too, with their HF keys in a part of the config."""

    provider: Reference = Field(description="`NAME@MAJOR`, by name or by path relative to this file.")
    config: Places = Field(description="The part of the config that the included keys stand in, or several spellings.")


class SubConfig(Model):
    """A further config, made from the one of the language model or from a field: another tower, a projector."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    about: Reason = Field(description="What is built with it.")
    origin: Identifier = Field(
        "language",
        alias="from",
        description="`language`: a copy of the language model's TransformerConfig; else a field that holds a mapping.",
    )
    when: Expression | None = Field(None, description="Whether the model has it, over fields and `values`.")
    without: dict[Identifier, Reason] = Field(
        default_factory=dict,
        description="Groups (`when`) whose fields are not copied, or keys of the mapping, each with the reason.",
    )
    keeps: dict[Identifier, Reason] = Field(
        default_factory=dict, description="Fields that have to stay the language model's, each with the reason."
    )
    constants: dict[Identifier, Constant] = Field(
        default_factory=dict,
        description="Fields with a value of their own; `of: provider` sets an attribute that TransformerConfig lacks.",
    )
    derived: dict[Identifier, Derived] = Field(
        default_factory=dict, description="Fields computed from the provider's fields."
    )


class Freeze(Model):
    """A part of the model whose parameters take no gradients where a field says so."""

    condition: Expression = Field(alias="if", description="Expression over fields and `values`.")
    about: Reason = Field(description="What is frozen.")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Dialect(Model):
    """A way in which HF configs spell the same model."""

    about: Reason = Field(description="Who writes and reads it.")
    names: tuple[str, ...] = Field((), description="HF values this dialect prefers where a map offers several.")


class Written(Model):
    """An HF key with a value that is the same for every model of the family."""

    value: Any = Field(description="The value.")
    reason: Reason = Field(description="Why it is written.")
    dialects: tuple[Identifier, ...] | None = Field(None, description="Dialects that write it; default: all.")


class Export(Model):
    """What the way back to an HF config adds and leaves out."""

    add: dict[ConfigKey, Written] = Field(default_factory=dict, description="Keys written where a config lacks them.")
    drop: dict[ConfigKey, Reason] = Field(default_factory=dict, description="Keys left out, with the reason.")


class BridgeFormat(Model):
    """How run_config.yaml names things from a version of Megatron-Bridge on."""

    since: MajorMinor = Field(description="First version that reads this form.")
    target: ClassPath = Field(description="Provider class that is written.")
    reads: tuple[str, ...] = Field((), description="Further classes that are read; `*` stands for any text.")
    rename: dict[Identifier, Identifier] = Field(default_factory=dict, description="Our field -> its field.")
    omit: tuple[Identifier, ...] = Field((), description="Fields that class does not have.")


class MegatronRange(Model):
    """The Megatron-Core releases that this provider builds models with."""

    at_least: MajorMinor = Field(description="First release series.")
    below: MajorMinor = Field(description="First release series that is too new.")
    tested: tuple[str, ...] = Field(min_length=1, description="Releases that were run or checked field by field.")


class ProviderMetadata(Metadata):
    """What the provider is, for whom, and the mapping it goes with."""

    mapping: Reference = Field(description="The parameter mapping of the same models, `NAME@MAJOR`.")
    megatron: MegatronRange = Field(description="Supported Megatron-Core.")


class Provider(Section):
    """A provider spec."""

    apiVersion: Literal["mapspec/v1"] = Field(description="Grammar of this file.")  # noqa: N815
    kind: Literal["Provider"]
    metadata: ProviderMetadata
    extends: Reference | None = Field(None, description="Parent: merged by key, the child wins, `null` removes.")
    applies: Expression | None = Field(
        None, description="Over `hf.` keys: which configs of its architectures the spec is for; default: all."
    )
    builds: Literal["language", "multimodal"] = Field(
        "language",
        description="What `provide()` makes: the language model, or one with encoders, of the field `assembly`'s kind.",
    )
    include: dict[Identifier, IncludedProvider] = Field(
        default_factory=dict, description="Specs of parts. What this spec declares itself under the same name wins."
    )
    dialects: dict[Identifier, Dialect] = Field(
        default_factory=dict, description="The first is the default; those of included specs come after."
    )
    maps: dict[Identifier, dict[str, tuple[str, ...]]] = Field(
        default_factory=dict,
        description="Megatron-Core's value -> the HF values that mean it; the first is written by default.",
    )
    values: dict[Identifier, Expression] = Field(default_factory=dict, description="Named values for expressions.")
    when: dict[Identifier, Group] = Field(default_factory=dict, description="Conditional fields.")
    configs: dict[Identifier, SubConfig] = Field(
        default_factory=dict, description="Further configs that the model is built from."
    )
    freeze: dict[Identifier, Freeze] = Field(
        default_factory=dict, description="Module of the model -> when it takes no gradients."
    )
    export: Export = Field(default_factory=Export, description="The way back.")
    bridge: tuple[BridgeFormat, ...] = Field((), description="Forms of run_config.yaml, oldest first.")
