"""Files of weights from one format into another, without PyTorch and without Jittor."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from jtlightning.checkpoint import layout
from jtlightning.checkpoint.atomic import Write, atomic_file
from jtlightning.checkpoint.container import (
    Checkpoint,
    open_tensors,
    verify_checkpoint,
    write_checkpoint,
)
from jtlightning.checkpoint.foreign import (
    EntryPath,
    ForeignFile,
    file_kind,
    join_path,
    open_foreign,
    split_path,
)
from jtlightning.checkpoint.metadata import canonical_json, from_json, to_json
from jtlightning.checkpoint.state_dict import Which
from jtlightning.checkpoint.stored import widen_bfloat16
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import read_weights
from jtlightning.state import RunState
from segtasks.models.dformer.renames import fold_head_biases, official_name

Format: TypeAlias = Literal["safetensors", "torch", "jittor", "checkpoint"]

#: How the name of an output ends -> what is written.
FORMATS: Mapping[str, Format] = {
    ".safetensors": "safetensors",
    ".pth": "torch",
    ".pth.tar": "torch",
    ".pt": "torch",
    ".bin": "torch",
    ".pkl": "jittor",
    ".ckpt": "checkpoint",
}
#: `jt.save` appends the SHA-1 of the pickle and this.
_JITTOR_TAIL = b"HCAJSLHD"


@dataclass
class Summary:
    """What was written.

    `dtypes` counts tensors by the format's name of their numbers (`F32`), `nbytes` is their size;
    `left_out` tells what the output has no place for, by its path; `remarks` are for the user.
    """

    kind: str
    dtypes: Counter[str] = field(default_factory=Counter)
    nbytes: int = 0
    values: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@dataclass
class _Source:
    """An open file: its tensors (dtype and shape), its numbers and strings, and its structure."""

    kind: str
    tensors: dict[EntryPath, tuple[str, tuple[int, ...]]]
    values: dict[EntryPath, Any]
    placeholders: dict[EntryPath, str]
    read: Callable[[EntryPath], np.ndarray]
    tree: Any = None


def output_format(path: Path) -> Format:
    """What to write into a file of this name.

    Raises:
        ValueError: Its ending says nothing.
    """
    for ending in sorted(FORMATS, key=len, reverse=True):
        if path.name.endswith(ending):
            return FORMATS[ending]
    raise ValueError(f"{path}: its ending names no format; choose from {', '.join(FORMATS)}")


def convert_weights(
    source: Path, target: Path, *, which: Which = "raw", entry: str | None = None
) -> Summary:
    """Write what `source` holds into `target`, atomically; an existing file is replaced.

    Args:
        source: A file of PyTorch or Jittor, safetensors, or a `.ckpt`, recognised by content.
        target: Its ending decides the format, see `FORMATS`.
        which: Raw weights or their average; for a `.ckpt` only, which holds one state dict.
        entry: Where in `source` the state dict lies; likewise.

    Raises:
        CheckpointError: A file cannot be read or written; there is no partial output.
        ValueError: `target` cannot hold what is in `source`.
    """
    format_ = output_format(target)
    if format_ == "checkpoint":
        return _to_checkpoint(source, target, which, entry)
    if which != "raw" or entry is not None:
        raise ValueError(
            f"{target}: a part of the weights can be chosen for a .ckpt only; this format keeps all"
        )
    with _opened(source) as opened:
        if () in opened.tensors or not opened.tensors:
            raise ValueError(f"{source} holds no named tensors; save `model.state_dict()`")
        summary = Summary(opened.kind)
        for dtype, shape in opened.tensors.values():
            summary.dtypes[dtype] += 1
            summary.nbytes += int(np.prod(shape)) * layout.DTYPES[dtype].itemsize
        summary.left_out = {join_path(p): name for p, name in opened.placeholders.items()}
        _WRITERS[format_](opened, target, summary)
    return summary


# ---- reading ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    if file_kind(path) == "safetensors":
        with _opened_safetensors(path) as source:
            yield source
        return
    with open_foreign(path) as foreign:
        tensors = {place: (t.dtype, t.shape) for place, t in foreign.tensors.items()}
        yield _Source(
            foreign.kind,
            tensors,
            foreign.values,
            foreign.placeholders,
            foreign.read,
            _structure(foreign),
        )


@contextlib.contextmanager
def _opened_safetensors(path: Path) -> Iterator[_Source]:
    with open_tensors(path, sealed=False) as (file, header):
        texts = dict(header.metadata)
        sealed = layout.SEAL in texts
        if sealed:
            verify_checkpoint(path)
            del texts[layout.SEAL], texts[layout.CHECKSUMS]
        entries = {split_path(entry.name): entry for entry in header.entries}

        def read(place: EntryPath) -> np.ndarray:
            entry = entries[place]
            file.seek(header.start + entry.begin)
            data = file.read(entry.end - entry.begin)
            return np.frombuffer(data, layout.DTYPES[entry.dtype]).reshape(entry.shape)

        yield _Source(
            "checkpoint of this trainer" if sealed else "safetensors",
            {place: (e.dtype, e.shape) for place, e in entries.items()},
            {split_path(key): _metadata_value(text) for key, text in texts.items()},
            {},
            read,
        )


def _metadata_value(text: str) -> Any:
    """Metadata of `segtasks convert` are JSON, of other programs any text."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return text


def _structure(foreign: ForeignFile) -> Any:
    """The file's containers with a path in place of each leaf."""
    assert foreign.contents is not None

    def visit(value: Any, path: EntryPath) -> Any:
        if isinstance(value, dict):
            parts = {key: _part(key) for key in value}
            return {_key(k): visit(value[k], (*path, part)) for k, part in parts.items()}
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)  # the order of their paths
        if isinstance(value, list | tuple):
            items = [visit(item, (*path, str(i))) for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return _Leaf(path)

    return visit(foreign.contents.tree, ())


@dataclass(frozen=True)
class _Leaf:
    path: EntryPath


def _part(key: Any) -> str:
    return key if isinstance(key, str) else str(getattr(key, "name", key))


def _key(key: Any) -> Any:
    return key if key is None or isinstance(key, str | int | float) else _part(key)


def _nested(source: _Source) -> Any:
    """Containers by the parts of the paths; lists of the original file come as dicts."""
    tree: dict[str, Any] = {}
    for path in (*source.tensors, *source.values):
        place = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{join_path(path)!r} lies inside of something that is no folder")
        if path[-1] in place:
            raise ValueError(f"{join_path(path)!r} is there twice, or is a folder too")
        place[path[-1]] = _Leaf(path)
    return tree


# ---- writing ----------------------------------------------------------------------------------


def _to_safetensors(source: _Source, target: Path, summary: Summary) -> None:
    """Every tensor under its path, numbers and strings as JSON in the metadata."""
    names = _distinct({place: join_path(place) for place in source.tensors})
    metadata = {}
    for place, text in _distinct({place: join_path(place) for place in source.values}).items():
        value = source.values[place]
        if isinstance(value, bytes):
            summary.left_out[text] = "bytes"
        else:
            metadata[text] = to_json(value, repr(text))
    summary.values = len(metadata)
    if layout.METADATA in names.values():
        raise ValueError(f"a tensor is named {layout.METADATA!r}, which safetensors reserves")
    # Widest first keeps every tensor aligned to its item size.
    width = {place: layout.DTYPES[dtype].itemsize for place, (dtype, _) in source.tensors.items()}
    order = sorted(names, key=lambda place: (-width[place], names[place]))
    document: dict[str, Any] = {layout.METADATA: metadata} if metadata else {}
    position = 0
    for place in order:
        dtype, shape = source.tensors[place]
        end = position + int(np.prod(shape)) * width[place]
        offsets = [position, end]
        document[names[place]] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position = end
    text_ = canonical_json(document).encode()
    text_ += b" " * (-len(text_) % 8)
    header = struct.pack("<Q", len(text_)) + text_
    # What would be refused when read is refused before it is written.
    layout.read_header(io.BytesIO(header), target, len(header) + position, sealed=False)
    with atomic_file(target) as write:
        write(header)
        for place in order:
            numbers = layout.DTYPES[source.tensors[place][0]]
            flat = np.ascontiguousarray(source.read(place), numbers).reshape(-1)
            write(flat.view(np.uint8).data)


def _to_torch(source: _Source, target: Path, summary: Summary) -> None:
    _distinct({place: "/".join(place) for place in source.tensors})
    bits = ["/".join(p) for p, (dtype, _) in source.tensors.items() if dtype == "BF16"]
    write_torch(target, _filled(source, summary, bfloat16=True), bfloat16=bits)


def _to_jittor(source: _Source, target: Path, summary: Summary) -> None:
    """A pickle of NumPy arrays with a checksum, as `jt.save` writes it and `jt.load` reads it."""
    count = summary.dtypes["BF16"]
    if count:
        summary.remarks.append(f"{count} tensors of bfloat16 became float32: NumPy has no bfloat16")
    tree = _filled(source, summary, bfloat16=False)
    with atomic_file(target) as write:
        hashing = _Hashing(write)
        pickle.Pickler(hashing, 4).dump(tree)
        write(hashing.digest.digest() + _JITTOR_TAIL)


class _Hashing:
    """A file for a pickler, which is so never whole in memory."""

    def __init__(self, write: Write) -> None:
        self.digest = hashlib.sha1(usedforsecurity=False)
        self._write = write

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        self._write(data)
        return len(data)


def _to_checkpoint(source: Path, target: Path, which: Which, entry: str | None) -> Summary:
    """Weights only, of a network that a task holds as `model`; to test and to start from."""
    weights = read_weights(source, weights=which, entry=entry)
    if weights.kind == "checkpoint":
        raise ValueError(f"{source} is a checkpoint of this trainer already")
    summary = Summary(weights.kind, left_out=dict(weights.skipped))
    summary.left_out.update(dict.fromkeys(weights.others, "not the weights"))
    tensors: dict[str, np.ndarray] = {}
    folded = fold_head_biases(weights)
    for name, array in folded.items():
        new = official_name(name)
        if new is None:
            summary.left_out[name] = "nothing reads it"
        elif f"model/model.{new}" in tensors:
            raise ValueError(f"{source}: two tensors get the name {new!r}")
        else:
            tensors[f"model/model.{new}"] = array
            summary.dtypes[_dtype_name(array)] += 1
            summary.nbytes += array.nbytes
    if count := len(weights) - len(folded):
        summary.remarks.append(f"{count} biases were taken into the running means behind them")
    metadata = {
        "format": 1,
        "converted_from": weights.describe(),
        "loop": RunState().state_dict(),
        "optimizer": [],
    }
    write_checkpoint(target, Checkpoint(tensors, metadata))
    return summary


_WRITERS: Mapping[str, Callable[[_Source, Path, Summary], None]] = {
    "safetensors": _to_safetensors,
    "torch": _to_torch,
    "jittor": _to_jittor,
}


def _filled(source: _Source, summary: Summary, *, bfloat16: bool) -> Any:
    """The containers with arrays and values; `bfloat16`: as its bits, else widened."""
    absent = object()

    def leaf(path: EntryPath) -> Any:
        if path in source.tensors:
            array = source.read(path)
            widened = source.tensors[path][0] == "BF16" and not bfloat16
            return widen_bfloat16(array) if widened else array
        value = source.values.get(path, absent)
        if isinstance(value, bytes):
            summary.left_out[join_path(path)] = "bytes"
            return absent
        summary.values += value is not absent
        return value

    def visit(node: Any) -> Any:
        if isinstance(node, _Leaf):
            return leaf(node.path)
        if isinstance(node, dict):
            items = {key: visit(item) for key, item in node.items()}
            return {key: item for key, item in items.items() if item is not absent}
        # None in place of what is left out, so that the others keep their positions.
        kept = [None if item is absent else item for item in map(visit, node)]
        return kept if isinstance(node, list) else tuple(kept)

    return visit(_nested(source) if source.tree is None else source.tree)


def _distinct(names: dict[EntryPath, str]) -> dict[EntryPath, str]:
    doubled = [name for name, count in Counter(names.values()).items() if count > 1]
    if doubled:
        raise ValueError(f"two places in the file would both be called {doubled[0]!r}")
    return names


def _dtype_name(array: np.ndarray) -> str:
    known = {dtype: name for name, dtype in layout.DTYPES.items() if name != "BF16"}
    return known.get(array.dtype.newbyteorder("<"), str(array.dtype))
