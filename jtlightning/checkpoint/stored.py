"""Tensors in a foreign file: where their numbers lie, checked before any memory is taken."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from jtlightning.checkpoint.layout import DTYPES
from jtlightning.checkpoint.pickle_parts import MalformedError, Placeholder

_MAX_DIMENSIONS = 32  # of NumPy
_MAX_SIZE = 2**48
_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in a file; tensors are views of it.

    `dtype` is one of `layout.DTYPES`, or None where the tensors tell; `size` counts its items
    (bytes, if `dtype` is None), `offset` is added to the tensors'.
    """

    key: str
    dtype: str | None
    size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage: offset and strides count items of `dtype`, one of `layout.DTYPES`."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """What it takes on its own, in bytes: more than the storage if it is expanded."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def view(self, numbers: np.ndarray) -> np.ndarray:
        """The array, in the memory of its storage's `numbers`, (N,)."""
        if 0 in self.shape:
            return np.empty(self.shape, numbers.dtype)
        size = numbers.itemsize
        strides = tuple(size * stride for stride in self.strides)
        return np.ndarray(self.shape, numbers.dtype, numbers.data, size * self.offset, strides)


@dataclass(slots=True)
class Slot:
    """A place in the tree that is filled after it is made."""

    content: StoredTensor | Placeholder | None = None


@dataclass(frozen=True)
class Contents:
    """What a foreign file holds.

    `tree` is made of containers, numbers, strings, `StoredTensor`s, `Slot`s and `Placeholder`s;
    `load` gives the numbers (N,) of a tensor's storage, with True bfloat16 as float32 instead of
    bits; `extra_bytes` is what all of that may take beyond the file's own size.
    """

    kind: str
    tree: Any
    load: Callable[[StoredTensor, bool], np.ndarray]
    extra_bytes: int = 0


def make_tensor(
    storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any
) -> StoredTensor:
    """A view, if it lies inside its storage.

    Raises:
        MalformedError: It does not, or its sizes are none.
    """
    itemsize = check_shape(shape, dtype)
    if not are_sizes(strides) or not is_size(offset) or len(shape) != len(strides):
        raise MalformedError(f"has a tensor of shape {_short(shape)} with impossible strides")
    items = storage.size if storage.dtype is not None else storage.size // itemsize
    begin = storage.offset + offset
    last = begin + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= items:
        raise MalformedError(
            f"has a tensor of shape {_short(shape)} that reaches item {last} of {items}"
        )
    return StoredTensor(storage.key, dtype, begin, tuple(shape), tuple(strides))


def check_shape(shape: Any, dtype: str) -> int:
    """The size of an item in bytes, if NumPy can have such an array.

    Raises:
        MalformedError: It cannot.
    """
    itemsize = DTYPES[dtype].itemsize
    # NumPy's limit holds even where a 0 makes the array empty.
    if not are_sizes(shape) or math.prod(n or 1 for n in shape) * itemsize >= 2**62:
        raise MalformedError(f"has a tensor of the impossible shape {_short(shape)}")
    return itemsize


def read_numbers(
    file: BinaryIO, begin: int, size: int, dtype: str, crc: int | None, widen: bool
) -> np.ndarray:
    """The numbers (N,) of a storage of `size` bytes.

    Raises:
        MalformedError: Their checksum is wrong.
    """
    bits = DTYPES[dtype]
    widened = widen and dtype == "BF16"
    count = size // bits.itemsize
    numbers = np.empty(count, np.float32 if widened else bits)
    file.seek(begin)
    found = done = 0
    while done < count:
        data = file.read(min(_CHUNK_BYTES, (count - done) * bits.itemsize))
        if not data or len(data) % bits.itemsize:
            raise MalformedError("became shorter while it was read")
        found = zlib.crc32(data, found)
        part = np.frombuffer(data, bits)
        numbers[done : done + len(part)] = widen_bfloat16(part) if widened else part
        done += len(part)
    found = zlib.crc32(file.read(size % bits.itemsize), found)
    if crc is not None and found != crc:
        raise MalformedError("is damaged: the checksum of a storage is wrong")
    return numbers


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 as float32: the upper half of its bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def is_size(value: Any) -> bool:
    """Whether it is a possible number of items."""
    return type(value) is int and 0 <= value < _MAX_SIZE


def are_sizes(value: Any) -> bool:
    """Whether it is a possible shape."""
    return (
        isinstance(value, tuple | list)
        and len(value) <= _MAX_DIMENSIONS
        and all(is_size(n) for n in value)
    )


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, tuple) and len(value) <= 8 else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
