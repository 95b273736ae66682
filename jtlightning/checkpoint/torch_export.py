"""Checkpoint files that PyTorch reads, with `weights_only=True`, written without PyTorch."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jtlightning.checkpoint.atomic import atomic_file
from jtlightning.checkpoint.layout import DTYPES
from jtlightning.checkpoint.torch_file import STORAGES, TENSORS
from jtlightning.checkpoint.zip_records import archive

_ROOT = "archive"
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
_TENSOR_OF = {dtype: name for name, dtype in TENSORS.items()}


def write_torch(
    path: Path | str, tree: Mapping[str, Any], *, bfloat16: Collection[str] = ()
) -> None:
    """Write a file for `torch.load`, atomically; an existing one is replaced.

    Args:
        path: Usually `*.pth`.
        tree: A state dict, or dicts, lists and tuples of arrays, numbers, strings and None; arrays
            become tensors, each with its own storage.
        bfloat16: Arrays that are bits of bfloat16 (uint16), by path, joined by `/`.

    Raises:
        ValueError: A value that PyTorch's safe reader has no place for, named; nothing was written.
        CheckpointError: The system refused; the old file is intact.
    """
    pickled = _Pickled(frozenset(bfloat16))
    pickled.value(tree, ())
    with atomic_file(Path(path)) as write:
        for piece in archive(pickled.records()):
            write(piece)


class _Pickled:
    """The pickle of a tree, and the storages that it refers to."""

    def __init__(self, bfloat16: frozenset[str]) -> None:
        self._bfloat16 = bfloat16
        self._out = bytearray(b"\x80\x02")
        self._arrays: list[tuple[np.ndarray, str]] = []

    def records(self) -> Iterator[tuple[str, memoryview | bytes]]:
        yield f"{_ROOT}/data.pkl", bytes(self._out) + b"."
        yield f"{_ROOT}/byteorder", b"little"
        for index, (array, dtype) in enumerate(self._arrays):
            flat = np.ascontiguousarray(array, DTYPES[dtype]).reshape(-1)
            yield f"{_ROOT}/data/{index}", flat.view(np.uint8).data
        yield f"{_ROOT}/version", b"3\n"

    def value(self, value: Any, path: tuple[str, ...]) -> None:
        out = self._out
        if isinstance(value, np.ndarray):
            self._tensor(value, path)
        elif isinstance(value, Mapping):
            out += b"}("
            for name, item in value.items():
                self._number_or_text(name, path)
                self.value(item, (*path, str(name)))
            out += b"u"
        elif isinstance(value, list | tuple):
            out += b"](" if isinstance(value, list) else b"("
            for index, item in enumerate(value):
                self.value(item, (*path, str(index)))
            out += b"e" if isinstance(value, list) else b"t"
        else:
            self._number_or_text(value, path)

    def _number_or_text(self, value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            self._out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > 8:
                raise ValueError(f"{'/'.join(path)!r} is {value}, which 64 bits cannot hold")
            self._out += b"\x8a" + bytes([len(data)]) + data
        elif isinstance(value, float):
            self._out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            data = value.encode()
            self._out += b"X" + struct.pack("<I", len(data)) + data
        else:
            raise ValueError(
                f"{'/'.join(path)!r} is a {type(value).__name__}: a file for PyTorch holds arrays, "
                "numbers, strings, lists and dicts"
            )

    def _tensor(self, array: np.ndarray, path: tuple[str, ...]) -> None:
        dtype = self._dtype(array, "/".join(path))
        typed = dtype in _STORAGE_OF
        self._out += b"ctorch._utils\n_rebuild_tensor_v%d\n((" % (2 if typed else 3)
        self.value("storage", path)
        storage = _STORAGE_OF[dtype] if typed else "storage\nUntypedStorage"
        self._out += b"ctorch%s\n" % (("\n" if typed else ".") + storage).encode()
        self.value(str(len(self._arrays)), path)
        self.value("cpu", path)
        self.value(array.size if typed else array.nbytes, path)
        self._out += b"tQK\x00"
        self.value(array.shape, path)
        strides = np.empty(array.shape, np.bool_).strides  # of one byte each: in items
        self.value(strides, path)
        self._out += b"\x89" + _ORDERED_DICT
        if not typed:
            self._out += b"c%s\n" % _TENSOR_OF[dtype].replace(".", "\n").encode()
        self._out += b"tR"
        self._arrays.append((array, dtype))

    def _dtype(self, array: np.ndarray, name: str) -> str:
        if name in self._bfloat16:
            if array.dtype != np.uint16:
                raise ValueError(f"{name!r} is listed as bfloat16 but is {array.dtype}")
            return "BF16"
        for key, dtype in DTYPES.items():
            if key != "BF16" and dtype == array.dtype.newbyteorder("<"):
                return key
        raise ValueError(f"{name!r} has dtype {array.dtype}, which a file for PyTorch cannot hold")
