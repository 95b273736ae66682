"""The safetensors file layout: a JSON header that says where each tensor's bytes lie.

Eight bytes little-endian header length, the header, the tensors' bytes without gaps. Our own
files are *sealed*: their header is in canonical form, holds a CRC-32 per tensor and its own
SHA-256, so that any flipped, missing or added byte is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.metadata import canonical_json

# Parsing JSON takes many times its size, so that a header without tensors behind it could only
# hurt: what it may take grows with the file. Four copies of a network of 2,000 tensors need 2 MiB
# and 72,000 values, however small the tensors are.
MAX_HEADER_BYTES = 16 * 2**20
_HEADER_BYTES, _FILE_PER_HEADER = 2 * 2**20, 8
# At most 300 bytes of Python objects each, so about half the file.
_VALUES, _FILE_PER_VALUE = 80_000, 512
_MAX_DIMENSIONS = 32  # of NumPy
METADATA = "__metadata__"
CHECKSUMS = "checksums"
SEAL = "header_sha256"

DTYPES = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16: its bits
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Entry:
    """One tensor: its bytes are [begin, end) after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file holds; `start` is the position of the first tensor's bytes."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    start: int


def seal(entries: list[Entry], metadata: dict[str, str]) -> bytes:
    """The header's bytes, length included; fills in its SHA-256.

    Raises:
        ValueError: It would be refused when read.
    """
    document: dict[str, Any] = {
        e.name: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.begin, e.end]}
        for e in entries
    }
    document[METADATA] = {**metadata, SEAL: ""}
    document[METADATA][SEAL] = _digest(document)
    header = _encode(document)
    excess = _excess(header[8:], len(header) + max((e.end for e in entries), default=0))
    if excess is not None:
        raise ValueError(f"the metadata is too large ({excess}): store large state as arrays")
    return header


def read_header(file: BinaryIO, path: Path, size: int, *, sealed: bool) -> Header:
    """Read and check a header; nothing is allocated from a declared size before it is checked.

    Args:
        file: At position 0.
        path: For errors.
        size: The file's real size in bytes.
        sealed: Whether it must be one of our own files.

    Raises:
        CheckpointError: Damaged, truncated or not of this kind.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if size < 8 or 8 + length > size:
        raise CheckpointError(path, f"is truncated or not a checkpoint ({size} bytes)")
    if length > _allowed_bytes(size):
        raise CheckpointError(path, f"has a header of {length} bytes, over {_allowed_bytes(size)}")
    raw = file.read(length)
    if (excess := _excess(raw, size)) is not None:
        raise CheckpointError(path, f"has a damaged header ({excess})")
    document = _parse(raw, path)
    metadata = document.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(path, "has a damaged header (metadata is not text)")
    if sealed:
        _check_seal(document, metadata, raw, path)
    entries = [_entry(k, v, path) for k, v in document.items() if k != METADATA]
    return Header(_check_coverage(entries, size - 8 - length, path), metadata, 8 + length)


def _allowed_bytes(size: int) -> int:
    """Longest header of a file of `size` bytes."""
    return min(_HEADER_BYTES + size // _FILE_PER_HEADER, MAX_HEADER_BYTES)


def _excess(header: bytes, size: int) -> str | None:
    """Why a header would take too much memory in a file of `size` bytes; None if it does not."""
    if len(header) > _allowed_bytes(size):
        return f"{len(header)} bytes of header, over {_allowed_bytes(size)}"
    # Every list, object and further element needs one of these, also inside of metadata texts.
    values, allowed = sum(map(header.count, (b"[", b"{", b","))), _VALUES + size // _FILE_PER_VALUE
    return f"{values} values in the header, over {allowed}" if values > allowed else None


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has a damaged header ({error})") from None
    if not isinstance(document, dict):
        raise CheckpointError(path, "has a damaged header (not a JSON object)")
    return document


def _check_seal(document: dict[str, Any], metadata: dict[str, str], raw: bytes, path: Path) -> None:
    if SEAL not in metadata or CHECKSUMS not in metadata:
        raise CheckpointError(
            path,
            "is a safetensors file without this trainer's checksums",
            "it can be used for weights only, not to resume",
        )
    found, position, same = hashlib.sha256(), 0, True
    end = len(raw.rstrip(b" "))
    length = end - len(metadata[SEAL])
    found.update(struct.pack("<Q", length + -length % 8))
    try:
        for piece, hashed in _pieces(document):
            same = same and raw.startswith(piece, position)
            position += len(piece)
            found.update(hashed)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has a damaged header ({error})") from None
    found.update(b" " * (-length % 8))
    same = same and position == end and len(raw) == end + -end % 8
    if not same or metadata[SEAL] != found.hexdigest():
        raise CheckpointError(path, "has a damaged header (its checksum is wrong)")


def _pieces(document: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """The canonical text bit by bit, each also as it is hashed: without the seal.

    Whole, it would be two more copies of the header.
    """
    separator = b"{"
    for key in sorted(document):
        value = document[key]
        start = separator + canonical_json(key).encode() + b":"
        separator = b","
        if key == METADATA and isinstance(value, dict):
            yield start, start
            yield from _pieces(value)
            continue
        piece = canonical_json(value).encode()
        yield start, start
        yield piece, b'""' if key == SEAL and isinstance(value, str) else piece
    end = b"}" if document else b"{}"
    yield end, end


def _entry(name: str, value: Any, path: Path) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"has a damaged entry for {_short(name)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(path, f"{_short(name)} has an unsupported dtype {_short(dtype)}")
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS or _strides_overflow(shape, dtype):
        raise CheckpointError(path, f"{_short(name)} has an impossible shape {_short(shape)}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(path, f"{_short(name)} has impossible offsets {_short(offsets)}")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(path, f"{_short(name)} has a size that its shape contradicts")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    # A shape may hold a 0 beside a huge number, which NumPy refuses: each has its own limit.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**48 for v in value)


def _strides_overflow(shape: list[int], dtype: str) -> bool:
    """Whether NumPy would refuse the shape although a 0 in it makes it empty."""
    return math.prod(length or 1 for length in shape) * DTYPES[dtype].itemsize >= 2**62


def _check_coverage(entries: list[Entry], size: int, path: Path) -> tuple[Entry, ...]:
    """Sort by position; the entries must fill the `size` bytes after the header exactly."""
    entries.sort(key=lambda e: (e.begin, e.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise CheckpointError(path, f"{_short(entry.name)} overlaps another or leaves a gap")
        position = entry.end
    if position != size:
        raise CheckpointError(
            path, f"is truncated or has bytes added: {position} bytes of tensors, {size} there"
        )
    return tuple(entries)


def _encode(document: dict[str, Any]) -> bytes:
    text = canonical_json(document).encode()
    # Blanks, so that the tensors start at a multiple of 8 and can be mapped.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(_encode(document)).hexdigest()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
