"""Files of `jt.save`, and other pickles of NumPy arrays, without Jittor."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from jtlightning.checkpoint.layout import DTYPES
from jtlightning.checkpoint.pickle_parts import (
    Budget,
    MalformedError,
    Placeholder,
    Rebuild,
    Window,
)
from jtlightning.checkpoint.stored import (
    Contents,
    Slot,
    Storage,
    StoredTensor,
    are_sizes,
    make_tensor,
)
from jtlightning.checkpoint.unpickler import Unpickler

#: `jt.save` appends the SHA-1 of the pickle and this.
_TAIL = b"HCAJSLHD"
_TAIL_BYTES = 20 + len(_TAIL)
_CHUNK_BYTES = 2**20


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = ""

    def name(self) -> str:
        return self.order + self.code


def read_jittor(file: BinaryIO, size: int, budget: Budget) -> Contents:
    """Read a pickle of containers and arrays; a checksum of Jittor's is verified.

    Raises:
        MalformedError: Damaged, or with bytes added.
    """
    end = _pickle_end(file, size)
    source = Window(file, 0, end)
    arrays = _Arrays()
    tree = Unpickler(source, budget, rebuild=arrays.rebuilders(), set_state=arrays.set_state).load()
    if source.position != end:
        raise MalformedError(f"is damaged: {end - source.position} bytes follow its pickle")
    return Contents("Jittor", tree, arrays.load)


def _pickle_end(file: BinaryIO, size: int) -> int:
    """Where the pickle ends, once its checksum is verified."""
    end = size - _TAIL_BYTES
    if end < 0:
        return size
    file.seek(end)
    tail = file.read(_TAIL_BYTES)
    if not tail.endswith(_TAIL):
        return size
    file.seek(0)
    digest, left = hashlib.sha1(usedforsecurity=False), end
    while left and (data := file.read(min(left, _CHUNK_BYTES))):
        digest.update(data)
        left -= len(data)
    if digest.digest() != tail[:20]:
        raise MalformedError("is damaged: its checksum is wrong")
    return end


class _Arrays:
    """The arrays of a pickle; their numbers stay the bytes that were read."""

    def __init__(self) -> None:
        self._numbers: list[bytes] = []

    def load(self, tensor: StoredTensor, widen: bool) -> np.ndarray:
        """The numbers, read-only: NumPy has no bfloat16, so there is nothing to widen."""
        data, dtype = self._numbers[int(tensor.storage)], DTYPES[tensor.dtype]
        return np.frombuffer(data, dtype) if data else np.empty(0, dtype)

    def rebuilders(self) -> dict[str, Rebuild]:
        cores = ("numpy.core", "numpy._core")  # NumPy 2 moved it
        return {
            "numpy.dtype": _dtype,
            "jittor.jittor_core.Var": _var,
            **{f"{core}.multiarray._reconstruct": lambda _: Slot() for core in cores},
            **{f"{core}.numeric._frombuffer": self._from_buffer for core in cores},
        }

    def set_state(self, target: Any, state: Any) -> None:
        """Fill an array, or tell a dtype its byte order."""
        if not isinstance(state, tuple):
            return
        if isinstance(target, _Dtype):
            swapped = len(state) > 1 and state[1] not in ("<", "|", "=")
            target.order = ">" if swapped else ""
        elif isinstance(target, Slot):
            if len(state) != 5:
                raise MalformedError("has an array whose content is not one")
            _, shape, dtype, fortran, data = state
            target.content = self._make(shape, dtype, fortran is True, data)

    def _from_buffer(self, arguments: tuple[Any, ...]) -> Slot:
        """Protocol 5: (data, dtype, shape, order)."""
        if len(arguments) != 4:
            raise MalformedError("has an array whose content is not one")
        data, dtype, shape, order = arguments
        return Slot(self._make(shape, dtype, order == "F", data))

    def _make(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> StoredTensor | Placeholder:
        if not isinstance(dtype, _Dtype):
            raise MalformedError("has an array without a dtype")
        known = _KNOWN.get(dtype.name())
        if known is None or not isinstance(data, bytes):  # of objects, strings, complex numbers
            return Placeholder(f"numpy.ndarray[{dtype.name()}]")
        if not are_sizes(shape):
            raise MalformedError("has an array without a shape")
        itemsize = DTYPES[known].itemsize
        if math.prod(shape) * itemsize != len(data):
            raise MalformedError(f"has an array of {len(data)} bytes that its shape contradicts")
        self._numbers.append(data)
        storage = Storage(str(len(self._numbers) - 1), known, len(data) // itemsize)
        fastest_first = shape if fortran else shape[::-1]
        strides = [math.prod(fastest_first[:i]) for i in range(len(shape))]
        if 0 in shape:  # or they may be beyond all limits
            strides = [0] * len(shape)
        return make_tensor(storage, known, 0, shape, strides if fortran else strides[::-1])


#: Names of safetensors by NumPy's, without the byte order.
_KNOWN = {dtype.str[1:]: name for name, dtype in DTYPES.items() if name != "BF16"}


def _dtype(arguments: tuple[Any, ...]) -> _Dtype:
    if not arguments or not isinstance(arguments[0], str) or len(arguments[0]) > 40:
        return _Dtype("?")
    return _Dtype(arguments[0])


def _var(arguments: tuple[Any, ...]) -> Any:
    if not arguments or not isinstance(arguments[0], Slot | Placeholder):
        raise MalformedError("has a variable that is no array")
    return arguments[0]
