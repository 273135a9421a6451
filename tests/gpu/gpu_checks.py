"""The checks of one live model, in the order in which they build on each other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_backend import Backend, Distance, distance
from gpu_models import hf_logits, tokens_for
from gpu_results import Runner, Skip
from megatron.core import parallel_state
from safetensors.torch import load_file

from mapspec.backends.reference_parallel import ParallelSizes
from mapspec.convert import Output, convert
from mapspec.inventory import local_inventory
from mapspec.mapping import CompiledMapping
from mapspec.prepare import Request, prepare
from mapspec.ranks import Shard
from mapspec.verify import verify

__all__ = ["LiveModel", "MismatchError", "check_keys", "check_model"]


class MismatchError(AssertionError):
    """A check did not hold. `numbers` are shown nevertheless."""

    def __init__(self, message: str, **numbers: object) -> None:
        super().__init__(message)
        self.numbers = numbers


def compare_sets(what: str, model: set[str], ours: set[str]) -> None:
    """Both have the same names; the message shows the first few of each kind that do not."""
    lacking, extra = sorted(model - ours), sorted(ours - model)
    if lacking or extra:
        raise MismatchError(
            f"{what}: {len(lacking)} only in the model {lacking[:4]}, {len(extra)} only in the mapping {extra[:4]}",
            only_model=len(lacking), only_mapping=len(extra),
        )  # fmt: skip


@dataclass
class LiveModel:
    """One model on this rank and the files that belong to it.

    Attributes:
        model_name: key of `gpu_models.MODELS`.
        work: folder of the run; `<work>/<model_name>/hf` and `truth.pt` are there.
        fields: provider fields that differ from the config's (norms, parallel sizes, experts).
    """

    backend: Backend
    model_name: str
    work: Path
    group: str
    fields: Mapping[str, Any]
    sizes: ParallelSizes = field(default_factory=ParallelSizes)
    provider: Any = None
    model: Any = None
    mapping: CompiledMapping | None = None

    @property
    def hf(self) -> Path:
        """The Hugging Face checkpoint."""
        return self.work / self.model_name / "hf"

    @property
    def own(self) -> Path:
        """The folder of this group."""
        return self.work / self.group

    @property
    def flavours(self) -> dict[str, str]:
        """Switches of the mapping that give the names of the live model."""
        grouped = self.fields.get("moe_grouped_gemm", True)
        return {
            "norms": str(self.fields.get("norms", "fused")), "experts": "grouped" if grouped else "sequential"
        }  # fmt: skip

    @property
    def shard(self) -> Shard:
        """This rank's place."""
        return Shard(
            parallel_state.get_tensor_model_parallel_rank(), self.sizes.tp,
            parallel_state.get_expert_model_parallel_rank(), self.sizes.ep,
            parallel_state.get_expert_tensor_parallel_rank(), self.sizes.expert_tensor,
        )  # fmt: skip

    def held(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers by name, without Transformer Engine's extra state."""
        state = self.model.state_dict(keep_vars=True)
        return {n: t for n, t in state.items() if torch.is_tensor(t) and not n.endswith("_extra_state")}

    # --- the checks ---------------------------------------------------------------------------------------------

    def build(self) -> Mapping[str, object]:
        """The provider gives the model of this rank."""
        self.provider = self.backend.provider(self.hf, **self.fields)
        self.model = self.provider.provide().eval()
        version = tuple(int(part) for part in _megatron_version().split(".")[:2])
        request = Request(self.hf, flavours=self.flavours, megatron_version=(version[0], version[1]))
        self.mapping = CompiledMapping(prepare(request).require().table)
        count = sum(p.numel() for p in self.model.parameters())
        places = {str(p.device.type) for p in self.model.parameters()}
        return {"parameters": count, "on": "/".join(sorted(places))}

    def inventory(self) -> Mapping[str, object]:
        """Names and shapes are those of the inventory that needs no model."""
        assert self.mapping is not None
        found = {t.name: t.shape for t in local_inventory(self.mapping.table, self.shard)}
        held = {name: tuple(t.shape) for name, t in self.held().items()}
        compare_sets("names", set(held), set(found))
        wrong = [f"{n}: {list(held[n])}, inventory {list(found[n])}" for n in held if held[n] != found[n]]
        if wrong:
            raise MismatchError(f"{len(wrong)} shapes differ, first {wrong[0]}")
        return {"tensors": len(held)}

    def keys(self) -> Mapping[str, object]:
        """torch_dist keys and shapes are the mapping's; every byte object that the model asks for is written."""
        assert self.mapping is not None
        tensors, objects = self.backend.stored(self.model)
        table = prepare(Request(self.hf, flavours={"norms": self.norms_on_disk(tensors)})).require().table
        ours = {name: "x".join(map(str, decl.shape)) for name, decl in table.inventory("stored").items()}
        compare_sets("torch_dist keys", set(tensors), set(ours))
        wrong = [n for n, text in tensors.items() if text.split(" ")[1] != ours[n]]
        if wrong:
            raise MismatchError(f"{len(wrong)} global shapes differ, first `{wrong[0]}`: {tensors[wrong[0]]}")
        lacking = sorted(objects - set(table.objects))
        spare = len(set(table.objects) - objects)
        numbers = {"keys": len(tensors), "objects": len(objects), "written but not asked for": spare}
        if lacking:
            raise MismatchError(f"{len(lacking)} objects are asked for and not written: {lacking[:4]}", **numbers)
        return numbers

    def norms_on_disk(self, keys: Mapping[str, str]) -> str:
        """`fused` or `separate`, by the keys. ModelOpt's stack has norms of its own and stores them as fused ones."""
        return "fused" if any(".layer_norm_weight" in key for key in keys) else "separate"

    def load(self) -> Mapping[str, object]:
        """Megatron-Core loads what `mapspec convert` wrote, strictly, over NaN; nothing stays unfilled."""
        norms = self.norms_on_disk(self.backend.stored(self.model)[0])
        checkpoint = self.own / f"megatron-{norms}"
        if not self.backend.rank:
            convert(Request(self.hf, flavours={"norms": norms}), Output(checkpoint, overwrite=True))
        torch.distributed.barrier()
        with torch.no_grad():
            for tensor in self.held().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        began = time.monotonic()
        self.backend.load(self.model, checkpoint / "iter_0000000")
        empty = [name for name, tensor in self.held().items() if tensor.isnan().any() or bool((tensor == -1).all())]
        if empty:
            raise MismatchError(f"{len(empty)} tensors have NaN after the load, first `{empty[0]}`")
        return {"norms on disk": norms, "tensors": len(self.held()), "seconds": time.monotonic() - began}

    def bits(self) -> Mapping[str, object]:
        """Every parameter holds the bits that the mapping says, computed from the Hugging Face file again."""
        assert self.mapping is not None
        source = {n: t for path in sorted(self.hf.glob("*.safetensors")) for n, t in load_file(path).items()}
        held, wrong = self.held(), []
        for tensor in local_inventory(self.mapping.table, self.shard):
            value = held[tensor.name].detach().cpu()
            wanted = self.mapping.hf_to_megatron(tensor.global_name, source, self.shard)
            if not torch.equal(value, wanted.to(value.dtype)):  # A_log and D are fp32 in a bare model
                wrong.append(tensor.name)
        if wrong:
            raise MismatchError(f"{len(wrong)} of {len(held)} differ, first `{wrong[0]}`", differ=len(wrong))
        return {"tensors": len(held), "differ": 0}

    def forward(self) -> Mapping[str, object]:
        """Logits in bf16 are as near to the true ones (fp32) as transformers' own in bf16 are."""
        tokens = tokens_for(self.model_name, self.hf)
        kept = torch.load(self.work / self.model_name / "truth.pt")
        began = time.monotonic()
        logits = self.backend.logits(self.model, tokens, self.hf)
        seconds = time.monotonic() - began
        theirs = hf_logits(self.hf, tokens, torch.bfloat16, self.backend.device)
        ours, floor = distance(logits, kept["transformers"]), distance(theirs, kept["transformers"])
        against_reference = distance(logits, kept["reference"]).rms if "reference" in kept else float("nan")
        numbers: dict[str, object] = {
            "typical": ours.typical, "noise floor typical": floor.typical,
            "rms": ours.rms, "noise floor rms": floor.rms, "largest": ours.largest, "floor largest": floor.largest,
            "argmax equal": f"{ours.agree:.1%}", "floor argmax": f"{floor.agree:.1%}", "KL": ours.kl,
            "floor KL": floor.kl, "rms to reference": against_reference, "rms to transformers bf16":
            distance(logits, theirs).rms, "scale": kept["transformers"].abs().max().item(), "seconds": seconds,
        }  # fmt: skip
        within_noise(ours, floor, numbers)
        return numbers

    def export(self) -> Mapping[str, object]:
        """Saved by Megatron-Core and converted back, it is the source bit for bit."""
        saved, back = self.own / "saved", self.own / "back"
        for folder in (saved, back):
            if not self.backend.rank:
                shutil.rmtree(folder, ignore_errors=True)
        torch.distributed.barrier()
        self.backend.save(self.model, saved)
        if self.backend.rank:
            return {}
        norms = self.norms_on_disk(self.backend.stored(self.model)[0])
        # A bare model keeps A_log and D in fp32; their values are bf16 ones, so casting them loses nothing.
        convert(Request(saved, reference=self.hf, flavours={"norms": norms}, dtype="bfloat16"), Output(back))
        done = verify(self.hf, back)
        if done.findings:
            raise MismatchError(f"{len(done.findings)} findings, first: {done.findings[0].message}")
        return {"tensors": done.tensors, "bytes": done.nbytes, "differ": 0}

    def live(self) -> Mapping[str, object]:
        """`mapspec.load` fills the model, `mapspec.export` gives the source's bits."""
        try:
            from mapspec.live import export, load
        except ImportError as error:
            raise Skip(f"mapspec.live is not there: {error}") from None
        with torch.no_grad():
            for tensor in self.held().values():
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        with self.backend.adapters():
            load(self.model, self.hf)
            found = {name: tensor.detach().cpu() for name, tensor in export(self.model, self.hf)}
        if self.backend.rank and not found:
            return {}
        source = {n: t for path in sorted(self.hf.glob("*.safetensors")) for n, t in load_file(path).items()}
        compare_sets("names", set(found), set(source))
        wrong = [n for n, t in source.items() if not torch.equal(found[n].to(t.dtype), t)]
        if wrong:
            raise MismatchError(f"{len(wrong)} of {len(source)} differ, first `{wrong[0]}`", differ=len(wrong))
        return {"tensors": len(source), "differ": 0}


def within_noise(ours: Distance, floor: Distance, numbers: Mapping[str, object]) -> None:
    """No farther from the truth than the noise allows: rounding may flip a routing decision here and not there."""
    for what, factor in (("typical", 2), ("rms", 4)):
        mine, noise = getattr(ours, what), getattr(floor, what)
        if not mine <= factor * noise + 1e-6:
            message = f"{what} distance {mine:.3g} is more than {factor} times the noise floor {noise:.3g}"
            raise MismatchError(message, **numbers)
    if not ours.agree >= floor.agree - 0.1:
        raise MismatchError(f"argmax equal at {ours.agree:.1%}, by noise alone {floor.agree:.1%}", **numbers)


def check_model(live: LiveModel, runner: Runner, names: Sequence[str] | None = None) -> None:
    """Run the checks of a model, all or those of `names`."""
    order: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("build", ()), ("inventory", ("build",)), ("keys", ("build",)), ("load", ("build",)), ("bits", ("load",)),
        ("forward", ("load",)), ("export", ("load",)), ("live", ("build",)),
    )  # fmt: skip
    live.own.mkdir(parents=True, exist_ok=True)
    with live.backend.groups(live.sizes):
        for name, needs in order:
            if names is None or name in names:
                runner.check(name, getattr(live, name), needs)


def check_keys(
    backend: Backend, variants: Mapping[str, Path], golden: Path, record: Path | None, runner: Runner
) -> None:
    """Keys and byte objects of the model, for every variant, against the recorded ones of the reference backend.

    Args:
        variants: name -> Hugging Face folder.
        golden: folder of `<variant>.fused-te.txt`.
        record: folder to write what the model really has to.
    """

    def one(name: str, folder: Path) -> Mapping[str, object]:
        fields = {} if backend.on_gpu else {"norms": "fused"}
        model = backend.provider(folder, **fields).provide()
        tensors, objects = backend.stored(model)
        lines = sorted([*(f"{key} {text}" for key, text in tensors.items()), *(f"{key} object" for key in objects)])
        if record is not None:
            record.mkdir(parents=True, exist_ok=True)
            (record / f"{name}.fused-te.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        recorded = set((golden / f"{name}.fused-te.txt").read_text(encoding="utf-8").splitlines())
        numbers: dict[str, object] = {"keys": len(tensors), "objects": len(objects)}
        if not backend.on_gpu:
            # The reference model's norms own no extra state unless asked for; only the tensors are comparable.
            recorded = {line for line in recorded if not line.endswith(" object")}
            lines = [line for line in lines if not line.endswith(" object")]
        only_model, only_golden = sorted(set(lines) - recorded), sorted(recorded - set(lines))
        if only_model or only_golden:
            message = f"{len(only_model)} only in the model {only_model[:3]}, {len(only_golden)} only recorded "
            raise MismatchError(f"{message}{only_golden[:3]}", **numbers)
        written = set(prepare(Request(folder)).require().table.objects)
        lacking = sorted(objects - written)
        if lacking:
            raise MismatchError(f"{len(lacking)} objects are asked for and not written: {lacking[:4]}", **numbers)
        return numbers

    with backend.groups():
        for name, folder in variants.items():
            runner.check(name, lambda name=name, folder=folder: one(name, folder))  # type: ignore[misc]


def _megatron_version() -> str:
    from mapspec.provider.installed import megatron_version

    return megatron_version() or "0.19"
