"""Names of tensors with holes: parse, fill and match.

`layers.{layer}.weight` has a hole for an index; `{**rest}` at the end stands for any remaining dotted path.
`*` and `**`, as users of Megatron-Bridge write them, are read as unnamed holes; `wildcards` says
which axes they stand for.
Patterns are anchored at both ends. A hole matches decimal digits without leading zeros, and something other than
digits stands between two holes, so filling and matching are exact inverses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Hole", "NameSyntaxError", "Pattern", "join", "parse_name"]

_TOKEN = re.compile(
    r"\{(?P<rest>\*\*)?(?P<hole>[A-Za-z][A-Za-z0-9_]*)\}|(?P<stars>\*+)|(?P<bad>[{}])|(?P<text>[^{}*]+)"
)

_INDEX = "0|[1-9][0-9]{0,17}"  # no index has more digits, and Python refuses to read thousands of them


class NameSyntaxError(ValueError):
    """A name pattern cannot be read; `column` counts from 0 within the pattern."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True, slots=True)
class Hole:
    """A place in a name that is filled in. `rest` holes take any dotted path, others an index."""

    name: str
    rest: bool = False

    def __str__(self) -> str:
        return "{**" + self.name + "}" if self.rest else "{" + self.name + "}"


@dataclass(frozen=True)
class Pattern:
    """A name as a sequence of literal texts and holes. Unnamed wildcards are holes called `_1`, `_2`, ..."""

    parts: tuple[str | Hole, ...]

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return "".join(str(part) for part in self.parts)

    @cached_property
    def holes(self) -> tuple[str, ...]:
        """Names of the index holes, in order of appearance, each once."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, Hole) and not p.rest))

    @cached_property
    def rest(self) -> str | None:
        """Name of the `{**rest}` hole, if there is one."""
        return next((p.name for p in self.parts if isinstance(p, Hole) and p.rest), None)

    @cached_property
    def template(self) -> str:
        """The pattern for `%`: one `%s` per hole occurrence, in order of `occurrences`."""
        return "".join("%s" if isinstance(p, Hole) else p.replace("%", "%%") for p in self.parts)

    @cached_property
    def occurrences(self) -> tuple[str, ...]:
        """Names of all holes in the order of `template`."""
        return tuple(p.name for p in self.parts if isinstance(p, Hole))

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """What the pattern matches, with a group per hole."""
        seen: set[str] = set()
        out = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(re.escape(part))
            elif part.name in seen:
                out.append(f"(?P={part.name})")
            else:
                seen.add(part.name)
                body = r".+" if part.rest else _INDEX
                out.append(f"(?P<{part.name}>{body})")
        return re.compile("".join(out), re.DOTALL)  # names may have line ends in them

    def fill(self, values: Mapping[str, int | str]) -> str:
        """The name with every hole filled in. Raises `KeyError` for a hole without a value."""
        return self.template % tuple(values[name] for name in self.occurrences)

    def match(self, name: str) -> bool:
        """Whether `name` fits the pattern."""
        return self.regex.fullmatch(name) is not None

    def captures(self, name: str) -> dict[str, int | str] | None:
        """The values of the holes if `name` fits the pattern, else `None`. The inverse of `fill`."""
        found = self.regex.fullmatch(name)
        if found is None:
            return None
        return {key: text if key == self.rest else int(text) for key, text in found.groupdict().items()}

    def rename(self, names: Mapping[str, str]) -> Pattern:
        """The same pattern with holes renamed; names that are not in `names` stay."""
        return Pattern(tuple(p if isinstance(p, str) else Hole(names.get(p.name, p.name), p.rest) for p in self.parts))

    @cached_property
    def unnamed(self) -> tuple[str, ...]:
        """Names of the index holes that were written as `*`."""
        return tuple(name for name in self.holes if name.startswith("_"))

    def named(self, axes: Sequence[str]) -> Pattern:
        """The pattern with its `*` named after the axes that they stand for, first to last."""
        return self.rename(dict(zip(self.unnamed, axes, strict=False)))


def parse_name(text: str) -> Pattern:
    """Read a name pattern.

    Raises:
        NameSyntaxError: a stray brace, `***`, two holes side by side, or `**` that is not the last part.
    """
    parts: list[str | Hole] = []
    counter = 0
    position = 0
    for found in _TOKEN.finditer(text):
        assert found.start() == position, "the token expression covers every character"
        position = found.end()
        if found["bad"]:
            raise NameSyntaxError("a hole is written `{name}`, a wildcard `*` or `**`", found.start())
        if found["text"]:
            parts.append(found["text"])
            continue
        if found["hole"]:
            hole = Hole(found["hole"], bool(found["rest"]))
        elif len(found["stars"]) <= 2:
            counter += 1
            hole = Hole(f"_{counter}", len(found["stars"]) == 2)
        else:
            raise NameSyntaxError(
                "`*` stands for an index, `**` for the rest of a name; `***` is neither", found.start()
            )
        if parts and isinstance(parts[-1], Hole):
            raise NameSyntaxError("two holes side by side cannot be told apart", found.start())
        if len(parts) > 1 and isinstance(parts[-2], Hole) and str(parts[-1]).isdecimal():
            raise NameSyntaxError("two holes with only digits between them cannot be told apart", found.start())
        parts.append(hole)
    for part in parts[:-1]:
        if isinstance(part, Hole) and part.rest:
            raise NameSyntaxError(f"`{part}` takes the rest of the name, so nothing can follow it", text.index("**"))
    return Pattern(tuple(parts))


def join(prefix: Pattern, name: Pattern) -> Pattern:
    """`prefix.name`, or the one that is not empty."""
    if not prefix.parts:
        return name
    if not name.parts:
        return prefix
    parts = (*prefix.parts, ".", *name.parts)
    merged: list[str | Hole] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return Pattern(tuple(merged))
