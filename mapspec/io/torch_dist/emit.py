"""The pickle opcodes that torch uses for numbers, texts and tuples, and the description of a single tensor.

Composed as bytes they are the same with every torch version, and need none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from mapspec.tensors import itemsize, numel

__all__ = ["emit_int", "emit_text", "emit_tuple", "scalars_pickle", "tensor_pickle"]

_TYPED_STORAGES = {
    "bool": b"BoolStorage",
    "uint8": b"ByteStorage",
    "int8": b"CharStorage",
    "int16": b"ShortStorage",
    "int32": b"IntStorage",
    "int64": b"LongStorage",
    "float16": b"HalfStorage",
    "bfloat16": b"BFloat16Storage",
    "float32": b"FloatStorage",
    "float64": b"DoubleStorage",
}


_TUPLES = (b")", b"\x85", b"\x86", b"\x87")


def emit_int(value: int) -> bytes:
    """A number that is not negative, in the shortest form as Python's pickler chooses it."""
    if value < 0x100:
        return b"K%c" % value
    if value < 0x10000:
        return b"M" + value.to_bytes(2, "little")
    if value < 0x80000000:
        return b"J" + value.to_bytes(4, "little")
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")  # signed: room for a zero bit on top
    return b"\x8a%c" % len(data) + data


def emit_text(value: str) -> bytes:
    """A text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def emit_tuple(values: Sequence[int]) -> bytes:
    """A tuple of numbers."""
    body = b"".join(map(emit_int, values))
    return b"(" + body + b"t" if len(values) > 3 else body + _TUPLES[len(values)]


def scalars_pickle(dtypes: Mapping[str, str]) -> bytes:
    """The `data.pkl` for a dictionary of tensors without axes, in the order of `data/0`, `data/1`, and so on."""
    body = b"".join(
        emit_text(name) + tensor_pickle(dtype, (), key=str(i))[2:-1] for i, (name, dtype) in enumerate(dtypes.items())
    )
    return b"\x80\x02}(" + body + b"u."


def tensor_pickle(dtype: str, shape: Sequence[int], key: str = "0") -> bytes:
    """The `data.pkl` that `torch.save` writes for a dense tensor of that shape (in elements), in pickle protocol 2.

    `key` names the record of its data, `data/KEY`. Data types that have no storage class of their own come as an
    untyped storage and name themselves at the end.
    """
    memo = 0

    def put() -> bytes:
        nonlocal memo
        memo += 1
        return b"q%c" % (memo - 1)

    def put_tuple(values: Sequence[int]) -> bytes:
        return emit_tuple(values) + (put() if values else b"")

    typed = _TYPED_STORAGES.get(dtype)
    count = numel(shape) * (1 if typed else itemsize(dtype))
    return b"".join(
        [
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v%c\n" % (b"2" if typed else b"3") + put(),
            b"((" + emit_text("storage") + put(),
            (b"ctorch\n%b\n" % typed if typed else b"ctorch.storage\nUntypedStorage\n") + put(),
            emit_text(key) + put() + emit_text("cpu") + put() + emit_int(count) + b"t" + put() + b"QK\x00",
            put_tuple(shape) + put_tuple(_strides(shape)),
            b"\x89ccollections\nOrderedDict\n" + put() + b")R" + put(),
            b"" if typed else b"ctorch\n%b\n" % dtype.encode() + put(),
            b"t" + put() + b"R" + put() + b".",
        ]
    )


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))
