"""Codes about the files of a checkpoint: 60x to 64x Hugging Face folders, 65x to 69x torch_dist folders."""

from __future__ import annotations

from mapspec.diagnostics import Code

__all__ = ["FILE_CODES"]

FILE_CODES: dict[str, Code] = {
    "MS601": Code(
        "not-a-checkpoint",
        "The folder holds neither a Hugging Face checkpoint nor a Megatron-Core one.",
        "Point at the folder with config.json, or at the folder with .metadata or iter_*.",
    ),
    "MS602": Code(
        "config-missing",
        "The folder has no readable config.json, from which architecture and shapes are taken.",
        "Point at a Hugging Face folder with its config.json, or put that file beside the weights.",
    ),
    "MS603": Code(
        "config-unreadable",
        "The config is not a JSON object in UTF-8.",
        "Correct the file at the place shown, or fetch it again.",
    ),
    "MS604": Code(
        "repeated-config-key",
        "A key stands twice in one object of the config; readers disagree about which one counts.",
        "Keep one of the two.",
    ),
    "MS605": Code(
        "no-weights",
        "The folder holds no tensors in safetensors files.",
        "Check the path, or fetch the weights.",
    ),
    "MS606": Code(
        "torch-weights-only",
        "The weights are in pickled torch files; mapspec reads safetensors files only.",
        "Write each file again with safetensors.torch.save_file.",
    ),
    "MS610": Code(
        "header-length",
        "The length at the start of a safetensors file does not fit the file.",
        "Fetch the file again.",
    ),
    "MS611": Code(
        "header-unreadable",
        "The header of a safetensors file is not a JSON object with distinct names.",
        "Fetch the file again, or have its author write it again.",
    ),
    "MS612": Code(
        "header-entry",
        "An entry of a safetensors header lacks a usable dtype, shape or place.",
        "Fetch the file again, or have its author write it again.",
    ),
    "MS613": Code(
        "unknown-dtype",
        "A tensor has a dtype that mapspec does not know, so its bytes cannot be placed.",
        "Convert from a checkpoint that stores the tensor in a known dtype.",
    ),
    "MS614": Code(
        "tensor-size",
        "Shape and dtype of a tensor do not fit the number of its bytes.",
        "Fetch the file again, or have its author write it again.",
    ),
    "MS615": Code(
        "tensor-offsets",
        "Tensors of a safetensors file overlap, or leave bytes between them unused.",
        "Fetch the file again, or have its author write it again.",
    ),
    "MS616": Code(
        "file-size",
        "A safetensors file is shorter or longer than its header says.",
        "Fetch the file again; the download or copy was probably interrupted.",
    ),
    "MS617": Code(
        "lfs-pointer",
        "A file is a Git LFS pointer: the repository was cloned without its large files.",
        "Run `git lfs pull` in the repository.",
    ),
    "MS620": Code(
        "index-unreadable",
        "The index of the shards is not a JSON object with a weight_map.",
        "Fetch the index again, or write it anew from the headers of the files.",
    ),
    "MS621": Code(
        "index-path",
        "The index names a file outside the folder, or none at all; following it could read anything.",
        "Do not use the checkpoint unless you know who wrote the index.",
    ),
    "MS622": Code(
        "shard-missing",
        "The index names a file that is not there.",
        "Fetch the missing file.",
    ),
    "MS623": Code(
        "tensor-missing",
        "The index places a tensor in a file that does not hold it.",
        "Fetch index and files of the same revision again.",
    ),
    "MS624": Code(
        "tensor-unlisted",
        "A file holds a tensor that the index does not place there; readers that follow the index miss it.",
        "Fetch index and files of the same revision again.",
    ),
    "MS625": Code(
        "tensor-twice",
        "Two files hold a tensor of the same name.",
        "Remove the file that does not belong to the checkpoint.",
    ),
    "MS626": Code(
        "shard-numbers",
        "The numbers in the names of the shards do not fit together: one is missing, or the index leaves one out.",
        "Fetch the missing files or the index again.",
    ),
    "MS627": Code(
        "two-checkpoints",
        "The folder holds two sets of weights, and readers disagree about which one counts.",
        "Remove the one that is out of date, or put it into a folder of its own.",
    ),
    "MS628": Code(
        "file-unreadable",
        "A file of the checkpoint cannot be read.",
        "Check the file's type and permissions.",
    ),
    "MS629": Code(
        "broken-link",
        "A file that should travel along is a link to nothing.",
        "Fetch the file again, or remove the link.",
    ),
    "MS650": Code(
        "no-iteration",
        "No folder with .metadata is where the path or latest_checkpointed_iteration.txt says.",
        "Give the folder of an iteration (with .metadata), or the folder above it.",
    ),
    "MS651": Code(
        "several-iterations",
        "The folder holds several iterations and no latest_checkpointed_iteration.txt that names one.",
        "Give the folder of one iteration.",
    ),
    "MS652": Code(
        "metadata-damaged",
        "The file .metadata is not the pickled metadata that torch writes, or its parts contradict each other.",
        "Copy the checkpoint again, or save it again with the program that wrote it.",
    ),
    "MS653": Code(
        "refused-name",
        "A pickle in the checkpoint names a class or function that no checkpoint needs. Pickles can run programs; "
        "mapspec looks names up in a fixed table and executes nothing.",
        "Use the file only if you trust its origin; load it with megatron-core and save it again.",
    ),
    "MS654": Code(
        "data-file-short",
        "A .distcp file is missing, or shorter than .metadata says.",
        "Copy the checkpoint again and compare the files' sizes.",
    ),
    "MS655": Code(
        "item-damaged",
        "An item of a .distcp file is not the archive that torch.save writes for a tensor.",
        "Copy the checkpoint again, or save it again with the program that wrote it.",
    ),
    "MS656": Code(
        "item-differs",
        "An item of a .distcp file has another data type or shape than .metadata says.",
        "The files do not belong together: copy the checkpoint again, as a whole.",
    ),
    "MS657": Code(
        "chunks-do-not-tile",
        "The chunks of a tensor leave gaps, overlap, or reach beyond its shape.",
        "Some ranks' part is missing or there twice: save the checkpoint again.",
    ),
    "MS658": Code(
        "storage-unsupported",
        "An item is compressed, big-endian, not row-major, or stored as safetensors.",
        "Load the checkpoint and save it again with megatron-core's default settings.",
    ),
    "MS659": Code(
        "dtype-unsupported",
        "A tensor has a data type that mapspec does not move.",
        "Leave the tensor out, or cast it before saving.",
    ),
    "MS660": Code(
        "run-config-unreadable",
        "run_config.yaml is not YAML, or not a mapping.",
        "Mend the file, or move it away and give the config otherwise.",
    ),
    "MS661": Code(
        "common-state-unreadable",
        "Common state (common.pt, or the object common_state) is missing or damaged.",
        "Copy the checkpoint again, or give the config otherwise.",
    ),
    "MS662": Code(
        "other-format",
        "metadata.json names another format than torch_dist.",
        "Save the checkpoint with `--ckpt-format torch_dist`.",
    ),
}
