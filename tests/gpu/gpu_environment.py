"""Where the CUDA libraries of torch's wheels lie, and the environment in which compilers and the loader find them.

torch's wheels bring CUDA, cuDNN and NCCL as packages of their own, below `nvidia/` in site-packages. Transformer
Engine, mamba-ssm and causal-conv1d look in the system's folders, so environment variables have to name these.
Only the standard library is used: nothing else may be installed yet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CudaFolders", "build_environment", "cuda_folders", "run_environment"]


@dataclass(frozen=True, slots=True)
class CudaFolders:
    """Folders with headers, folders with libraries, and the home of the compiler (`None` where there is none)."""

    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    home: Path | None
    cudnn: Path | None


def cuda_folders(
    search: Iterable[str | Path], environment: Mapping[str, str], *, usual: Path = Path("/usr/local/cuda")
) -> CudaFolders:
    """Look through site-packages folders.

    Args:
        search: usually `sys.path`; the first folder that has a package wins, as for imports.
        environment: `CUDA_HOME` and `PATH` say where the compiler is.
        usual: where an installed CUDA usually is.
    """
    packages: dict[str, Path] = {}
    for entry in search:
        root = Path(entry) / "nvidia"
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if (folder / "include").is_dir() or (folder / "lib").is_dir():
                packages.setdefault(folder.name, folder)
    includes = []
    for folder in packages.values():
        # CUDA 13 keeps the C++ core libraries (cuda/std, cub, thrust) one folder further down.
        includes += [f for f in (folder / "include", folder / "include" / "cccl") if f.is_dir()]
    libraries = [folder / "lib" for folder in packages.values() if (folder / "lib").is_dir()]
    return CudaFolders(tuple(includes), tuple(libraries), _home(packages, environment, usual), packages.get("cudnn"))


def _home(packages: Mapping[str, Path], environment: Mapping[str, str], usual: Path) -> Path | None:
    if environment.get("CUDA_HOME"):
        return Path(environment["CUDA_HOME"])
    compiler = shutil.which("nvcc", path=environment.get("PATH", ""))
    if compiler is not None:
        return Path(compiler).resolve().parent.parent
    for home in (usual, *packages.values()):
        if (home / "bin" / "nvcc").is_file():
            return home
    return None


def run_environment(
    base: Mapping[str, str], folders: CudaFolders, *, python_path: Sequence[str | Path] = ()
) -> dict[str, str]:
    """The environment to import and run in: the loader finds the libraries, Python the packages.

    What `base` holds already stays, after what is added.
    """
    out = dict(base)
    _prepend(out, "LD_LIBRARY_PATH", folders.libraries)
    _prepend(out, "PYTHONPATH", python_path)
    if folders.cudnn is not None:
        out.setdefault("CUDNN_PATH", str(folders.cudnn))  # Transformer Engine opens cuDNN by path
    return out


def build_environment(
    base: Mapping[str, str], folders: CudaFolders, *, architectures: str = "", jobs: int | None = None,
    python_path: Sequence[str | Path] = (),
) -> dict[str, str]:  # fmt: skip
    """The environment to compile in: `run_environment`, headers and link libraries, and no search for ready binaries.

    Args:
        architectures: compute capabilities such as `9.0`; they shorten the build where the package heeds them.
        jobs: compilers at a time; by default one per core, at most 16 (each takes gigabytes of memory).
    """
    out = run_environment(base, folders, python_path=python_path)
    _prepend(out, "CPLUS_INCLUDE_PATH", folders.includes)
    _prepend(out, "C_INCLUDE_PATH", folders.includes)
    _prepend(out, "LIBRARY_PATH", folders.libraries)
    out |= {"MAMBA_FORCE_BUILD": "TRUE", "CAUSAL_CONV1D_FORCE_BUILD": "TRUE", "NVTE_FRAMEWORK": "pytorch"}
    out.setdefault("MAX_JOBS", str(jobs or min(os.cpu_count() or 1, 16)))
    if folders.home is not None:
        out.setdefault("CUDA_HOME", str(folders.home))
        _prepend(out, "PATH", (folders.home / "bin",))
    if architectures:
        out.setdefault("TORCH_CUDA_ARCH_LIST", architectures)
        out.setdefault("NVTE_CUDA_ARCHS", architectures.replace(".", "").replace(" ", ";"))
    return out


def _prepend(environment: dict[str, str], name: str, folders: Sequence[str | Path]) -> None:
    held = [part for part in environment.get(name, "").split(os.pathsep) if part]
    added = [str(folder) for folder in folders if str(folder) not in held]
    if added or held:
        environment[name] = os.pathsep.join([*added, *held])
