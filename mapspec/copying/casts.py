"""Casts between floating dtypes on blocks of bits, rounding to nearest even as torch does, without importing torch.

torch takes seconds to import and 250 MB. bfloat16 is the upper half of a float32, and numpy knows the other dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CASTABLE", "caster"]

type Array = npt.NDArray[Any]

CASTABLE = frozenset({"float16", "bfloat16", "float32", "float64"})

_NUMPY: dict[str, Any] = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
_BITS: dict[str, Any] = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}


def caster(source: str, target: str) -> Callable[[Array], Array]:
    """A function from bits of `source` to bits of `target` (unsigned integers of the dtypes' sizes), of any shape."""
    assert {source, target} <= CASTABLE, f"no cast from {source} to {target}"

    def cast(values: Array) -> Array:
        with np.errstate(all="ignore"):  # overflow becomes infinity, as it should
            return _narrow(_widen(values, source), target)

    return cast


def _widen(bits: Array, source: str) -> Array:
    if source == "bfloat16":
        wide: Array = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.view(_NUMPY[source])


def _narrow(values: Array, target: str) -> Array:
    if target == "float64":
        return values.astype(np.float64).view(np.uint64)
    # By way of float32, also from float64, as torch does it.
    single: Array = values.astype(np.float32)
    if target != "bfloat16":
        return single.astype(_NUMPY[target]).view(_BITS[target])
    wide = single.view(np.uint32)
    result: Array = ((wide + (0x7FFF + ((wide >> 16) & 1))) >> 16).astype(np.uint16)
    unordered = np.isnan(single)
    if unordered.any():
        result[unordered] = 0x7FC0
    return result
