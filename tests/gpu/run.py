"""Check mapspec against the GPU model, on a CUDA machine: `python tests/gpu/run.py --wheels DIR --summary docs/gpu.md`.

Installs what is missing, writes small checkpoints, and lets the real HybridModel (Transformer Engine layers, mamba-ssm
kernels) load, run and save them. `--backend reference` runs the same checks on the CPU with the reference model.
docs/gpu.md says more. Exit code 0: every check passed; 1: some did not; 2: the setup could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
for folder in (HERE, HERE.parent, ROOT):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from gpu_children import run_group  # noqa: E402
from gpu_environment import build_environment, cuda_folders, run_environment  # noqa: E402
from gpu_packages import SetupError, built_folder, installed_here, plan_setup, run_steps  # noqa: E402
from gpu_results import Check, Runner, Summary, render_summary, write_result  # noqa: E402

MARK = "<!-- summary -->"


@dataclass(frozen=True, slots=True)
class Group:
    """Checks that run in processes of their own.

    Attributes:
        model: which checkpoint, empty for none.
        fields: provider fields that differ.
        checks: which checks of the model, all where empty.
        tp: ranks.
        cpu: whether CUDA is hidden from it.
    """

    name: str
    model: str = ""
    fields: Mapping[str, object] | None = None
    checks: tuple[str, ...] = ()
    tp: int = 1
    cpu: bool = False


def groups_for(models: Sequence[str], devices: int) -> list[Group]:
    """The groups of a run, in order. Two ranks need two devices (any number of them on the CPU)."""
    out = [Group("machine"), Group("files", cpu=True), *(Group(model, model) for model in models)]
    first = models[0]
    out.append(Group("separate", first, {"norms": "separate"}))
    out.append(Group("sequential", first, {"moe_grouped_gemm": False}, ("build", "inventory", "keys", "load", "bits")))
    out.append(Group("keys"))
    if devices >= 2:
        out.append(Group("tp2", first, {"tensor_model_parallel_size": 2}, tp=2))
    return out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("-w", "--wheels", type=Path, help="folder of wheels and source packages; nothing is fetched from elsewhere")
    add("--skip-setup", action="store_true", help="everything is installed")
    add("--setup-only", action="store_true", help="install and compile, check nothing")
    add("--built", type=Path, default=Path.home() / ".cache" / "mapspec-gpu", help="where compiled wheels are kept")
    add("--site", type=Path, help="folder to install into; by default below --built")
    add("--architectures", default="", help="compute capabilities to compile for, for example 9.0")
    add("--backend", choices=("transformer_engine", "reference"), default="transformer_engine")
    add(
        "--models", default="tiny,medium,omni", help="checkpoints to write, by comma; the first serves the variants too"
    )
    add("--groups", default="", help="groups of checks to run, by comma; all by default")
    add("--work", type=Path, help="folder for checkpoints and logs; a temporary one by default")
    add("--record", type=Path, help="folder to write the key set of the model to, one file per variant")
    add("-s", "--summary", type=Path, help="Markdown file to write the summary to; what stands above its mark stays")
    add("--limit", type=float, default=570.0, help="seconds for all checks together")
    for name, kind in (("child", str), ("results", Path), ("rank", int), ("store", Path)):
        add(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.models = [name for name in options.models.split(",") if name]
    options.groups = [name for name in options.groups.split(",") if name]
    if not options.models:
        parser.error("--models names no checkpoint")
    if options.wheels and options.skip_setup:
        parser.error("--wheels and --skip-setup contradict each other")
    return options


# --- the parent -----------------------------------------------------------------------------------------------------


def set_up(options: argparse.Namespace) -> tuple[dict[str, str], tuple[tuple[str, float], ...]]:
    """Install what is missing; the environment to run in, and what was done.

    Raises:
        SetupError: a package cannot be installed or compiled.
    """
    folders = cuda_folders(sys.path, os.environ)
    if options.skip_setup or options.backend == "reference":
        return run_environment(os.environ, folders), ()
    installed = installed_here()
    if "torch" not in installed:
        raise SetupError("torch is not installed in this Python; it has to be there before")
    built = built_folder(options.built.resolve(), installed["torch"])
    site = (options.site or built / "site").resolve()
    for folder in (built, site):
        folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(site))
    environment = build_environment(os.environ, folders, architectures=options.architectures, python_path=(site,))
    steps = plan_setup(options.wheels, site=site, built=built, installed=installed_here())
    done = run_steps(steps, environment, lambda text: print(text, flush=True))
    return run_environment(os.environ, cuda_folders(sys.path, os.environ), python_path=(site,)), tuple(done)


def child_command(options: argparse.Namespace, group: Group, work: Path, rank: int) -> list[str]:
    """How a rank of a group is started."""
    command = [sys.executable, str(HERE / "run.py"), "--child", group.name, "--rank", str(rank)]
    command += ["--backend", options.backend, "--models", ",".join(options.models), "--work", str(work)]
    command += ["--results", str(work / "results" / f"{group.name}.{rank}.jsonl")]
    if group.tp > 1:
        command += ["--store", str(work / "results" / f"{group.name}.store")]
    if options.record:
        command += ["--record", str(options.record.resolve())]
    return command


def run_checks(options: argparse.Namespace, environment: Mapping[str, str], work: Path) -> list[Check]:
    """Run the groups one after the other, within the limit of time."""
    results = work / "results"
    results.mkdir(parents=True, exist_ok=True)
    for old in results.iterdir():
        old.unlink()
    began = time.monotonic()
    checks: list[Check] = []
    for group in groups_for(options.models, device_count(options.backend)):
        if options.groups and group.name not in options.groups:
            continue
        left = options.limit - (time.monotonic() - began)
        if left <= 0:
            checks.append(Check(group.name, "all", "failed", {}, f"no time left of {options.limit:.0f} s"))
            continue
        mine = dict(environment)
        if group.cpu or options.backend == "reference":
            mine["CUDA_VISIBLE_DEVICES"] = ""
        mine.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron-Core asks for it with tensor parallelism
        commands = [child_command(options, group, work, rank) for rank in range(group.tp)]
        files = [results / f"{group.name}.{rank}.jsonl" for rank in range(group.tp)]
        found = run_group(group.name, commands, files, environment=mine, logs=work / "logs", timeout_s=left)
        print(render_summary(Summary(options.backend, {}, tuple(found), 0.0)).split("\n\n")[1], flush=True)
        checks += found
    return checks


def device_count(backend: str) -> int:
    """Devices that ranks can have; on the CPU there is no bound, two are enough."""
    if backend == "reference":
        return 2
    import torch

    return torch.cuda.device_count()


def write_summary(path: Path, summary: Summary) -> None:
    """Put the summary below the mark of the file, or make the file of it where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    head, mark, _ = text.partition(MARK)
    body = render_summary(summary, "md")
    path.write_text(f"{head}{MARK}\n\n{body}" if mark else body, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Set up, check, tell."""
    options = parse(arguments)
    if options.child:
        run_child(options)
        return 0
    began = time.monotonic()
    try:
        environment, setup = set_up(options)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    if options.setup_only:
        return 0
    from gpu_machine import versions

    checking = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mapspec-gpu-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        checks = run_checks(options, environment, work)
    notes = () if options.backend == "transformer_engine" else ("Dry run: the reference model on the CPU, no GPU.",)
    summary = Summary(options.backend, versions(), tuple(checks), time.monotonic() - checking, setup, notes)
    print(f"\n{render_summary(summary)}")
    print(f"{time.monotonic() - began:.0f} s with the setup")
    if options.summary:
        write_summary(options.summary, summary)
    return 0 if summary.good else 1


# --- the children ---------------------------------------------------------------------------------------------------


def run_child(options: argparse.Namespace) -> None:
    """One rank of one group."""
    group = next(g for g in groups_for(options.models, 2) if g.name == options.child)
    runner = Runner(group.name, lambda check: write_result(options.results, check))
    if group.name == "machine":
        from gpu_machine import check_machine, versions

        print(json.dumps(versions(), indent=2))
        return check_machine(runner, on_gpu=options.backend == "transformer_engine")
    import torch

    if options.backend == "reference" and not group.cpu:
        torch.set_num_threads(1)
    if group.name == "files":
        from gpu_files import check_files

        for model in options.models:
            check_files(model, options.work, runner)
        return None
    from gpu_backend import Backend
    from gpu_checks import LiveModel, check_keys, check_model

    from mapspec.backends.reference_parallel import ParallelSizes

    backend = Backend(options.backend, options.rank, group.tp, options.store)
    if group.name == "keys":
        from fixtures_hf import VARIANTS, write_tiny

        folders = {name: write_tiny(name, options.work / "variants" / name) for name in VARIANTS}
        return check_keys(backend, folders, HERE.parent / "megatron" / "golden", options.record, runner)
    live = LiveModel(backend, group.model, options.work, group.name, group.fields or {}, ParallelSizes(tp=group.tp))
    return check_model(live, runner, group.checks or None)


if __name__ == "__main__":
    sys.exit(main())
