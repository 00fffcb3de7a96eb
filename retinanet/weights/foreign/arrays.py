"""Tensors of torch and arrays of numpy as a pickle describes them: names, shapes and bytes, none of which is
believed before it fits.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}

NUMBERS = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "c8": torch.complex64,
    "c16": torch.complex128,
}
"""numpy's codes; objects, text, dates and records have none here."""

DTYPES = {str(dtype): dtype for dtype in (*STORAGES.values(), *NUMBERS.values())}
"""torch's own names."""


@dataclass(frozen=True)
class Placeholder:
    """A class, a function, or what they would have made: only the name is kept."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A row of numbers outside the pickle, from the one at `start`, known by its key."""

    key: str
    dtype: torch.dtype
    start: int


@dataclass(eq=False)
class Stored:
    """A tensor of torch, whose storage comes after the pickle."""

    storage: Storage
    offset: int
    size: Any
    stride: Any
    tensor: Tensor | None = None


@dataclass(eq=False)
class Array:
    """An array of numpy; its state, which comes later, ends in (shape, dtype, whether the first axis is the
    fastest, bytes).
    """

    state: Any = None
    tensor: Tensor | Placeholder | None = None


@dataclass(eq=False)
class Dtype:
    """A dtype of numpy; the second part of its state, which comes later, is the byte order."""

    code: Any
    state: Any = None

    @property
    def of_numbers(self) -> bool:
        return isinstance(self.code, str) and self.code in NUMBERS

    def read(self, data: Any) -> Tensor:
        """[N] the numbers in some bytes, which Python 2 wrote as text."""
        raw = bytearray(data.encode("latin-1") if isinstance(data, str) else memoryview(data))
        return numbers(raw, NUMBERS[self.code], big_endian=self.state is not None and self.state[1] == ">")


class Storages:
    """All storages of a file: declared by the pickle, supplied later, then seen through tensors."""

    def __init__(self, big_endian: bool = False) -> None:
        self.big_endian = big_endian
        self.claims: dict[str, int] = {}  # the bytes that a storage should hold,
        self.widths: dict[str, int] = {}  # those of one element,
        self.bytes: dict[str, bytearray] = {}  # those that it holds,
        self.values: dict[tuple[str, torch.dtype], Tensor] = {}  # and [N] the same as numbers

    def declare(
        self, kind: Any, key: Any, _device: Any, count: Any, view: Any = None
    ) -> Storage | Placeholder:
        """What torch's pickles say of a storage; a part of it is a view (key, start, count) to torch before
        0.4.
        """
        if not isinstance(kind, Placeholder) or not isinstance(key, str) or len(key) > 100:
            raise CheckpointError("its pickle refers to a storage without a type or a name")
        if kind.name not in STORAGES:
            return kind
        dtype, start = STORAGES[kind.name], view[1] if view else 0
        whole((count, start))
        self.claims[key] = max(self.claims.get(key, 0), count * dtype.itemsize)
        self.widths.setdefault(key, dtype.itemsize)
        return Storage(key, dtype, start)

    def supply(self, key: str, data: bytes) -> None:
        """The bytes of a storage."""
        if len(data) < self.claims[key]:
            raise CheckpointError(
                f"storage {key} should hold {self.claims[key]} bytes and holds {len(data)}; is the file "
                f"truncated?"
            )
        self.bytes[key] = bytearray(data)

    def tensor(self, stored: Stored) -> Tensor:
        """A view of its storage, as in torch: two tensors of one storage share it."""
        storage, (offset,) = stored.storage, whole((stored.offset,))
        size, stride = whole(stored.size), whole(stored.stride)
        place = storage.key, storage.dtype
        if storage.key not in self.bytes:
            raise CheckpointError(f"it lacks the bytes of storage {storage.key}; is it truncated?")
        if place not in self.values:
            self.values[place] = numbers(self.bytes[storage.key], storage.dtype, self.big_endian)
        values, count = self.values[place], math.prod(size)
        last = storage.start + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and (last >= values.numel() or count > values.numel()):
            raise CheckpointError(
                f"a tensor of shape {size} claims more than its storage of {values.numel()} numbers"
            )
        return values.as_strided(size, stride, storage.start + offset) if count else values.new_empty(size)


def array(state: Any) -> Tensor | Placeholder:
    """An array of numbers; of anything else, as objects or text, a placeholder."""
    shape, dtype, fortran, data = state[-4:]
    if not isinstance(dtype, Dtype) or not dtype.of_numbers:
        return Placeholder("numpy.ndarray")
    shape, values = whole(shape), dtype.read(data)
    if math.prod(shape) != values.numel():
        raise CheckpointError(f"an array of shape {shape} does not fit its {len(data)} bytes")
    return values.view(shape[::-1]).permute(tuple(range(len(shape)))[::-1]) if fortran else values.view(shape)


def numbers(data: bytearray, dtype: torch.dtype, big_endian: bool) -> Tensor:
    """[N] the numbers in some bytes, which they share where they can."""
    if not data:
        return torch.empty(0, dtype=dtype)
    raw, width = torch.frombuffer(data, dtype=torch.uint8), dtype.itemsize // (2 if dtype.is_complex else 1)
    if big_endian != (sys.byteorder == "big"):
        raw = raw.view(-1, width).flip(1).flatten()
    return raw != 0 if dtype == torch.bool else raw.view(dtype)  # torch has no idea what a bool of 2 is


def whole(values: Any) -> tuple[int, ...]:
    """A shape or the like: a few whole numbers, none negative, none so large that a product of some
    overflows.
    """
    if (
        not isinstance(values, tuple | list)
        or len(values) > 64
        or not all(type(n) is int and 0 <= n < 2**48 for n in values)
    ):
        raise CheckpointError("a tensor has a shape or a place that is none")
    return tuple(values)
