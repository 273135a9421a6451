"""Sorting what lies in a Hugging Face folder into weights, indexes, and files that travel along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mapspec.diagnostics import Diagnostic

__all__ = ["SortedFiles", "sort_files"]

_INDEX_SUFFIX = ".safetensors.index.json"
# Weights in other formats, optimizer states, and archives of either. `tokenizer.model` is none of them.
_WEIGHT_SUFFIXES = frozenset(
    {".bin", ".ckpt", ".distcp", ".gguf", ".ggml", ".h5", ".keras", ".llamafile", ".mlmodel", ".msgpack", ".nemo"}
    | {".npy", ".npz", ".onnx", ".onnx_data", ".ot", ".pb", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".safetensors"}
    | {".tar", ".tflite", ".zip"}
)
_CACHES = frozenset({"__pycache__"})


@dataclass(frozen=True, slots=True)
class SortedFiles:
    """Names relative to the folder, each list sorted; `findings` are broken links among the files to carry."""

    safetensors: tuple[str, ...]
    indexes: tuple[str, ...]
    other_weights: tuple[str, ...]
    side_files: tuple[str, ...]
    findings: tuple[Diagnostic, ...]


def sort_files(root: Path) -> SortedFiles:
    """Sort the files of a folder and of its subfolders.

    Left alone are hidden files and folders (`.git`, `.cache`, `.gitattributes`), caches, and subfolders that are
    checkpoints of their own (with a `config.json`, a `.metadata` or an index of weights).
    """
    safetensors: list[str] = []
    indexes: list[str] = []
    weights: list[str] = []
    side: list[str] = []
    findings: list[Diagnostic] = []
    # Links to folders are not followed, so a cycle of them cannot keep us here.
    for at, subfolders, files in root.walk():
        subfolders[:] = sorted(
            name for name in subfolders if not (name.startswith(".") or name in _CACHES or _is_checkpoint(at / name))
        )
        for name in files:
            if name.startswith("."):
                continue
            relative = (at / name).relative_to(root).as_posix()
            suffix = Path(name).suffix.lower()
            if suffix == ".safetensors":
                safetensors.append(relative)
            elif name.endswith(_INDEX_SUFFIX) and at == root:
                indexes.append(relative)
            elif suffix in _WEIGHT_SUFFIXES:
                weights.append(relative)
            elif name.endswith(".index.json") or relative == "config.json":
                continue
            elif not (at / name).exists():
                findings.append(
                    Diagnostic(
                        "MS629",
                        f"`{relative}` is a link to a file that is gone",
                        where=str(root),
                        help="fetch the file again, or remove the link",
                    )
                )
            elif (at / name).is_file():
                side.append(relative)
    return SortedFiles(
        safetensors=tuple(sorted(safetensors)),
        indexes=tuple(sorted(indexes)),
        other_weights=tuple(sorted(weights)),
        side_files=tuple(sorted(side)),
        findings=tuple(findings),
    )


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", ".metadata", "common.pt")) or any(
        folder.glob(f"*{_INDEX_SUFFIX}")
    )
