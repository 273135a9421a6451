"""Every code that mapspec can print, in one place. `mapspec rule CODE` shows an entry."""

from __future__ import annotations

from mapspec.diagnostics import Code
from mapspec.file_codes import FILE_CODES
from mapspec.run_codes import RUN_CODES
from mapspec.spec_codes import SPEC_CODES

__all__ = ["CODES", "Code"]

# Ranges: 0xx text, 1xx schema, 2xx names, 3xx linking, 4xx config and provider, 5xx coverage and proof,
# 60x-64x Hugging Face folders, 65x-69x torch_dist folders, 7xx conversion, 80x-83x verification, 86x authoring.
CODES: dict[str, Code] = {
    **SPEC_CODES,
    "MS420": Code(
        "unknown-config-key",
        "The config has a key that the provider spec does not account for: it may change the model.",
        "Give the key a field in the spec, or waive it there with the reason why it does not matter.",
        wrong='"sliding_windw": 4096',
        right="waived:\n  sliding_windw: {reason: attention sees the whole sequence in this model, accepts: [4096]}",
    ),
    "MS421": Code(
        "config-contradiction",
        "Two keys of the config spell the same field with different values.",
        "Remove one of the two, or make them agree.",
        wrong='"norm_eps": 1e-5, "layer_norm_epsilon": 1e-6',
        right='"norm_eps": 1e-5, "layer_norm_epsilon": 1e-5',
    ),
    "MS422": Code(
        "config-key-needed",
        "The config lacks a key that a field needs, or a field cannot be computed.",
        "Add the key to the config, or give the field a default with its reason.",
        wrong="hidden_size: {hf: hidden_size}, and a config without the key",
        right='"hidden_size": 4096',
    ),
    "MS423": Code(
        "unknown-config-value",
        "A value of the config, such as an activation or a layer name, is in no map of the provider spec.",
        "Correct the value, or add it to the map.",
        wrong='"mlp_hidden_act": "reglu"',
        right='"mlp_hidden_act": "relu2"',
    ),
    "MS424": Code(
        "unsupported-config-value",
        "The config asks for something that Megatron-Core's layers of this family do not do.",
        "Megatron-Core cannot build this model; see the reason in the spec.",
        wrong='"use_conv_bias": false',
        right='"use_conv_bias": true',
    ),
    "MS425": Code(
        "config-count-differs",
        "A number in the config disagrees with what follows from other keys, for example layers and pattern.",
        "Correct the one that is wrong.",
        wrong='"hybrid_override_pattern": "M*M-", "num_hidden_layers": 5',
        right='"hybrid_override_pattern": "M*M-", "num_hidden_layers": 4',
    ),
    "MS426": Code(
        "config-check",
        "A relation between fields that the provider spec demands does not hold.",
        "See the message; the check stands in the spec.",
        wrong='"attention_bias": true, "mlp_bias": false',
        right='"attention_bias": false, "mlp_bias": false',
    ),
    "MS427": Code(
        "unknown-field",
        "A field was set that neither the provider spec nor Megatron-Core's config has.",
        "Check the spelling; `mapspec provider SPEC --config ...` lists the fields.",
        wrong="mapspec provider nemotron_h --config . --set hiden_size=64",
        right="mapspec provider nemotron_h --config . --set hidden_size=64",
    ),
    "MS428": Code(
        "provider-spec-names",
        "A provider spec uses a name that does not exist, declares one twice, or leaves out a reason.",
        "Correct the spec at the place shown.",
        wrong="num_layers: {hf: num_hidden_layers, derive: len(hybrid_layer_patern)}",
        right="num_layers: {hf: num_hidden_layers, derive: len(hybrid_layer_pattern)}",
    ),
    "MS430": Code(
        "does-not-divide",
        "A parallel size does not divide what it has to cut.",
        "Choose one of the sizes that the message lists.",
        wrong="provider.num_attention_heads = 6; provider.tensor_model_parallel_size = 4",
        right="provider.num_attention_heads = 8; provider.tensor_model_parallel_size = 4",
    ),
    "MS431": Code(
        "not-a-count",
        "A field that has to be a positive whole number is not.",
        "Set the field to a whole number above zero.",
        wrong="provider.hidden_size = 0",
        right="provider.hidden_size = 4096",
    ),
    "MS432": Code(
        "fields-contradict",
        "Two fields cannot have these values together.",
        "Change one of the two fields that the message names.",
        wrong='provider.num_layers = 5; provider.hybrid_layer_pattern = "M*M-"',
        right='provider.hybrid_layer_pattern = "M*M-"',
    ),
    "MS433": Code(
        "pattern-unusable",
        "The layer pattern has unknown symbols, unequal blocks, or does not fit the pipeline stages.",
        "Correct the pattern; `|` ends a pipeline stage, `/` begins a multi-token prediction block.",
        wrong='provider.hybrid_layer_pattern = "M*X-"',
        right='provider.hybrid_layer_pattern = "M*M-"',
    ),
    "MS434": Code(
        "virtual-pipeline",
        "Hybrid models have no virtual pipeline stages.",
        "Leave virtual_pipeline_model_parallel_size and vp_stage unset; use uneven stages with `|` instead.",
        wrong="provider.virtual_pipeline_model_parallel_size = 2",
        right="provider.virtual_pipeline_model_parallel_size = None",
    ),
    "MS440": Code(
        "megatron-missing",
        "Building a model needs megatron-core, which is not installed.",
        'Install it: pip install "mapspec[megatron]".',
    ),
    "MS441": Code(
        "megatron-version",
        "The installed megatron-core is outside the range that the provider spec supports.",
        "Install a release within the range.",
    ),
    "MS442": Code(
        "megatron-lacks-field",
        "The installed megatron-core has no such field.",
        "Leave the field unset, or install a release that has it.",
    ),
    "MS443": Code(
        "backend-unavailable",
        "A backend needs something that is not there: CUDA, a package, or process groups.",
        "Install or start what the message names, or use the other backend.",
    ),
    "MS444": Code(
        "unknown-choice",
        "A backend, norm placement or activation is named that does not exist.",
        "Use one of the names that the message lists.",
        wrong='provider.norms = "fuesd"',
        right='provider.norms = "fused"',
    ),
    "MS445": Code(
        "run-config",
        "run_config.yaml has no model section of a known class, or a value that cannot be read without running it.",
        "Give the config of the model otherwise, for example with a reference checkpoint.",
    ),
    "MS446": Code(
        "config-not-writable",
        "The fields cannot be written as a config: a dialect, a needed field or a name for a value is missing.",
        "See the message; reference configs keep what fields do not say.",
    ),
    "MS447": Code(
        "megatron-refuses",
        "Megatron-Core's own checks refuse the combination of fields.",
        "Change the fields that its message names.",
    ),
    "MS460": Code(
        "fields-do-not-fit",
        "Fields of a finalized provider break a rule that its spec declares under `checks`.",
        "Set the fields that the message names.",
    ),
    "MS461": Code(
        "part-config",
        "The config of a part of the model cannot be computed, or the model has no such part.",
        "Set the fields that it is computed from; `mapspec provider` lists the parts of a model.",
    ),
    "MS462": Code(
        "part-contradicts",
        "A part of the model has another size than the language model, which it has to agree with.",
        "Leave the field to the language model, or change it there.",
    ),
    "MS450": Code(
        "stage-unknown",
        "With pipeline parallelism every tensor belongs to a stage; for this one's module none is known.",
        "Leave pipeline parallelism out, or add the module to mapspec.inventory.",
    ),
    "MS451": Code(
        "stage-layers",
        "A pipeline stage is asked for that has layers which the model lacks.",
        "Take the stages from the layer pattern; they follow one another without gaps.",
    ),
    **FILE_CODES,
    **RUN_CODES,
}
