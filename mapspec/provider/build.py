"""Fields -> the HybridModel of this rank. The only module of the package that imports torch and Megatron-Core."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.provider.configs import ResolvedConfig
from mapspec.provider.installed import check_version, config_fields
from mapspec.provider.objects import to_object
from mapspec.provider.rules import padded_vocab_size
from mapspec.schema.provider_v1 import FieldKind, MegatronRange

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Assembly", "build_model", "build_multimodal", "core_config_values", "freeze", "part_config"]

_SIZES = {
    "tensor_model_parallel_size": "get_tensor_model_parallel_world_size",
    "pipeline_model_parallel_size": "get_pipeline_model_parallel_world_size",
    "context_parallel_size": "get_context_parallel_world_size",
    "expert_model_parallel_size": "get_expert_model_parallel_world_size",
    "expert_tensor_parallel_size": "get_expert_tensor_parallel_world_size",
}
_GPU_PACKAGES = {
    "transformer_engine": "transformer-engine[pytorch]",
    "mamba_ssm": "mamba-ssm",
    "causal_conv1d": "causal-conv1d",
}
# Arguments of HybridModel that our fields name otherwise, or that the caller gives.
_RENAMED = {"seq_length": "max_sequence_length"}


class Assembly:
    """Finalized fields, sorted by who takes them.

    Attributes:
        config: for TransformerConfig, model: for HybridModel, provider: for the assembly itself.
    """

    __slots__ = ("config", "kinds", "model", "provider", "supported")

    def __init__(
        self, fields: Mapping[str, Any], owners: Mapping[str, str], kinds: Mapping[str, FieldKind],
        supported: MegatronRange,
    ) -> None:  # fmt: skip
        self.config = {n: v for n, v in fields.items() if owners.get(n, "config") == "config"}
        self.model = {n: v for n, v in fields.items() if owners.get(n) == "model"}
        self.provider = {n: v for n, v in fields.items() if owners.get(n) == "provider"}
        self.kinds, self.supported = kinds, supported

    def all(self) -> dict[str, Any]:
        """Every field."""
        return {**self.config, **self.model, **self.provider}


def core_config_values(assembly: Assembly) -> dict[str, Any]:
    """Arguments of the installed Megatron-Core's TransformerConfig.

    Raises:
        SpecError: Megatron-Core is missing or of another version (MS440, MS441), or lacks fields (MS442).
    """
    version = check_version(assembly.supported)
    known = config_fields()
    found = []
    for name in assembly.config:
        if name not in known:
            message = f"megatron-core {version} has no config field `{name}`"
            help_ = "leave the field unset, or install a release that has it"
            found.append(Diagnostic("MS442", message, hint=nearest(name, known), help=help_))
    if found:
        raise SpecError(found)
    return {name: to_object(assembly.kinds.get(name, "plain"), value) for name, value in assembly.config.items()}


def build_model(assembly: Assembly, pre_process: bool | None, post_process: bool | None) -> nn.Module:
    """The model of this rank, on the backend that the fields name.

    Raises:
        SpecError: versions and fields as in `core_config_values`; the backend is not available here (MS443);
            the process groups have other sizes than the fields (MS432); Megatron-Core refuses the fields (MS447).
    """
    values = core_config_values(assembly)
    if assembly.provider["backend"] == "transformer_engine":
        _require_gpu_packages()
    _require_groups(assembly)
    build = _on_gpu if assembly.provider["backend"] == "transformer_engine" else _reference
    try:
        return build(assembly, values, pre_process, post_process)
    except (ValueError, AssertionError) as error:
        raise SpecError(_refused(assembly, error)) from error


def part_config(assembly: Assembly, configs: Mapping[str, ResolvedConfig], name: str) -> Any:
    """The config of one part: a TransformerConfig, or a dictionary where it is made from a field.

    Args:
        configs: of all parts but the language model.
        name: `language`, or one of them.

    Raises:
        SpecError: versions and fields as in `core_config_values`; Megatron-Core refuses the fields (MS447).
    """
    reference = import_module("mapspec.backends.reference") if assembly.provider["backend"] == "reference" else None
    if name == "language":
        values = core_config_values(assembly)
        if reference is None:
            return _transformer_config(assembly, values)
        return reference.reference_config(
            values, hybrid_layer_pattern=assembly.model["hybrid_layer_pattern"], experts=_experts(assembly)
        )
    config = configs[name]
    if config.origin != "language":
        return config.values(assembly.all()[config.origin])
    own = {n: f.value for n, f in config.fields.items() if f.of == "config"}
    kinds = {**assembly.kinds, **{n: f.kind for n, f in config.fields.items()}}
    kept = {n: v for n, v in assembly.config.items() if n not in config.without}
    values = core_config_values(Assembly({**kept, **own}, {}, kinds, assembly.supported))
    made = _transformer_config(assembly, values if reference is None else reference.on_cpu(values))
    for field in config.fields.values():
        if field.of != "config":
            setattr(made, field.name, field.value)
    return made


def _transformer_config(assembly: Assembly, values: dict[str, Any]) -> Any:
    try:
        return import_module("megatron.core.transformer.transformer_config").TransformerConfig(**values)
    except (ValueError, AssertionError) as error:
        raise SpecError(_refused(assembly, error)) from error


def _experts(assembly: Assembly) -> str:
    return "grouped" if assembly.config.get("moe_grouped_gemm") else "sequential"


def build_multimodal(
    assembly: Assembly, configs: Mapping[str, ResolvedConfig], pre_process: bool | None, post_process: bool | None
) -> nn.Module:
    """The model of this rank with encoders and projectors, put together as the field `assembly` says.

    Raises:
        SpecError: as `build_model`.
    """
    if assembly.provider["backend"] == "transformer_engine":
        _require_gpu_packages()
    _require_groups(assembly)
    state = import_module("megatron.core.parallel_state")
    made = {name: part_config(assembly, configs, name) for name in ("language", *configs)}
    try:
        model: nn.Module = import_module("mapspec.backends.multimodal").build(
            assembly.provider["assembly"],
            language=lambda pre, post: build_model(assembly, pre, post),
            configs=made,
            fields=assembly.all(),
            pre_process=state.is_pipeline_first_stage() if pre_process is None else pre_process,
            post_process=state.is_pipeline_last_stage() if post_process is None else post_process,
            backend=assembly.provider["backend"],
        )
    except (ValueError, AssertionError) as error:
        raise SpecError(_refused(assembly, error)) from error
    return model


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Take the gradients from modules of a model: those of that name nearest to its root."""
    for name in parts:
        found = [module for path, module in model.named_modules() if path.rpartition(".")[2] == name]
        for module in found[:1]:
            module.requires_grad_(False)


def _refused(assembly: Assembly, error: Exception) -> Diagnostic:
    version = check_version(assembly.supported)
    reason = str(error) or f"{type(error).__name__} without a message"
    return Diagnostic("MS447", f"megatron-core {version} refuses the fields: {reason}")


def _require_groups(assembly: Assembly) -> None:
    """Process groups exist and have the sizes that the fields say."""
    state = import_module("megatron.core.parallel_state")
    if not state.model_parallel_is_initialized():
        message = "Megatron-Core's process groups do not exist yet"
        help_ = (
            "call megatron.core.parallel_state.initialize_model_parallel(...) first; for one process "
            "mapspec.backends.reference.one_process_group() does it"
        )
        raise SpecError(Diagnostic("MS443", message, help=help_))
    found = []
    for name, getter in _SIZES.items():
        wanted, actual = assembly.config.get(name, 1), getattr(state, getter)()
        if wanted != actual:
            message = f"`{name}` is {wanted}, but the process groups were made with {actual}"
            found.append(Diagnostic("MS432", message, help=f"set provider.{name} = {actual}, or make other groups"))
    if found:
        raise SpecError(found)


# --- the GPU model --------------------------------------------------------------------------------------------------


def _require_gpu_packages() -> None:
    import torch

    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    for module, package in _GPU_PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            missing.append(package)
    if missing:
        message = f"backend `transformer_engine` needs {', '.join(missing)}, which this machine does not have"
        help_ = 'pip install "mapspec[gpu]" on a machine with CUDA, or set backend = "reference"'
        raise SpecError(Diagnostic("MS443", message, help=help_))


def _on_gpu(assembly: Assembly, values: dict[str, Any], pre: bool | None, post: bool | None) -> nn.Module:
    groups = import_module("megatron.core.process_groups_config").ProcessGroupCollection.use_mpu_process_groups()
    state = import_module("megatron.core.parallel_state")
    config = import_module("megatron.core.transformer.transformer_config").TransformerConfig(**values)
    spec, model_class, spec_argument = _stack(assembly)
    arguments = {_RENAMED.get(name, name): value for name, value in assembly.model.items()}
    known = inspect.signature(model_class).parameters
    for name in arguments:
        if name not in known:
            message = f"megatron-core {check_version(assembly.supported)}: {model_class.__name__} takes no `{name}`"
            raise SpecError(Diagnostic("MS442", message, help="leave the field unset"))
    arguments["vocab_size"] = padded_vocab_size(assembly.all())
    arguments[spec_argument] = spec
    model: nn.Module = model_class(
        config=config,
        pre_process=state.is_pipeline_first_stage() if pre is None else pre,
        post_process=state.is_pipeline_last_stage() if post is None else post,
        pg_collection=groups,
        **arguments,
    )
    return model


def _stack(assembly: Assembly) -> tuple[Any, type, str]:
    """Megatron-Core's own layer spec with our chunk size, the model class, and the name of its spec argument.

    The folder was called `mamba` before 0.18 and is `hybrid` since.
    """
    kind = "hybrid" if importlib.util.find_spec("megatron.core.models.hybrid") is not None else "mamba"
    models = f"megatron.core.models.{kind}.{kind}"
    grouped = bool(assembly.config.get("moe_grouped_gemm", True))
    if assembly.provider["norms"] == "separate":
        module = import_module(f"megatron.core.post_training.modelopt.{kind}.model_specs")
        make = getattr(module, f"get_{kind}_stack_modelopt_spec")
        # Without the remapping hooks, so that the norms are stored under their own names, as the mapping has them.
        spec = make(local_core_attention=False, remap_te_layernorm=False)
    else:
        spec = getattr(import_module(f"{models}_layer_specs"), f"{kind}_stack_spec")
    spec = copy.copy(spec)
    mixer = _own(spec, "submodules", "mamba_layer", "submodules", "mixer")
    mixer.params = {**(mixer.params or {}), "chunk_size": assembly.provider["mamba_chunk_size"]}
    if not grouped and assembly.provider["norms"] == "fused":
        moe = import_module("megatron.core.models.gpt.moe_module_specs")
        layer = _own(spec, "submodules", "moe_layer", "submodules")
        layer.mlp = moe.get_moe_module_spec(use_te=True, num_experts=8, moe_grouped_gemm=False)
    model_class = getattr(import_module(f"{models}_model"), "HybridModel" if kind == "hybrid" else "MambaModel")
    return spec, model_class, f"{kind}_stack_spec"


def _own(spec: Any, *path: str) -> Any:
    """The part of a spec at `path`, copied with everything on the way to it.

    Megatron-Core's spec is shared by all models of the process, and holds classes that a deep copy cannot take.
    """
    for name in path:
        setattr(spec, name, copy.copy(getattr(spec, name)))
        spec = getattr(spec, name)
    return spec


# --- the reference model --------------------------------------------------------------------------------------------


def _reference(assembly: Assembly, values: dict[str, Any], pre: bool | None, post: bool | None) -> nn.Module:
    backend = import_module("mapspec.backends.reference")
    taken = ("share_embeddings_and_output_weights", "parallel_output", "position_embedding_type")
    model: nn.Module = backend.build_reference_model(
        values,
        vocab_size=padded_vocab_size(assembly.all()),
        hybrid_layer_pattern=assembly.model["hybrid_layer_pattern"],
        pre_process=pre,
        post_process=post,
        norms=assembly.provider["norms"],
        experts=_experts(assembly),
        max_sequence_length=assembly.model["seq_length"],
        **{name: assembly.model[name] for name in taken},
    )
    for module in model.modules():
        if hasattr(module, "chunk_size"):
            module.chunk_size = assembly.provider["mamba_chunk_size"]
    return model
