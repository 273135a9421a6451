"""Installing what the GPU model needs, from a folder of wheels and source packages or from the usual package index.

Everything goes into a folder of its own that is put on PYTHONPATH; the Python that has torch stays as it is. Source
packages are compiled against that torch, once: the wheel that comes out is kept and used the next time.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ONLINE",
    "SetupError",
    "Step",
    "built_folder",
    "distribution_of",
    "installed_here",
    "plan_setup",
    "run_steps",
]

# Compiled in this order: mamba-ssm imports causal-conv1d. The rest follows.
_BUILD_ORDER = ("causal-conv1d", "mamba-ssm", "transformer-engine-torch")
# Never replaced: the source packages are compiled against these.
_FIXED = ("torch", "triton", "numpy")
ONLINE = ("megatron-core>=0.17,<0.21", "einops", "psutil", "transformers>=5.8.1", "causal-conv1d>=1.5",
          "mamba-ssm>=2.2.5", "transformer-engine[pytorch]>=2.5")  # fmt: skip


class SetupError(RuntimeError):
    """The folder of wheels cannot be used, or a command of the setup ended badly."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command of the setup. `compiles` marks those that take minutes."""

    title: str
    command: tuple[str, ...]
    compiles: bool = False


def distribution_of(path: Path) -> tuple[str, str]:
    """(normalised name, version) from the name of a wheel or source archive."""
    stem = re.sub(r"\.(whl|zip|tar\.gz)$", "", path.name)
    if path.suffix == ".whl":
        name, version = stem.split("-")[:2]
    else:
        name, _, version = stem.rpartition("-")
    if not name:
        raise SetupError(f"`{path.name}` is not named like a wheel or a source package")
    return re.sub(r"[-_.]+", "-", name).lower(), version


def installed_here() -> dict[str, str]:
    """Normalised name -> version of what this Python has."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), one.version)
    return found


def built_folder(root: Path, torch_version: str) -> Path:
    """Where compiled wheels are kept: apart for every torch and Python, for they fit no other."""
    tag = f"torch-{torch_version}-py{sys.version_info.major}{sys.version_info.minor}"
    return root / re.sub(r"[^A-Za-z0-9.+-]", "_", tag)


def plan_setup(
    wheels: Path | None, *, site: Path, built: Path, installed: Mapping[str, str], python: str = sys.executable
) -> list[Step]:
    """The commands of the setup; none where everything is there.

    Args:
        wheels: folder with `*.whl` and `*.tar.gz`; `None` to take the packages from the usual index.
        site: folder to install into.
        built: folder of compiled wheels, read and written.
        installed: what is there already, by normalised name.

    Raises:
        SetupError: no such folder, nothing in it, or two versions of one package.
    """
    into = (python, "-m", "pip", "install", "--quiet", "--no-compile", "--upgrade", "--target", str(site))
    if wheels is None:
        wanted = [text for text in ONLINE if re.split(r"[\[<>=]", text)[0] not in installed]
        if not wanted:
            return []
        command = (*into, "--no-build-isolation", *wanted)
        return [Step(f"install {', '.join(wanted)}", command, compiles=True)]
    ready, sources = _contents(wheels, installed)
    steps = []
    if ready:
        names = ", ".join(distribution_of(path)[0] for path in ready)
        steps.append(Step(f"install {names}", (*into, "--no-index", "--no-deps", *map(str, ready))))
    for path in sources:
        name, version = distribution_of(path)
        pattern = f"{name.replace('-', '[-_.]')}-{version}*.whl"
        if not list(built.glob(pattern)):
            make = (python, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation")
            steps.append(Step(f"compile {name} {version}", (*make, "-w", str(built), str(path)), compiles=True))
        # The name of the wheel is only known once it is built; pip finds it in the folder.
        command = (*into, "--no-index", "--no-deps", "--find-links", str(built), f"{name}=={version}")
        steps.append(Step(f"install {name} {version}", command))
    return steps


def _contents(folder: Path, installed: Mapping[str, str]) -> tuple[list[Path], list[Path]]:
    """Wheels and source packages to install, each in the order to install them."""
    if not folder.is_dir():
        raise SetupError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.zip")]):
        name, version = distribution_of(path)
        if name in found and distribution_of(found[name])[1] != version:
            raise SetupError(f"two versions of {name} in {folder}: {found[name].name} and {path.name}; keep one")
        if name not in found or path.suffix == ".whl":
            found[name] = path
    if not found:
        raise SetupError(f"{folder} holds neither wheels nor source packages")
    wanted = {
        name: path
        for name, path in found.items()
        if installed.get(name) != distribution_of(path)[1]
        and not (name in installed and (name in _FIXED or name.startswith("nvidia-")))
    }
    order = {name: i for i, name in enumerate(_BUILD_ORDER)}
    sources = [p for n, p in sorted(wanted.items(), key=lambda x: order.get(x[0], 9)) if p.suffix != ".whl"]
    return [path for path in wanted.values() if path.suffix == ".whl"], sources


def run_steps(
    steps: Sequence[Step], environment: Mapping[str, str], say: Callable[[str], None]
) -> list[tuple[str, float]]:
    """Run the commands one after the other; (title, seconds) of each.

    Raises:
        SetupError: a command ended badly; the end of its output is in the message.
    """
    out = []
    for step in steps:
        say(f"setup: {step.title}")
        began = time.monotonic()
        done = subprocess.run(
            step.command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-40:])
            raise SetupError(f"{step.title}: exit code {done.returncode}\n{tail}")
        out.append((step.title, time.monotonic() - began))
    return out
