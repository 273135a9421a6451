"""run_config.yaml, the file from which Megatron-Bridge rebuilds a model: written, and read without running anything.

Form (Bridge 0.3 to 0.6): section `model` with `_target_`, the import path of the provider class, and one key per field.
A function, class or dtype is `{_target_: path, _call_: false}`, an enum member `{_target_: class, _call_: true,
_args_: [value]}`, a partial `{_target_: path, _partial_: true, ...}`. Bridge imports these paths; here they are only
compared with a fixed table.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ruamel.yaml import YAML

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.provider.objects import PATHS, import_path
from mapspec.provider.provider import Provider
from mapspec.provider.resolve import Resolved
from mapspec.provider.spec import ProviderSpec
from mapspec.schema import provider_v1 as v1

__all__ = ["provider_fields_from_run_config", "run_config_yaml"]

_ENUM = "megatron.core.transformer.enums.AttnBackend"
_ENUM_VALUES = {"flash": 1, "fused": 2, "unfused": 3, "local": 4, "auto": 5}


def run_config_yaml(model: Provider | Resolved, *, megatron_bridge: str = "0.6") -> str:
    """Text of run_config.yaml for a checkpoint of this model.

    Args:
        model: finalized on the way, on a copy.
        megatron_bridge: version that has to read the file; the newest form of the spec that is not newer is written.

    Raises:
        SpecError: findings of `finalize()`; a version older than all forms, or a field whose object has no import path
            (MS445).
    """
    provider = model.copy() if isinstance(model, Provider) and model._final is None else model
    provider = Provider(provider) if isinstance(provider, Resolved) else provider
    provider.finalize()
    spec = provider.resolved.spec
    form = _form(spec, megatron_bridge)
    section: dict[str, Any] = {"_target_": form.target}
    for name, value in provider.fields.items():
        if name not in form.omit:
            kind = spec.entries[name].decl.kind if name in spec.entries else "plain"
            section[form.rename.get(name, name)] = _written(name, kind, value)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    out = io.StringIO()
    yaml.dump({"model": dict(sorted(section.items()))}, out)
    return out.getvalue()


def _form(spec: ProviderSpec, version: str) -> v1.BridgeFormat:
    older = [form for form in spec.model.bridge if _series(form.since) <= _series(version)]
    if not older:
        first = spec.model.bridge[0].since if spec.model.bridge else "none"
        message = f"`{spec.name}` knows no run_config.yaml for Megatron-Bridge {version}"
        raise SpecError(Diagnostic("MS445", message, spec.span("bridge"), help=f"the oldest form is that of {first}"))
    return max(older, key=lambda form: _series(form.since))


def _series(version: str) -> tuple[int, ...]:
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:2])


def _written(name: str, kind: v1.FieldKind, value: Any) -> Any:
    if kind == "attention_backend" and isinstance(value, str):
        import_path(kind, value)
        return {"_args_": [_ENUM_VALUES[value]], "_call_": True, "_target_": _ENUM}
    if kind != "plain" and isinstance(value, str):
        return {"_call_": False, "_target_": import_path(kind, value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_written(name, "plain", item) for item in value]
    if isinstance(value, dict):
        return {str(key): _written(name, "plain", item) for key, item in value.items()}
    message = f"`{name}` is {value!r}, which a text file cannot name"
    raise SpecError(Diagnostic("MS445", message, help="set the field to plain data or to one of the known names"))


def provider_fields_from_run_config(
    spec: ProviderSpec, run_config: Mapping[str, Any], *, where: str = "run_config.yaml"
) -> dict[str, Any]:
    """The fields of `spec` that a run_config.yaml gives, by plain values; what the spec does not have is left out.

    Args:
        run_config: the parsed file.
        where: its path, for findings.

    Raises:
        SpecError: there is no model section, its class is none that the spec reads, or a field holds an object that
            the table of names does not have (MS445).
    """
    model = run_config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("_target_"), str):
        message = "there is no section `model` with a `_target_`"
        raise SpecError(Diagnostic("MS445", message, where=where, help="give the model's config otherwise"))
    target = model["_target_"]
    readable = [(form, {form.target, *form.reads}) for form in spec.model.bridge]
    forms = [form for form, names in readable if any(fnmatchcase(target, name) for name in names)]
    if not forms:
        known = sorted({form.target for form in spec.model.bridge})
        message = f"the model is built by `{target}`, which `{spec.name}` does not read"
        help_ = f"it reads {', '.join(known)}"
        raise SpecError(Diagnostic("MS445", message, where=where, hint=nearest(target, known), help=help_))
    former = {theirs: ours for form in forms for ours, theirs in form.rename.items()}
    out: dict[str, Any] = {}
    found: list[Diagnostic] = []
    for name, value in model.items():
        renamed = former.get(str(name), str(name))
        mine: str = renamed if value is not None and model.get(renamed) is None else str(name)
        if mine in spec.entries and out.get(mine) is None:
            try:
                out[mine] = _read(mine, spec.entries[mine].decl.kind, value)
            except LookupError as error:
                message = f"`model.{name}`: {error.args[0]}"
                found.append(Diagnostic("MS445", message, where=where, help="give the model's config otherwise"))
    if found:
        raise SpecError(found)
    return {name: out[name] for name in spec.entries if name in out}


def _read(name: str, kind: v1.FieldKind, value: Any) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    path, table = str(value["_target_"]), PATHS.get(kind, {})
    if path == _ENUM:
        args = value.get("_args_") or [None]
        member = next((m for m, number in _ENUM_VALUES.items() if number == args[0]), value.get("_name_"))
        if member in table:
            return member
        raise LookupError(f"`{path}` has no member {args[0]!r}")
    known = next((short for short, full in table.items() if full == path), None)
    last = path.rpartition(".")[2]
    if known is None and path.startswith(("torch.", "megatron.")) and last in table:
        known = last  # torch spells its functions by the module that implements them, e.g. torch._C._nn.gelu
    if known is None:
        what = f"known for this field: {', '.join(table)}" if table else "the field holds plain data"
        raise LookupError(f"it is the object `{path}`; {what}")
    return known
