"""Makes files of PyTorch and Jittor byte by byte, also such as neither would write."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Raw(bytes):
    """Instructions of a pickle that leave one object on its stack."""


def name(module: str, qualname: str) -> Raw:
    return Raw(f"c{module}\n{qualname}\n".encode())


def call(function: bytes, *arguments: Any) -> Raw:
    return Raw(function + ops(arguments) + b"R")


def ops(value: Any) -> Raw:
    """Instructions that make a value."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return Raw({None: b"N", True: b"\x88", False: b"\x89"}[value])
    if isinstance(value, int):
        return Raw(b"\x8a\x0c" + value.to_bytes(12, "little", signed=True))
    if isinstance(value, float):
        return Raw(b"G" + struct.pack(">d", value))
    if isinstance(value, str):
        data = value.encode()
        return Raw(b"X" + struct.pack("<I", len(data)) + data)
    if isinstance(value, bytes):
        return Raw(b"B" + struct.pack("<I", len(value)) + value)
    if isinstance(value, tuple | list):
        inner = b"".join(map(ops, value))
        return Raw(b"(" + inner + b"t" if isinstance(value, tuple) else b"](" + inner + b"e")
    inner = b"".join(ops(key) + ops(item) for key, item in value.items())
    return Raw(b"}(" + inner + b"u")


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + ops(value) + b"."


def tensor(
    key: str = "0",
    *,
    kind: str = "FloatStorage",
    numel: Any = 4,
    offset: Any = 0,
    shape: Any = (4,),
    strides: Any = (1,),
) -> Raw:
    """A tensor as PyTorch 1 and 2 pickle it."""
    storage = Raw(ops(("storage", name("torch", kind), key, "cpu", numel)) + b"Q")
    hooks = call(name("collections", "OrderedDict"))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, storage, offset, shape, strides, False, hooks)


def array(data: bytes, shape: Any, code: str = "f4") -> Raw:
    """A NumPy array as protocol 4 pickles it."""
    empty = call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), b"b"
    )
    dtype = Raw(
        call(name("numpy", "dtype"), code, False, True)
        + ops((3, "<", None, None, None, -1, -1, 0))
        + b"b"
    )
    return Raw(empty + ops((1, shape, dtype, False, data)) + b"b")


def write_zip(path: Path, body: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """A file as PyTorch 1.6 and later write it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", body)
        file.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", "3\n")
    return path


def write_legacy(
    path: Path, body: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None
) -> Path:
    """A file as PyTorch 0.4 to 1.5 wrote it; a storage is its declared size and its bytes."""
    storages = storages or {}
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    system = pickled({"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    data = b"".join((*start, system, body, pickled(list(storages))))
    for size, content in storages.values():
        data += struct.pack("<q", size) + content
    path.write_bytes(data)
    return path


def write_jittor(path: Path, body: bytes) -> Path:
    """A file as `jt.save` writes it."""
    path.write_bytes(body + hashlib.sha1(body).digest() + b"HCAJSLHD")
    return path
