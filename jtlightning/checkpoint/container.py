"""The checkpoint file: arrays and JSON metadata in one safetensors file, no pickle.

Any safetensors library reads it. Metadata keys are stored as one JSON text each.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jtlightning.checkpoint import layout
from jtlightning.checkpoint.atomic import atomic_file
from jtlightning.checkpoint.errors import RESTORE, CheckpointError
from jtlightning.checkpoint.metadata import canonical_json, from_json, to_json

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "EncodedCheckpoint",
    "encode_checkpoint",
    "read_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]

_OTHER_PATH = "check the path"
_CHUNK_BYTES = 4 * 2**20
BFLOAT16 = "bfloat16"


@dataclass
class Checkpoint:
    """Contents of a checkpoint file.

    `tensors` are named `model/<name>`, `optimizer/<i>/<moment>/<parameter>`,
    `callback/<state key>/...`. `metadata` holds JSON values (NumPy scalars, NaN and infinities
    are fine, tuples come back as lists). An array of bfloat16 is given as its bits (uint16) and
    named in the list `metadata["bfloat16"]`.
    """

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: afterwards `path` is the new file, or the old one is intact.

    Arrays are written one after the other straight from their memory.

    Raises:
        ValueError: A value that cannot be stored, named; nothing was written.
        CheckpointError: The system refused; the old file is intact.
    """
    encode_checkpoint(checkpoint).write(path)


@dataclass(frozen=True)
class EncodedCheckpoint:
    """A checked checkpoint whose metadata is text already; made by `encode_checkpoint`."""

    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    metadata: dict[str, str]

    def write(self, path: Path | str) -> None:
        """As `write_checkpoint`."""
        # Widest first keeps every tensor aligned to its item size, as the format wants it.
        names = sorted(self.dtypes, key=lambda n: (-layout.DTYPES[self.dtypes[n]].itemsize, n))
        entries, checksums, position = [], {}, 0
        for name in names:
            array, dtype = self.tensors[name], self.dtypes[name]
            checksums[name] = _checksum(zlib.crc32(_bytes(array, dtype)))
            entries.append(
                layout.Entry(name, dtype, array.shape, position, position + array.nbytes)
            )
            position = entries[-1].end
        metadata = {**self.metadata, layout.CHECKSUMS: canonical_json(checksums)}
        header = layout.seal(entries, metadata)
        with atomic_file(Path(path)) as write:
            write(header)
            for name in names:
                write(_bytes(self.tensors[name], self.dtypes[name]))


def encode_checkpoint(checkpoint: Checkpoint) -> EncodedCheckpoint:
    """Check a checkpoint and fix its metadata; the arrays are neither read nor copied yet.

    Raises:
        ValueError: A value that cannot be stored, named.
    """
    metadata = _encode_metadata(checkpoint.metadata)
    bfloat16 = frozenset(checkpoint.metadata.get(BFLOAT16, ()))
    dtypes = {
        name: _dtype_name(name, array, bfloat16) for name, array in checkpoint.tensors.items()
    }
    return EncodedCheckpoint(dict(checkpoint.tensors), dtypes, metadata)


def read_checkpoint(path: Path | str, *, tensors: bool = True) -> Checkpoint:
    """Read a checkpoint and verify all that is read.

    Args:
        path: The file.
        tensors: False reads and verifies the header only and leaves `tensors` empty.

    Raises:
        CheckpointError: Missing, damaged, truncated, or not a checkpoint.
    """
    path = Path(path)
    with open_tensors(path, sealed=True) as (file, header):
        metadata, checksums = _decode_metadata(header, path)
        arrays = {}
        if tensors:
            for entry in header.entries:
                arrays[entry.name] = read_tensor(file, entry, path)
                # reshape: NumPy cannot reinterpret a scalar or a shape with a 0 in it
                found = zlib.crc32(arrays[entry.name].reshape(-1).view(np.uint8).data)
                _compare(entry, found, checksums, path)
    return Checkpoint(arrays, metadata)


def verify_checkpoint(path: Path | str) -> dict[str, Any]:
    """Verify the whole file in little memory and return its metadata.

    Raises:
        CheckpointError: As `read_checkpoint`.
    """
    path = Path(path)
    with open_tensors(path, sealed=True) as (file, header):
        metadata, checksums = _decode_metadata(header, path)
        for entry in header.entries:
            found, left = 0, entry.end - entry.begin
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                found = zlib.crc32(chunk, found)
                left -= len(chunk)
            _compare(entry, found, checksums, path)
    return metadata


@contextlib.contextmanager
def open_tensors(path: Path, *, sealed: bool) -> Iterator[tuple[BinaryIO, layout.Header]]:
    """Open a safetensors file behind its checked header; tensors follow in the entries' order.

    Raises:
        CheckpointError: Also for every `OSError` while the block reads.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            yield file, layout.read_header(file, path, size, sealed=sealed)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        wrong_path = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
        raise CheckpointError(path, reason, _OTHER_PATH if wrong_path else RESTORE) from error


def read_tensor(file: BinaryIO, entry: layout.Entry, path: Path) -> np.ndarray:
    """Read the next tensor; its declared size has been checked against the file's."""
    array = np.empty(entry.shape, layout.DTYPES[entry.dtype])
    view = array.reshape(-1).view(np.uint8).data
    if file.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise CheckpointError(path, f"became shorter while {entry.name!r} was read")
    return array


def _dtype_name(name: str, array: np.ndarray, bfloat16: frozenset[str]) -> str:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"tensor {name!r} is a {type(array).__name__}, expected a NumPy array")
    if name == layout.METADATA:
        raise ValueError(f"a tensor cannot be named {name!r}: the file format reserves it")
    if name in bfloat16:
        if array.dtype != np.uint16:
            raise ValueError(f"tensor {name!r} is listed as bfloat16 but is {array.dtype}")
        return "BF16"
    for key, dtype in layout.DTYPES.items():
        if key != "BF16" and dtype == array.dtype.newbyteorder("<"):
            return key
    raise ValueError(f"tensor {name!r} has dtype {array.dtype}, which a checkpoint cannot hold")


def _bytes(array: np.ndarray, dtype: str) -> memoryview:
    """The array's bytes in file order; a copy only where memory is strided or byte-swapped."""
    flat = np.ascontiguousarray(array, layout.DTYPES[dtype]).reshape(-1)
    return flat.view(np.uint8).data


def _encode_metadata(metadata: dict[str, Any]) -> dict[str, str]:
    for key in metadata:
        if not isinstance(key, str) or key in (layout.CHECKSUMS, layout.SEAL):
            raise ValueError(f"metadata key {key!r} is reserved or not a string")
    return {key: to_json(value, f"metadata[{key!r}]") for key, value in metadata.items()}


def _decode_metadata(header: layout.Header, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata's values, and the tensors' checksums."""
    try:
        metadata = {k: from_json(v) for k, v in header.metadata.items() if k != layout.SEAL}
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(path, f"has damaged metadata ({error})") from None
    checksums = metadata.pop(layout.CHECKSUMS)
    names = {entry.name for entry in header.entries}
    if not isinstance(checksums, dict) or checksums.keys() != names:
        raise CheckpointError(path, "has checksums that do not match its tensors")
    return metadata, checksums


def _compare(entry: layout.Entry, found: int, checksums: dict[str, Any], path: Path) -> None:
    if checksums[entry.name] != _checksum(found):
        raise CheckpointError(path, f"is damaged: the checksum of {entry.name!r} is wrong")


def _checksum(crc: int) -> str:
    return f"crc32:{crc:08x}"
