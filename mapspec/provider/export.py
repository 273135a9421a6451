"""Provider fields -> HF config: the inverse of `resolve`, in the spelling of a reference config or of a dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mapspec.diagnostics import Diagnostic, nearest
from mapspec.errors import SpecError
from mapspec.expr import ExprError, parse_expr
from mapspec.provider.pattern import split_fields
from mapspec.provider.resolve import resolve_provider
from mapspec.provider.spec import Entry, ProviderSpec
from mapspec.provider.values import NoCounterpartError, same, to_hf
from mapspec.schema import provider_v1 as v1

__all__ = ["to_hf_config"]

_ABSENT = object()


def to_hf_config(
    spec: ProviderSpec,
    fields: Mapping[str, Any],
    *,
    dialect: str | None = None,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The HF config of a model with these fields.

    With a reference every key keeps its place, its spelling and, where the field has not changed, its very value;
    keys without a field stay. What the reference lacks is appended only if it differs from what its absence means.

    Args:
        fields: field -> plain value; the unified pattern of a finalized provider is understood.
        dialect: entry of the spec's `dialects`; by default the reference's own, else the first. Keys of a reference
            that another dialect spells are replaced.
        reference: the config of the checkpoint that the model came from.

    Raises:
        SpecError: an unknown dialect, a field that is needed and not given, or a value that no HF config can say
            (MS446); findings of the reference.
    """
    if dialect is not None and dialect not in spec.model.dialects:
        known = ", ".join(spec.model.dialects)
        message = f"`{spec.name}` has no dialect `{dialect}`"
        hint = nearest(dialect, spec.model.dialects)
        raise SpecError(Diagnostic("MS446", message, where=f"dialect {dialect}", hint=hint, help=f"there are: {known}"))
    writer = _Writer(spec, split_fields(fields), dialect, reference)
    config = writer.fresh() if reference is None else writer.updated(reference)
    if writer.found:
        raise SpecError(sorted(set(writer.found), key=Diagnostic.sort_key))
    return config


class _Writer:
    def __init__(
        self, spec: ProviderSpec, fields: Mapping[str, Any], dialect: str | None, reference: Mapping[str, Any] | None
    ) -> None:
        self.spec, self.fields = spec, dict(fields)
        self.translate = dialect is not None and reference is not None
        self.dialect = dialect or _dialect_of(spec, reference or {})
        self.found: list[Diagnostic] = []
        for entry in spec.entries.values():
            if entry.section == "fields" and (derive := _decl(entry).derive) is not None:
                try:
                    self.fields[entry.name] = self.evaluate(derive, self.fields)
                except ExprError:
                    continue  # what it is computed from was not given; then it stays as it was given itself

    # --- without a reference ------------------------------------------------------------------------------------

    def fresh(self) -> dict[str, Any]:
        config = {key: written.value for key, written in self.spec.model.export.add.items()}
        for group, section in self.spec.sections.items():
            if not self.applies(group, self.fields):
                continue
            for name in section.fields:
                entry = self.spec.entries[name]
                key = self.key_for(entry)
                if key is None:
                    continue
                value = self.written(entry, self.fields)
                if value is not _ABSENT:
                    self.put(config, entry, key, value, self.preferred())
                elif _decl(entry).default is None:
                    self.report(entry, f"the fields lack `{name}`, without which no config has `{key}`")
            for key, waiver in section.waived.items():
                if waiver.accepts and waiver.write:
                    config.setdefault(key, waiver.accepts[0])
        return config

    # --- with a reference ---------------------------------------------------------------------------------------

    def updated(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        base = resolve_provider(self.spec, reference, where="the reference config").values()
        config: dict[str, Any] = {}
        for key, value in reference.items():
            if key in self.spec.model.export.drop:
                continue
            if key not in self.spec.keys:
                config[key] = value
                continue
            entry, spelling = self.spec.keys[key]
            mine = key if self.belongs(spelling) else self.key_for(entry)
            changed = self.changed(entry, base)
            if mine is None:
                continue
            if mine == key and not changed and (value is None or not self.respell(entry, key)):
                config[key] = value
                continue
            new = self.written(entry, self.fields if changed else base)
            if new is _ABSENT:
                config[mine] = value
            else:
                self.put(config, entry, mine, new, self.preferred(None if self.translate else value))
        for entry in self.spec.entries.values():
            if entry.section != "fields" or _decl(entry).derive is not None:
                continue  # a computed field follows from what is written already
            if not any(key in config for key in _decl(entry).hf):
                own = self.key_for(entry)
                if own is not None and self.changed(entry, base):
                    self.put(config, entry, own, self.written(entry, self.fields), self.preferred())
        for key, written in self.spec.model.export.add.items():
            config.setdefault(key, written.value)
        return config

    def changed(self, entry: Entry, base: Mapping[str, Any]) -> bool:
        """Whether the field says something else than the reference does."""
        if entry.name not in self.fields or not self.applies(entry.group, self.fields):
            return False
        mine, theirs = self.fields[entry.name], base.get(entry.name, _ABSENT)
        if same(mine, theirs):
            return False
        return not same(self.written(entry, self.fields), self.written(entry, base))

    def respell(self, entry: Entry, key: str) -> bool:
        """Whether a list of names has to be written in another vocabulary."""
        return self.translate and _decl(entry).hf[key].names is not None

    def belongs(self, spelling: v1.Spelling) -> bool:
        """Whether a key of the reference stays under the dialect that was asked for."""
        return not self.translate or not spelling.dialects or self.dialect in spelling.dialects

    # --- both ---------------------------------------------------------------------------------------------------

    def key_for(self, entry: Entry) -> str | None:
        """The key that the dialect writes for a field; `None` where it writes none."""
        return next((k for k, s in _decl(entry).hf.items() if s.dialects is None or self.dialect in s.dialects), None)

    def written(self, entry: Entry, fields: Mapping[str, Any]) -> Any:
        write = _decl(entry).write
        if write is None or entry.name not in fields:
            return fields.get(entry.name, _ABSENT)
        try:
            return self.evaluate(write, fields)
        except ExprError as error:
            self.report(entry, f"`{entry.name}` cannot be written: {error}")
            return _ABSENT

    def put(self, config: dict[str, Any], entry: Entry, key: str, value: Any, prefer: tuple[str, ...]) -> None:
        try:
            config[key] = to_hf(_decl(entry), key, value, self.spec.model.maps, prefer)
        except NoCounterpartError as error:
            self.report(entry, f"`{entry.name}`: {error}", help=f"known: {', '.join(error.known)}")

    def preferred(self, value: Any = None) -> tuple[str, ...]:
        """HF names to choose where several mean the same: those of the value that is replaced, then the dialect's."""
        own = tuple(str(v) for v in value) if isinstance(value, list) else (str(value),) if value is not None else ()
        return (*own, *self.spec.model.dialects[self.dialect].names)

    def applies(self, group: str | None, fields: Mapping[str, Any]) -> bool:
        return group is None or bool(self.evaluate(self.spec.model.when[group].condition, fields))

    def evaluate(self, text: str, fields: Mapping[str, Any]) -> Any:
        def lookup(name: str) -> Any:
            if name in self.spec.model.values:
                return self.evaluate(self.spec.model.values[name], fields)
            return fields.get(name)

        return parse_expr(text)({}, lookup)

    def report(self, entry: Entry, message: str, *, help: str | None = None) -> None:
        self.found.append(Diagnostic("MS446", message, self.spec.span(*entry.path, of_key=True), help=help))


def _decl(entry: Entry) -> v1.ProviderField:
    assert isinstance(entry.decl, v1.ProviderField)
    return entry.decl


def _dialect_of(spec: ProviderSpec, config: Mapping[str, Any]) -> str:
    """The dialect that the config is written in: the one that most of its keys and names belong to."""
    score = dict.fromkeys(spec.model.dialects, 0)
    for key, value in config.items():
        if key in spec.keys and value is not None:
            spelling = spec.keys[key][1]
            for dialect in spelling.dialects or ():
                names = spec.model.dialects[dialect].names
                score[dialect] += 1 + (isinstance(value, list) and any(name in names for name in value))
    return max(score, key=lambda dialect: score[dialect])
