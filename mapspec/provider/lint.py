"""`mapspec lint` for provider specs: names, and both directions on the reference configs."""

from __future__ import annotations

from pathlib import Path

from mapspec.diagnostics import Diagnostic
from mapspec.errors import SpecError
from mapspec.io.json_config import read_config
from mapspec.provider.export import to_hf_config
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import ProviderSpec, read_provider

__all__ = ["lint_provider"]


def lint_provider(path: Path) -> list[Diagnostic]:
    """Everything that is wrong with the provider spec at `path`, on its own and for its reference configs.

    A config that does not come back as it was from its own fields is a finding too (MS446).
    """
    spec = read_provider(path)
    found: list[Diagnostic] = []
    for i, name in enumerate(spec.model.metadata.references):
        file = _config(spec, name)
        if file is None:
            help_ = "put NAME.json into `configs/` beside the spec or into `tests/configs/` of the project"
            message = f"there is no config for the reference `{name}`"
            found.append(Diagnostic("MS307", message, spec.span("metadata", "references", i), help=help_))
            continue
        config = read_config(file)
        try:
            resolved = resolve_provider(spec, config, where=str(file))
        except SpecError as error:
            found += [d.with_note(f"for the reference config `{name}`") for d in error.diagnostics]
            continue
        fields = {key: field.value for key, field in resolved.fields.items()}
        back = to_hf_config(spec, fields, reference=config)
        for key in sorted({*config, *back}):
            if config.get(key) != back.get(key):
                message = f"`{key}` of `{name}` is {config.get(key)!r}, and comes back as {back.get(key)!r}"
                found.append(Diagnostic("MS446", message, spec.span("metadata", "references", i)))
    return found


def _config(spec: ProviderSpec, name: str) -> Path | None:
    here = spec.document.path.resolve().parent
    folders = [here / "configs", *(parent / "tests" / "configs" for parent in here.parents)]
    return next((f for folder in folders if (f := folder / f"{name}.json").is_file()), None)
