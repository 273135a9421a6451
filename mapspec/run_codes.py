"""Codes about what commands do with checkpoints: 7xx conversion and live models, 8xx verification, authoring, diff."""

from __future__ import annotations

from mapspec.diagnostics import Code

__all__ = ["RUN_CODES"]

RUN_CODES: dict[str, Code] = {
    "MS701": Code(
        "disk-too-small",
        "The destination's disk has less room than the checkpoint needs.",
        "Free some space or choose another destination.",
    ),
    "MS702": Code(
        "disk-full",
        "The disk filled up, or a quota was reached, while writing.",
        "Free some space or choose another destination, then convert again.",
    ),
    "MS703": Code(
        "source-unreadable",
        "A file of the source ended early or could not be read while its bytes were needed.",
        "Check the source and its disk, then try again.",
    ),
    "MS704": Code(
        "cannot-write",
        "A file of the destination cannot be written.",
        "Check the destination's permissions and its disk.",
    ),
    "MS706": Code(
        "source-incomplete",
        "The chunks of a source tensor do not cover all of its elements.",
        "Check the source checkpoint with `mapspec verify`.",
    ),
    "MS707": Code(
        "source-changed",
        "Files of the source were written to or replaced between reading their headers and the end of the copy.",
        "Wait until nothing writes to the source any more, then convert again.",
    ),
    "MS708": Code(
        "worker-lost",
        "One of the processes that share the work was ended from outside, or none could be started.",
        "Take fewer workers with `--threads`; the system's log tells who ended it.",
    ),
    "MS710": Code(
        "destination-taken",
        "The destination exists and is not an empty folder.",
        "Choose another destination, or overwrite it on purpose.",
    ),
    "MS711": Code(
        "destination-in-source",
        "The destination is, holds, or lies inside a folder that is being read.",
        "Choose a destination beside the source.",
    ),
    "MS712": Code(
        "destination-unusable",
        "The destination folder cannot be made.",
        "Check that the folder above it is one you may write to.",
    ),
    "MS721": Code(
        "same-side",
        "The source already is a checkpoint of the side that was asked for.",
        "Leave --to out, or name the other side.",
    ),
    "MS722": Code(
        "config-unknown",
        "The Megatron checkpoint does not carry the Hugging Face config that it belongs to.",
        "Name a Hugging Face folder or a config.json with --reference.",
    ),
    "MS723": Code(
        "tied-but-different",
        "The config ties two weights that the checkpoint holds with different values; one of them would be lost.",
        "Keep both: --set tie_word_embeddings=false.",
    ),
    "MS724": Code(
        "side-file-unreadable",
        "A file that should travel along, such as the tokenizer, cannot be copied.",
        "Check the file's permissions and the room on the disk.",
    ),
    "MS730": Code(
        "no-certificate",
        "The folder has no `mapspec.json` with digests, so it cannot be verified alone.",
        "Compare it with another checkpoint (`mapspec verify A B`), or convert again.",
    ),
    "MS731": Code(
        "certificate-damaged",
        "`mapspec.json` is not as it was written.",
        "Restore it from a copy of the checkpoint, or convert again.",
    ),
    "MS732": Code(
        "tensor-changed",
        "The bytes of a tensor are not those that were written.",
        "Restore the file from a copy, or convert again; a disk or a transfer has damaged it.",
    ),
    "MS733": Code(
        "file-gone",
        "A file of the checkpoint is gone.",
        "Restore it from a copy, or convert again.",
    ),
    "MS734": Code(
        "file-size-changed",
        "A file with tensors is shorter or longer than it was written.",
        "Fetch or copy it again; a transfer was probably cut off.",
    ),
    "MS735": Code(
        "file-replaced",
        "Nothing in a file is where it was written: another tool has written it anew, or files were exchanged.",
        "Restore the file, or convert again; a certificate does not apply to what other tools write.",
    ),
    "MS736": Code(
        "framing-changed",
        "Bytes around the tensors of a file, its header or framing, are not those that were written.",
        "Restore the file from a copy, or convert again.",
    ),
    "MS737": Code(
        "file-unknown",
        "The folder holds a file that was not written with the checkpoint; a loader may read it.",
        "Move the file elsewhere.",
    ),
    "MS738": Code(
        "side-file-changed",
        "A file beside the tensors, such as config.json, an index or a tokenizer, is not as it was written.",
        "Restore it. If it was changed on purpose, convert with `--set` or `--reference` instead.",
    ),
    "MS739": Code(
        "file-not-read",
        "A file of the checkpoint could not be read.",
        "Check the disk and the permissions, then verify again.",
    ),
    "MS740": Code(
        "memory-bound",
        "The conversion cannot stay below the memory that `--max-memory` allows.",
        "Allow what the message says; `mapspec plan` prints how much a conversion takes, and why.",
    ),
    "MS750": Code(
        "no-live-model",
        "What was given is no model of Megatron-Core whose parameters could be filled or read.",
        "Give the HybridModel of this rank, wrapped or not, with its parameters in memory.",
    ),
    "MS751": Code(
        "parameter-without-row",
        "A live model has parameters that no row of the mapping fills; they would keep random values.",
        "Build the model with the checkpoint's config, choose the flavours it was built with, or add a rule.",
    ),
    "MS752": Code(
        "live-shape-differs",
        "A parameter of a live model has another shape than the config gives this rank.",
        "Build the model with the config of the checkpoint; the message names the first field that differs.",
    ),
    "MS753": Code(
        "live-dtype",
        "A parameter of a live model has a dtype that its values do not survive, or differs in it between ranks.",
        "Bring the parameter to the dtype in the message before loading or exporting.",
    ),
    "MS754": Code(
        "other-rank-stopped",
        "Another rank stopped with an error of its own, so this one stops too.",
        "Look at the traceback of the rank in the message.",
    ),
    "MS755": Code(
        "rank-lost",
        "Another rank was ended or hangs, and an exchange between ranks broke off.",
        "Look for the first error among all ranks; it is rarely the one that is shown last.",
    ),
    "MS756": Code(
        "ranks-disagree",
        "Ranks were called with different checkpoints, configs or options.",
        "Call all ranks with the same arguments.",
    ),
    "MS757": Code(
        "row-without-parameter",
        "The config promises tensors for which no rank of the live model has a parameter.",
        "Build the model with the checkpoint's config, or leave the tensors out on purpose with strict=False.",
    ),
    "MS758": Code(
        "folder-not-shared",
        "A rank does not see the files that rank 0 has made for all to write into.",
        "Save to a file system that all ranks share.",
    ),
    "MS759": Code(
        "open-rule-on-live-model",
        "A rule that ends in `**` takes what a checkpoint holds; nothing says how the ranks of a model hold it.",
        "Write one rule per weight, or convert the checkpoint and load the result with Megatron-Core.",
    ),
    "MS760": Code(
        "media-without-place",
        "Images, video or sound of an input and the placeholder tokens for them do not go together.",
        "Let the processor that made the tokens make the media too; the message says what was counted.",
    ),
    "MS761": Code(
        "multimodal-model-unknown",
        "Encoders or a layout of them were asked for that are not built here.",
        "Set the field that the message names.",
    ),
    "MS770": Code(
        "resume-differs",
        "The conversion that was cut off had another source, mapping, config or option than the one that is asked for.",
        "Bring back what the message names, or start anew without --resume and remove the leftover.",
    ),
    "MS771": Code(
        "leftover-in-use",
        "Another process is at work in the folder that --resume would go on in; its journal is locked.",
        "Wait until that process is over, or end it.",
    ),
    "MS772": Code(
        "leftover-unclear",
        "The file system has no locks, and the process that worked in a leftover ran on another host.",
        "Make sure that it is over, then create the file that the message names.",
    ),
    "MS780": Code(
        "torch-missing-for-ranks",
        "A conversion by several processes needs torch.distributed, by which they find each other.",
        'Install it: pip install "mapspec[convert]"; or run one process, without torchrun.',
    ),
    "MS781": Code(
        "ranks-apart",
        "The processes of a conversion could not connect to each other.",
        "Check the addresses that the launcher gives, and that the hosts reach each other; see docs/cluster.md.",
    ),
    "MS790": Code(
        "remote-package-missing",
        "A URL is read through fsspec, and fsspec or its package for the protocol is not installed.",
        'pip install "mapspec[remote]", and for protocols other than s3 and hf the package that fsspec names.',
    ),
    "MS791": Code(
        "url-unusable",
        "fsspec does not know the protocol of a URL, or cannot make sense of the rest.",
        "Check protocol, bucket and folder.",
    ),
    "MS792": Code(
        "remote-unreachable",
        "An object store or a server could not be asked what a folder holds.",
        "Check the URL, the credentials and the network.",
    ),
    "MS793": Code(
        "io-option",
        "The option --io says something else than how to read.",
        "Write for example threads=16,read=8MiB,ahead=4, or the name of a kind of place, such as network.",
    ),
    "MS794": Code(
        "store-limits",
        "A conversion straight to an object store is done by one process and cannot be resumed.",
        "Convert to a folder of this machine or of a shared file system, then copy it to the store.",
    ),
    "MS795": Code(
        "upload-failed",
        "A file did not arrive in an object store as it was sent, or an old one could not be removed there.",
        "Check the URL, the credentials and the network, then convert again.",
    ),
    "MS801": Code(
        "tensor-on-one-side",
        "One of the two checkpoints holds tensors that the other lacks.",
        "Find out which of the two is complete; convert again from that one.",
    ),
    "MS802": Code(
        "shape-or-dtype-differs",
        "A tensor has another shape or dtype in one checkpoint than in the other.",
        "Check that both are of the same model; bring dtypes together with --dtype or --cast first.",
    ),
    "MS803": Code(
        "values-differ",
        "A tensor differs bit for bit between the two checkpoints.",
        "Convert again from the checkpoint that is right; if it still differs, report it with the tensor's name.",
    ),
    "MS820": Code(
        "logits-packages-missing",
        "Comparing logits builds real models, and a package for that is not installed.",
        'Install it: pip install "mapspec[megatron]".',
    ),
    "MS821": Code(
        "logits-unavailable",
        "Logits cannot be compared as asked: no such device, data type, or model of this architecture.",
        "Choose what the message lists, or compare bit for bit without --logits.",
    ),
    "MS822": Code(
        "model-not-filled",
        "A checkpoint and the real model that was built for it do not cover each other: a strict load is refused.",
        "Convert again; if the names are right, the spec or the config says something else than the model does.",
    ),
    "MS823": Code(
        "logits-differ",
        "Two checkpoints compute different logits: more than rounding explains, measured on one of them.",
        "Look at the first layer that diverges, and compare its weights with `mapspec verify`.",
    ),
    "MS824": Code(
        "layer-diverges",
        "The hidden states after a layer differ by more than rounding explains; layers before it agree.",
        "Read the rules of that layer's kind; weights there are in the wrong place, or another checkpoint's.",
    ),
    "MS825": Code(
        "rank-cut-differs",
        "The spec gives a tensor-parallel rank another part of a weight than Megatron-Core's model takes.",
        "Correct `split`, `split_by` or the order of the dimension; checkpoints are right, live models are not.",
    ),
    "MS850": Code(
        "no-repository",
        "Comparing revisions needs git and a repository; one of the two is not there.",
        "Run it inside of the repository, or compare files or folders: mapspec diff OLD NEW.",
    ),
    "MS851": Code(
        "unknown-revision",
        "What was named to compare is no commit of this clone, and no file or folder.",
        "Check the spelling; fetch the revision where the clone is shallow.",
    ),
    "MS852": Code(
        "no-main-branch",
        "Without a revision, specs are compared with the main branch; none of its usual names exists.",
        "Name the revision to compare with.",
    ),
    "MS853": Code(
        "no-merge-base",
        "The commit at which two branches parted is not in this clone.",
        "Fetch the whole history, or name the base itself.",
    ),
    "MS854": Code(
        "git-failed",
        "git cannot read the files of a revision.",
        "Look at what git says; fetch the objects where the clone leaves some out.",
    ),
    "MS855": Code(
        "unclear-side",
        "What was named is a path and a revision at once, or a path with nothing to compare it with.",
        "Write ./NAME for the path or refs/heads/NAME for the branch, and name both sides.",
    ),
    "MS856": Code(
        "no-specs",
        "Neither side has any mapping or provider spec where they were looked for.",
        "Run it beside `mappings` and `providers`, or name other folders with --in.",
    ),
    "MS857": Code(
        "accepted-without-reason",
        "A change of specs is accepted without a reason, or the file of accepted changes has another form.",
        "Write why the change is right; the next reviewer reads it.",
    ),
    "MS858": Code(
        "unknown-fingerprint",
        "The fingerprint to accept is that of no change between the two sides.",
        "Copy it from the report of `mapspec diff` with the same arguments.",
    ),
    "MS860": Code(
        "format-would-change-meaning",
        "`mapspec fmt` reads what it wrote, and the result did not say the same as before; nothing was written.",
        "Report it with the file; until then lay the file out by hand.",
    ),
    "MS861": Code(
        "not-formatted",
        "A spec is not in canonical form: the order of keys, spacing, quotes, or `*` where a named hole says more.",
        "Run `mapspec fmt` on the file; comments stay.",
        wrong="layers:\n  hf: 'layers.*'\n  wildcards: [layer]",
        right="layers:\n  hf: layers.{layer}",
    ),
    "MS862": Code(
        "variant-not-begun",
        "`mapspec new` was given a name that is none or is taken, or a file that it would write exists already.",
        "Choose another name, or another folder with --output; nothing is overwritten.",
    ),
    "MS863": Code(
        "variant-incomplete",
        "After all guesses, a rule gets no tensor of the checkpoint, or a tensor fits no rule.",
        "Write what the message says at the place shown, then run `mapspec lint` and `mapspec plan`.",
    ),
    "MS864": Code(
        "no-key-list",
        "A JSON file stands where a checkpoint or a full list of its tensors is expected.",
        "Write the list beside the checkpoint: `mapspec keys DIR --full --format json > keys.json`.",
    ),
    "MS865": Code(
        "keys-of-megatron",
        "`mapspec new` was given a Megatron-Core checkpoint; a variant is told by the names on the Hugging Face side.",
        "Give the Hugging Face folder with --keys, or none.",
    ),
    "MS866": Code(
        "old-spelling",
        "A spec uses a key under a name that it had in an earlier release.",
        "Run `mapspec migrate` on the file; comments and layout stay.",
    ),
}
