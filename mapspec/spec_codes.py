"""The codes of specs, configs and coverage, each with an example of what is wrong and what would be right."""

from __future__ import annotations

from mapspec.diagnostics import Code

__all__ = ["SPEC_CODES"]

SPEC_CODES: dict[str, Code] = {
    # --- 0xx: text ---------------------------------------------------------------------------------------------
    "MS001": Code(
        "yaml-syntax",
        "The file is absent, is not UTF-8, or is not YAML. Names with `{` in flow style and names that begin with `*` "
        "are the usual traps; anchors, aliases, merge keys and tags are not part of the language.",
        "Correct the text at the place shown; quote names that hold `{` or begin with `*`.",
        wrong="separate: {megatron: experts.{expert}.weight}",
        right='separate: {megatron: "experts.{expert}.weight"}',
    ),
    "MS002": Code(
        "duplicate-key",
        "A key stands twice in one mapping. Most YAML readers keep the last one in silence; a rule would be lost.",
        "Remove one of the two, or give it another name.",
        wrong="norm.weight: {hf: norm.weight, shape: [hidden]}\nnorm.weight: {hf: norm_f.weight, shape: [hidden]}",
        right="norm.weight: {hf: norm.weight, shape: [hidden]}\nfinal.weight: {hf: norm_f.weight, shape: [hidden]}",
    ),
    "MS003": Code(
        "unknown-api-version",
        "`apiVersion` chooses the grammar of the file, and this release does not read that one.",
        "Correct it, or install a release of mapspec that reads it.",
        wrong="apiVersion: mapspec/v2",
        right="apiVersion: mapspec/v1",
    ),
    # --- 1xx: schema -------------------------------------------------------------------------------------------
    "MS101": Code(
        "unknown-key",
        "The grammar has no such key at this place. Nothing is ignored: a misspelt key would do nothing in silence.",
        "Take the nearest valid key, or one of those listed.",
        wrong="hidden: {szie: hf.hidden_size}",
        right="hidden: {size: hf.hidden_size}",
    ),
    "MS102": Code(
        "wrong-type",
        "A value is of another type than the grammar asks for, or none of the listed ones.",
        "Write what is expected there; quote a number that is meant as text.",
        wrong="shape: hidden",
        right="shape: [hidden]",
    ),
    "MS103": Code(
        "missing-key",
        "Something that every such part has is absent: `hf` and `shape` of a rule, `name` and `version` of a mapping.",
        "Add it.",
        wrong="norm.weight: {hf: norm.weight}",
        right="norm.weight: {hf: norm.weight, shape: [hidden]}",
    ),
    "MS104": Code(
        "wrong-form",
        "A name, version or dimension is not written as such things are.",
        "Follow the form that the message gives; arithmetic goes into `dims`.",
        wrong="version: '1.0'",
        right="version: 1.0.0",
    ),
    "MS105": Code(
        "other-kind",
        "The document is of another `kind` than was asked for, for example a provider where a mapping is meant.",
        "Name the right file, or correct `kind`.",
        wrong="kind: Provider",
        right="kind: Mapping",
    ),
    # --- 2xx: names --------------------------------------------------------------------------------------------
    "MS201": Code(
        "broken-name",
        "A name pattern cannot be read back from the names it makes: a stray brace, `***`, holes that touch, `**` in "
        "the middle or on one side only, holes where names are fixed.",
        "Write holes as `{axis}`, with something other than digits between two of them; `**` stands at the end.",
        wrong="experts.{expert}{layer}.weight: {hf: w.{expert}.{layer}, shape: [hidden]}",
        right="experts.{expert}.{layer}.weight: {hf: w.{expert}.{layer}, shape: [hidden]}",
    ),
    "MS202": Code(
        "unknown-name",
        "Something is referred to that this spec does not declare: a dim, axis, role, block, segment, choice or value.",
        "Correct the name, or declare it. Keys of config.json are written `hf.key` in expressions.",
        wrong="shape: [hiden]",
        right="shape: [hidden]",
    ),
    "MS203": Code(
        "declared-twice",
        "Values, flavours, axes and dims share one space of names, choices another, symbols a third; a name in it "
        "twice, or a word of the expression language, would leave open what is meant.",
        "Give one of them another name.",
        wrong="axes: {expert: {size: 4}}\ndims: {expert: {size: 4}}",
        right="axes: {expert: {size: 4}}\ndims: {num_experts: {size: expert}}",
    ),
    "MS204": Code(
        "broken-arrangement",
        "`order` cannot be read, or leaves out a segment; or the Hugging Face names do not match the segments.",
        "Write `count * (segments)`, name every segment, and give each its Hugging Face name, or all of them one.",
        wrong="segments: {q: 8, k: 4, v: 4}\norder: groups * (q k)",
        right="segments: {q: 8, k: 4, v: 4}\norder: groups * (q k v)",
    ),
    "MS205": Code(
        "does-not-go-together",
        "Keys that exclude each other are given together, or one without the other that it needs.",
        "Keep what the message names.",
        wrong="in_proj: {size: 4, segments: {z: 2, x: 2}}",
        right="in_proj: {segments: {z: 2, x: 2}}",
    ),
    "MS206": Code(
        "broken-expression",
        "An expression is outside of the closed grammar: config keys, numbers, + - * /, comparisons, `a if c else b`, "
        "and count, default, first, len, max, min, present.",
        "Rewrite it with these; a new need is a change of the grammar, not of one spec.",
        wrong="size: hf.hidden_size // 2",
        right="size: hf.hidden_size / 2",
    ),
    "MS207": Code(
        "flavours-differ",
        "Flavours of equal names in a mapping and in what it includes are one switch, so they need equal choices.",
        "Rename one, or give both the same choices.",
        wrong="flavours: {norms: {about: ..., choices: [pre, post], default: pre}}",
        right="flavours: {norm_order: {about: ..., choices: [pre, post], default: pre}}",
    ),
    "MS208": Code(
        "unnamed-wildcard",
        "A `*` stands for an index, and nothing says of which axis.",
        "Write `{axis}` instead, or list the axes in the block's or mount's `wildcards`.",
        wrong="mounts: {layers: {megatron: decoder.layers.*, hf: layers.*, blocks: [mlp]}}",
        right="mounts: {layers: {megatron: decoder.layers.*, hf: layers.*, blocks: [mlp], wildcards: [layer]}}",
    ),
    "MS209": Code(
        "computed-from-itself",
        "Values, dims or axes need each other in a circle.",
        "Compute one of them from the config.",
        wrong="values: {a: b + 1, b: a - 1}",
        right="values: {a: b + 1, b: hf.n}",
    ),
    "MS210": Code(
        "spelled-twice",
        "Two flavours that can be chosen together both give the same name of a rule or mount; neither would win.",
        "Make the two choices of one flavour.",
        wrong="flavours: {separate: {megatron: a.weight}, sequential: {megatron: b.weight}}",
        right="flavours: {separate: {megatron: a.weight}, sequential: {hf: b.weight}}",
    ),
    "MS211": Code(
        "hole-missing",
        "A mount counts an axis that a prefix has no hole for, so that all its positions would get the same names.",
        "Put the hole into the prefix, or pin the axis.",
        wrong="layers: {megatron: decoder.layers, hf: 'layers.{layer}', kinds_of: layer}",
        right="layers: {megatron: 'decoder.layers.{layer}', hf: 'layers.{layer}', kinds_of: layer}",
    ),
    # --- 3xx: linking ------------------------------------------------------------------------------------------
    "MS301": Code(
        "unknown-spec",
        "No spec of that name exists: not beside the file that names it, in MAPSPEC_PATH, or among the bundled ones.",
        "Correct the name; those that exist are listed.",
        wrong="extends: nemotron@1",
        right="extends: nemotron_h@1",
    ),
    "MS302": Code(
        "circle",
        "A spec extends or includes itself, directly or through others.",
        "Move what both need into a third spec.",
        wrong="extends: me@1            # in me.yaml",
        right="extends: common@1        # in me.yaml",
    ),
    "MS303": Code(
        "removes-nothing",
        "`null` removes a key of the parent, which has no such key. It was renamed there, or is misspelt here.",
        "Correct the key, or delete the line.",
        wrong="blocks: {mlp: {tensors: {mlp.fc1.bais: null}}}",
        right="blocks: {mlp: {tensors: {mlp.fc1.bias: null}}}",
    ),
    "MS304": Code(
        "unknown-mount",
        "`remount` names a mount that the included mapping does not have.",
        "Take one of those listed.",
        wrong='remount: {mtp: {hf: ""}}',
        right='remount: {mtp_layers: {hf: ""}}',
    ),
    "MS305": Code(
        "unpinned",
        "`extends` and `include` name the major version that they were written for, so that a breaking change of the "
        "other spec is seen here.",
        "Write `name@MAJOR`.",
        wrong="extends: nemotron_h",
        right="extends: nemotron_h@1",
    ),
    "MS306": Code(
        "other-major-version",
        "The spec that is extended or included has another major version than this file was written for.",
        "Read its changelog, adapt this file, then change the number.",
        wrong="extends: nemotron_h@0",
        right="extends: nemotron_h@1",
    ),
    "MS307": Code(
        "reference-missing",
        "`metadata.references` names a config that is not there, so nothing was proven for it.",
        "Put NAME.json into `configs/` beside the spec or into `tests/configs/` of the project.",
        wrong="references: [nemotron-3-nano-4]",
        right="references: [nemotron-3-nano-4b]",
    ),
    "MS308": Code(
        "unused",
        "Something is declared that nothing uses. Often what should use it has a misspelt name.",
        "Use it or remove it.",
        wrong="dims: {hidden: {size: hf.hidden_size}, hiden: {size: hf.hidden_size}}",
        right="dims: {hidden: {size: hf.hidden_size}}",
    ),
    # --- 4xx: config -------------------------------------------------------------------------------------------
    "MS401": Code(
        "config-key-missing",
        "The config lacks a key that an expression needs. A default is never assumed: it is written in the spec.",
        "Correct the key, or say in the spec what its absence means: `default(hf.key, value)`.",
        wrong="size: hf.moe_latent_size",
        right="size: default(hf.moe_latent_size, 0)",
    ),
    "MS402": Code(
        "not-computable",
        "A value does not fit: a division leaves a remainder, a size is no whole number, a list was expected.",
        "Correct the config, or the expression.",
        wrong="size: hf.hidden_size / 7",
        right="size: hf.hidden_size / 8",
    ),
    "MS403": Code(
        "unknown-symbol",
        "The layer pattern of the config has a symbol that no kind of this spec has.",
        "Correct the config, or add the kind with its blocks under `kinds`.",
        wrong='"hybrid_override_pattern": "MX"',
        right='"hybrid_override_pattern": "M*"',
    ),
    "MS404": Code(
        "patterns-differ",
        "The config spells the layer pattern twice, and the two differ.",
        "Remove one of them, or make them agree.",
        wrong='"hybrid_override_pattern": "M*", "layers_block_type": ["mamba", "mlp"]',
        right='"hybrid_override_pattern": "M*", "layers_block_type": ["mamba", "attention"]',
    ),
    "MS405": Code(
        "pattern-length",
        "The layer pattern has another length than the config says elsewhere.",
        "Correct the number; the pattern decides what is in the files.",
        wrong='"hybrid_override_pattern": "M*", "num_hidden_layers": 3',
        right='"hybrid_override_pattern": "M*", "num_hidden_layers": 2',
    ),
    "MS406": Code(
        "padding-too-small",
        "The padded vocabulary is smaller than the vocabulary.",
        "Give a size at least as large, or none.",
        wrong="--padded-vocab-size 131000",
        right="--padded-vocab-size 131072",
    ),
    "MS407": Code(
        "unknown-flavour",
        "The spec has no such flavour, or the flavour no such choice.",
        "Take one of those listed; `mapspec show` explains them.",
        wrong="--flavour norm=fused",
        right="--flavour norms=fused",
    ),
    "MS408": Code(
        "parallel-size",
        "A parallel size does not divide what it cuts: rows, a segment, or the experts.",
        "Take one of the sizes listed.",
        wrong="tp_size=3 for 8 heads",
        right="tp_size=4 for 8 heads",
    ),
    "MS409": Code(
        "no-mapping",
        "No mapping lists the architecture of the config, or several do.",
        "Name the mapping with --spec, or write one for the architecture.",
        wrong='"architectures": ["NemotronForCausalLM"]',
        right='"architectures": ["NemotronHForCausalLM"]',
    ),
    "MS410": Code(
        "two-spellings",
        "The checkpoint holds tensors that mark two choices of one flavour, so it cannot be all of either.",
        "Choose one with --flavour; the tensors of the other are then reported as extra.",
    ),
    "MS411": Code(
        "unusable-option",
        "The value of an option cannot be read, or names nothing that exists.",
        "Follow the example in the message.",
        wrong="--set tie_word_embeddings",
        right="--set tie_word_embeddings=false",
    ),
    "MS412": Code(
        "key-in-no-reference",
        "An expression reads a config key that no reference config has. Within `default(...)` a misspelt key switches "
        "rules off without a word.",
        "Correct the key, or add a config that has it to `metadata.references`.",
        wrong="when: default(hf.mlp_bais, false)",
        right="when: default(hf.mlp_bias, false)",
    ),
    # --- 5xx: proof and coverage -------------------------------------------------------------------------------
    "MS501": Code(
        "overlapping-rules",
        "Two rules make or claim the same tensor. The order of rules never decides.",
        "Make the names differ, or give the rules conditions that exclude each other.",
        wrong="a.weight: {hf: norm.weight, shape: [hidden]}\nb.weight: {hf: norm.weight, shape: [hidden]}",
        right="a.weight: {hf: norm.weight, shape: [hidden]}\nb.weight: {hf: norm_2.weight, shape: [hidden]}",
    ),
    "MS502": Code(
        "not-exactly-once",
        "A rule leaves elements of a tensor out, or fills them twice. Often a `{hole}` is missing in a name, which "
        "then stands for the tensor of all positions.",
        "Put the hole into the name, or correct the arrangement.",
        wrong="'experts.{expert}.weight': {hf: experts.weight, stored: experts.weight0, shape: [ffn, hidden]}",
        right="'experts.{expert}.weight': {hf: experts.weight, stored: experts.weight, shape: [ffn, hidden]}",
    ),
    "MS503": Code(
        "tied-to-nothing",
        "A tied weight, or the one it is tied to, is made by no rule.",
        "Write both as full Megatron names.",
        wrong="tied: {output_layer.weight: {to: embedding.weight, when: true}}",
        right="tied: {output_layer.weight: {to: embedding.word_embeddings.weight, when: true}}",
    ),
    "MS504": Code(
        "mapped-and-listed",
        "A pattern under `passthrough` or `ignore_*` also matches a tensor that a rule maps.",
        "Make the pattern narrower.",
        wrong='ignore_hf: {"**": everything that is left over}',
        right='ignore_hf: {"rotary.**": tables that are computed, not weights}',
    ),
    "MS505": Code(
        "rule-never-applies",
        "A rule makes no tensor of any reference config, so nothing about it was ever checked.",
        "Correct its `when`, or add a config that needs it to `metadata.references`.",
        wrong="when: hf.mlp_bias and not hf.mlp_bias",
        right="when: hf.mlp_bias",
    ),
    "MS511": Code(
        "tensor-absent",
        "The spec and the config promise tensors that the checkpoint does not hold.",
        "Complete the checkpoint, or correct what config.json promises (`--set` for one run).",
    ),
    "MS512": Code(
        "tensor-unmapped",
        "The checkpoint holds tensors that no rule maps. Nothing is dropped in silence.",
        "Map them, or list them under `passthrough` or `ignore_hf` with the reason.",
    ),
    "MS513": Code(
        "shape-differs",
        "A tensor has another shape than the rule's dimensions are for this config.",
        "Find out whether config.json belongs to the tensors; else correct the rule's `shape`.",
    ),
    "MS514": Code(
        "dtype-differs",
        "A tensor has a dtype that its role does not accept.",
        "Convert from the unquantised release, allow the dtype in the role, or ask for the cast.",
    ),
    "MS515": Code(
        "dtypes-mixed",
        "Tensors that become one tensor on the other side have different dtypes.",
        "Cast them to one dtype with --cast.",
    ),
    "MS521": Code(
        "unknown-tensor",
        "A name was asked for that neither side of the mapping has for this config.",
        "Look it up with `mapspec show SPEC --config config.json`.",
    ),
}
