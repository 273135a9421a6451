"""The Pydantic models of `apiVersion: mapspec/v1`, kind `Mapping`: the grammar of a parameter-mapping spec.

Field descriptions are the reference: `mapspec schema` exports them for editors, and `docs/spec.md` is made of them.
Everything is closed (`extra="forbid"`) and frozen. Meaning is checked later: names in `link`, values in `bind`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

__all__ = [
    "Axis",
    "Block",
    "Dim",
    "Flavour",
    "Include",
    "Kind",
    "Mapping",
    "Metadata",
    "Mount",
    "MountSpelling",
    "Objects",
    "Prefixes",
    "Remount",
    "Role",
    "Rule",
    "Spelling",
    "Tie",
]


def _expression(value: Any) -> Any:
    """Sizes and conditions may be written as YAML numbers and booleans; inside they are expressions all the same."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Expression = Annotated[
    str,
    BeforeValidator(_expression, json_schema_input_type=str | int | float | bool),
    StringConstraints(min_length=1),
]


def _position(value: Any) -> Any:
    """`first`, `last` or a whole number; one type, so that a mistake is reported once."""
    is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_index and value not in ("first", "last"):
        raise PydanticCustomError("position", "`first`, `last` or a number is expected here")
    return value


Place = Annotated[
    Any, BeforeValidator(_position, json_schema_input_type=Literal["first", "last"] | Annotated[int, Field(ge=0)])
]
Parts = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
    ),
    Field(min_length=1),
]
# Named, because messages say in words what each asks for.
IDENTIFIER = r"^[A-Za-z][A-Za-z0-9_]*$"
NAME_PATTERN = r"^[^\s\[\]]*$"
SHAPE_ENTRY = r"^([A-Za-z][A-Za-z0-9_]*|[0-9]+)$"
VERSION = r"^\d+\.\d+\.\d+$"
REFERENCE = r"^[A-Za-z0-9_./-]+@\d+$"
Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER)]
# What a hole can be called: names of tensors are in small letters but for Mamba's own.
AxisName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
NamePattern = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
# Tagged, so that a mistake inside is reported once and not once per alternative.
NameOrSegments = Annotated[
    Annotated[NamePattern, Tag("name")] | Annotated[dict[Identifier, NamePattern], Tag("segments")],
    Discriminator(lambda value: "segments" if isinstance(value, dict) else "name"),
]
# A dimension is a name of `dims` or a plain number; inside, numbers are text as well.
ShapeEntry = Annotated[
    str,
    BeforeValidator(_expression, json_schema_input_type=str | int),
    StringConstraints(pattern=SHAPE_ENTRY),
]
Version = Annotated[str, StringConstraints(pattern=VERSION)]
Reference = Annotated[str, StringConstraints(pattern=REFERENCE)]
Reason = Annotated[str, StringConstraints(min_length=8, strip_whitespace=True)]
DtypeName = Literal[
    "bool", "uint8", "int8", "int16", "int32", "int64", "float8_e4m3fn", "float8_e5m2",
    "float16", "bfloat16", "float32", "float64",
]  # fmt: skip


class Model(BaseModel):
    """Base of all parts of a spec: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class Metadata(Model):
    """What the mapping is and for whom."""

    name: Identifier = Field(description="Name of the mapping; the file is called `NAME.yaml`.")
    version: Version = Field(
        description="Version of this mapping (semver): the major part moves when converted checkpoints stop loading."
    )
    about: str = Field("", description="One sentence for people.")
    architectures: tuple[str, ...] = Field(
        (), description="Entries of `architectures` in config.json that choose this mapping."
    )
    references: tuple[str, ...] = Field(
        (), description="Names of configs (`tests/configs/NAME.json`) that lint and diff bind this mapping to."
    )


class Flavour(Model):
    """A named switch between spellings of the same weights. Chosen by the user, by the Megatron-Core version, or
    (Hugging Face side only) by a tensor name that is declared here to mean it; never guessed otherwise."""

    about: str = Field(description="What differs, for `plan` and `show`.")
    choices: tuple[Identifier, ...] = Field(
        min_length=2, description="The choices; their names are unique in the spec."
    )
    default: Identifier = Field(description="The choice for the newest supported Megatron-Core.")
    before: dict[str, Identifier] = Field(
        default_factory=dict,
        description='Megatron-Core version -> default below that version, for example `"0.19": dotted`.',
    )
    detect: dict[Identifier, NamePattern] = Field(
        default_factory=dict,
        description="Choice -> name pattern of Hugging Face tensors whose presence means that choice.",
    )


class Axis(Model):
    """Something that is counted in names: layers, experts, MTP blocks. Exactly one of `size`, `pattern`, `ravel`."""

    size: Expression | None = Field(None, description="Number of positions.")
    pattern: tuple[Expression, ...] | None = Field(
        None,
        description="Config values that spell the kind of each position, as a string of symbols or a list of names. "
        "All that are present have to agree.",
    )
    length: Expression | None = Field(None, description="With `pattern`: what its length has to be, where it is known.")
    when: Expression | None = Field(None, description="With `pattern`: where false, the axis has no positions.")
    ravel: tuple[Identifier, Identifier] | None = Field(
        None, description="`[outer, inner]`: position = outer * size(inner) + inner."
    )
    shorter: str | None = Field(
        None, description="What to do where a checkpoint holds only the first positions; shown with the finding."
    )
    parallel: Literal["expert"] | None = Field(
        None, description="`expert`: positions are dealt to expert-parallel ranks in contiguous groups."
    )


class Dim(Model):
    """The size of a tensor dimension, what it is made of, and how tensor parallelism cuts it."""

    size: Expression | None = Field(None, description="Number of elements. Not together with `segments`.")
    segments: dict[Identifier, Expression] | None = Field(
        None, description="Named segments and their sizes; the dimension is fused of them."
    )
    order: str | None = Field(
        None,
        description="Arrangement of the segments on the Megatron side, for example `num_query_groups * (q k v)`. "
        "Default: each once, as listed. The n-th occurrence of a segment here is its n-th on the Hugging Face side.",
    )
    split: Literal["tensor", "expert_tensor"] | None = Field(
        None, description="Parallel group that cuts this dimension in equal parts. Default: it is never cut."
    )
    split_by: Literal["whole", "segment"] = Field(
        "whole", description="`whole`: plain contiguous rows. `segment`: each segment is cut by itself."
    )
    stored_by: Literal["whole", "segment"] = Field(
        "whole", description="`segment`: torch_dist holds one key per segment, `NAME.SEGMENT`."
    )
    pad: Literal["vocabulary"] | None = Field(
        None, description="`vocabulary`: the Megatron side may be longer; the rows at the end are zero and trimmed."
    )


class Role(Model):
    """What may happen to the dtype of a tensor."""

    dtype: Expression = Field(description="The dtype that the config promises, for inventories made without headers.")
    accepts: tuple[DtypeName, ...] = Field(min_length=1, description="Dtypes that are right in a checkpoint.")
    keep: Reason | None = Field(
        None, description="Why `--dtype` never casts such a tensor. Without a reason it may be cast when asked for."
    )


class Spelling(Model):
    """Other names of a rule under a flavour; what is not given stays."""

    megatron: NamePattern | None = Field(None, description="Megatron name under the flavour.")
    hf: NameOrSegments | None = Field(None, description="Hugging Face name, or names by segment, under the flavour.")
    stored: NamePattern | None = Field(None, description="Name in torch_dist under the flavour.")


class Rule(Model):
    """One weight. Its key is its Megatron-Core name, relative to where the block is mounted.

    A name without the hole of an axis that its counterpart has holds all positions: the axis is its first dimension.
    """

    hf: NameOrSegments = Field(description="Hugging Face name; for a fused dimension one name, or one per segment.")
    shape: tuple[ShapeEntry, ...] | None = Field(
        None,
        description="Dimensions of one position, outermost first: names of `dims`, or numbers. Both sides agree, "
        "but for the fused dimension where there is one Hugging Face tensor per segment. "
        "Only names that end in `**` may leave it out: their shapes come from the checkpoint.",
    )
    role: Identifier = Field("weight", description="Entry of `roles`.")
    stored: NamePattern | None = Field(None, description="Name in torch_dist, where it differs from the Megatron name.")
    when: Expression | None = Field(None, description="The weight exists only where this holds.")
    flavours: dict[Identifier, Spelling] = Field(
        default_factory=dict, description="Choice of a flavour -> what is spelled differently under it."
    )
    note: str | None = Field(None, description="Something that `plan` tells whoever converts this weight.")


class Objects(Model):
    """Byte objects that Megatron-Core asks for on a strict load; written as empty stubs, skipped on the way back."""

    names: tuple[NamePattern, ...] = Field(min_length=1, description="Names below the mount, without `/shard_0_1`.")
    each: Identifier | None = Field(None, description="Axis with one object per position.")
    when: Expression | None = Field(None, description="It exists only where this holds.")


class Block(Model):
    """Weights with names relative to where the block is mounted."""

    when: Expression | None = Field(None, description="The block exists only where this holds.")
    wildcards: tuple[Identifier, ...] = Field(
        (), description="Axes that `*` stands for in this block's names, first to last."
    )
    tensors: dict[NamePattern, Rule] = Field(default_factory=dict, description="Megatron name -> rule.")
    objects: tuple[Objects, ...] = Field((), description="Byte objects that a strict load asks for.")


class Kind(Model):
    """A kind of layer: how the patterns spell it, and the blocks it consists of."""

    symbols: tuple[str, ...] = Field(min_length=1, description="How patterns spell the kind, as symbols and as words.")
    blocks: tuple[Identifier, ...] = Field(min_length=1, description="Blocks that a layer of this kind consists of.")


class Prefixes(Model):
    """Other prefixes, under a flavour or of a single mount; what is not given stays."""

    megatron: NamePattern | None = Field(None, description="Other prefix on the Megatron side.")
    hf: NamePattern | None = Field(None, description="Other prefix on the Hugging Face side.")


class MountSpelling(Prefixes):
    """Other prefixes of a mount under a flavour; what is not given stays."""

    stored: NamePattern | None = Field(None, description="Other prefix in torch_dist.")


class Mount(Model):
    """Where blocks live on both sides: prefixes with one hole per axis."""

    megatron: NamePattern = Field("", description="Prefix on the Megatron side.")
    stored: NamePattern | None = Field(
        None,
        description="Prefix in torch_dist, where it differs from the Megatron prefix: "
        "one without the hole of an axis stacks its positions.",
    )
    hf: NamePattern = Field("", description="Prefix on the Hugging Face side.")
    blocks: tuple[Identifier, ...] = Field((), description="Blocks mounted at every position.")
    kinds_of: Identifier | None = Field(None, description="Patterned axis whose kinds choose the blocks.")
    pin: dict[Identifier, Place] = Field(
        default_factory=dict,
        description="Fixes an axis that the Megatron prefix lacks; other Hugging Face positions are no match.",
    )
    when: Expression | None = Field(None, description="It exists only where this holds.")
    flavours: dict[Identifier, MountSpelling] = Field(
        default_factory=dict, description="Choice of a flavour -> other prefixes under it."
    )
    wildcards: tuple[Identifier, ...] = Field((), description="Axes that `*` stands for in the prefixes.")


class Remount(Prefixes):
    """Where a mount of an included mapping lives instead."""

    flavours: dict[Identifier, Prefixes] = Field(
        default_factory=dict, description="Choice of a flavour of this mapping -> other prefixes under it."
    )


class Include(Model):
    """Another mapping mounted under a prefix on both sides, bound to a part of the config."""

    mapping: Reference = Field(description="`NAME@MAJOR`, by name or by path relative to this file.")
    config: Parts = Field(
        ("hf",),
        description="What `hf` means inside: `hf`, or a part of it such as `hf.llm_config`; "
        "of a list, the first that the config has.",
    )
    megatron: NamePattern = Field("", description="Prefix on the Megatron side.")
    hf: NamePattern = Field("", description="Prefix on the Hugging Face side.")
    when: Expression | None = Field(None, description="It exists only where this holds.")
    flavours: dict[Identifier, Prefixes] = Field(
        default_factory=dict, description="Choice of a flavour of this mapping -> other prefixes under it."
    )
    remount: dict[Identifier, Remount] = Field(
        default_factory=dict, description="Mounts of the included mapping that get another prefix than the rest."
    )


class Tie(Model):
    """A weight that is another weight under a second name."""

    to: NamePattern = Field(description="Megatron name that holds the values.")
    when: Expression = Field(
        description="Where this holds, the Megatron side has only `to`; a Hugging Face copy has to be equal."
    )


class Mapping(Model):
    """A parameter-mapping spec."""

    apiVersion: Literal["mapspec/v1"] = Field(description="Grammar of this file.")  # noqa: N815
    kind: Literal["Mapping"] = Field(description="Always `Mapping`.")
    metadata: Metadata = Field(description="Name, version, architectures.")
    extends: Reference | None = Field(
        None, description="Parent: merged by key, the child wins, `null` removes, lists are replaced."
    )
    values: dict[Identifier, Expression] = Field(default_factory=dict, description="Named values for expressions.")
    flavours: dict[Identifier, Flavour] = Field(
        default_factory=dict, description="Named switches between spellings of the same weights."
    )
    include: dict[Identifier, Include] = Field(
        default_factory=dict, description="Other mappings, mounted under a prefix on both sides."
    )
    axes: dict[AxisName, Axis] = Field(default_factory=dict, description="What the holes of names count.")
    dims: dict[Identifier, Dim] = Field(default_factory=dict, description="Dimensions that shapes are made of.")
    roles: dict[Identifier, Role] = Field(default_factory=dict, description="Which dtypes a weight may have.")
    kinds: dict[Identifier, Kind] = Field(default_factory=dict, description="Kinds of layers, for patterned axes.")
    blocks: dict[Identifier, Block] = Field(
        default_factory=dict, description="Rules, grouped by what is mounted as one."
    )
    mounts: dict[Identifier, Mount] = Field(default_factory=dict, description="Where the blocks live on both sides.")
    tied: dict[NamePattern, Tie] = Field(
        default_factory=dict, description="Megatron name -> the weight that it is another name for."
    )
    passthrough: dict[NamePattern, Reason] = Field(
        default_factory=dict,
        description="Hugging Face tensors that Megatron has no place for; carried along, with the reason.",
    )
    ignore_hf: dict[NamePattern, Reason] = Field(
        default_factory=dict, description="Hugging Face tensors that are left behind, with the reason."
    )
    ignore_megatron: dict[NamePattern, Reason] = Field(
        default_factory=dict, description="Keys of Megatron checkpoints that are left behind, with the reason."
    )
