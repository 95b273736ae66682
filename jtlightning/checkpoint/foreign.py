"""Files of other programs, recognised by content: what they hold, without running any of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np

from jtlightning.checkpoint import jittor_file, torch_file, zip_records
from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.layout import MAX_HEADER_BYTES
from jtlightning.checkpoint.pickle_parts import Budget, MalformedError, Placeholder
from jtlightning.checkpoint.stored import Contents, Slot, Storage, StoredTensor

__all__ = [
    "ForeignFile",
    "ForeignFileError",
    "file_kind",
    "join_path",
    "open_foreign",
    "split_path",
]

FileKind: TypeAlias = Literal["safetensors", "torch", "torch_legacy", "jittor", "unknown"]
#: Where something lies in nested containers; positions in lists are decimal.
EntryPath: TypeAlias = tuple[str, ...]

_AGAIN = "get the file again, or take an earlier one"
_MAX_DEPTH = 64
# Shared and expanded tensors take more than the file once each has its own memory.
_EXPANSION, _FREE_BYTES = 4, 16 * 2**20
_MAX_NAME = 1000  # comparing names takes time that grows with the square
_VISIT_COST = 200
_HEAD_BYTES = 512


class ForeignFileError(CheckpointError):
    """A file of another program cannot be read; the message names file, reason and remedy."""

    def __init__(self, path: Path, reason: str, remedy: str = _AGAIN) -> None:
        super().__init__(path, reason, remedy)


@dataclass
class ForeignFile:
    """An open file: its tensors, numbers and strings by path.

    `placeholders` holds the full name of each object that is none of these (`argparse.Namespace`);
    nothing of it was imported or executed.
    """

    path: Path
    kind: str
    tensors: dict[EntryPath, StoredTensor] = field(default_factory=dict)
    values: dict[EntryPath, Any] = field(default_factory=dict)
    placeholders: dict[EntryPath, str] = field(default_factory=dict)
    contents: Contents | None = field(default=None, repr=False)

    def read(self, path: EntryPath, *, widen: bool = False) -> np.ndarray:
        """An array in the memory of its storage, which it may share: copy it before changing it.

        bfloat16 comes as its bits (uint16; the tensor's `dtype` is `BF16`), with `widen` as
        float32.

        Raises:
            MalformedError: Damaged; `open_foreign` makes it a `ForeignFileError`.
        """
        assert self.contents is not None
        tensor = self.tensors[path]
        return tensor.view(self.contents.load(tensor, widen))


@contextlib.contextmanager
def open_foreign(path: Path | str) -> Iterator[ForeignFile]:
    """Open a file of PyTorch or Jittor; the arrays are read inside the block.

    Memory stays below twice the file and 48 MiB, whatever the file says.

    Raises:
        ForeignFileError: Missing, damaged, or no checkpoint; also while the block reads.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            budget = Budget(size)
            contents = _contents(file, size, head, budget)
            foreign = ForeignFile(path, contents.kind, contents=contents)
            budget.charge(contents.extra_bytes)
            _Flattening(foreign, budget).visit(contents.tree, (), 0)
            _check_total(foreign, size)
            yield foreign
    except MalformedError as error:
        raise ForeignFileError(path, str(error), error.remedy or _AGAIN) from None
    except OSError as error:
        raise _unreadable(path, error) from error


def file_kind(path: Path | str) -> FileKind:
    """What a file is, by its first bytes.

    Raises:
        ForeignFileError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return _kind(file.read(_HEAD_BYTES))
    except OSError as error:
        raise _unreadable(Path(path), error) from error


def _kind(head: bytes) -> FileKind:
    # First: the length of a header may look like the start of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return "safetensors"
    if head.startswith(zip_records.MAGIC):
        return "torch"
    if head[:1] == b"\x80":
        legacy = torch_file.LEGACY_MAGIC in head[:32]
        return "torch_legacy" if legacy else "jittor"
    return "unknown"


def join_path(path: Sequence[str]) -> str:
    """A path as one text: joined by `/`, which inside a part is `%2F`."""
    return "/".join(part.replace("/", "%2F") for part in path)


def split_path(name: str) -> EntryPath:
    """The inverse of `join_path`."""
    return tuple(part.replace("%2F", "/") for part in name.split("/"))


def _contents(file: BinaryIO, size: int, head: bytes, budget: Budget) -> Contents:
    kind = _kind(head)
    if kind == "torch":
        return torch_file.read_zip(file, size, budget)
    if kind == "torch_legacy":
        return torch_file.read_legacy(file, size, budget)
    if kind == "jittor":
        return jittor_file.read_jittor(file, size, budget)
    raise MalformedError(*_unknown(head))


def _unknown(head: bytes) -> tuple[str, str]:
    """Reason and remedy for a file of no known kind; the usual accidents by name."""
    if not head:
        return "is empty", _AGAIN
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself", "run `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a file of weights", "download it again, from the direct link"
    if head[257:262] == b"ustar":
        return "is a tar archive", "unpack it, or save it again with PyTorch 0.4 or later"
    return "is no file of safetensors, PyTorch or Jittor", "check the path"


def _unreadable(path: Path, error: OSError) -> ForeignFileError:
    return ForeignFileError(path, f"cannot be read: {error.strerror or error}", "check the path")


class _Flattening:
    """Sorts the leaves of a tree into a `ForeignFile`."""

    def __init__(self, foreign: ForeignFile, budget: Budget) -> None:
        self._foreign = foreign
        self._budget = budget

    def visit(self, value: Any, path: EntryPath, depth: int) -> None:
        # Containers can be shared: ten levels of ten references are ten thousand million leaves.
        self._budget.charge(_VISIT_COST + 8 * len(path))
        if depth > _MAX_DEPTH:
            raise MalformedError(f"is nested more than {_MAX_DEPTH} deep, or contains itself")
        if isinstance(value, dict):
            for name, item in value.items():
                self.visit(item, (*path, _part(name)), depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            for index, item in enumerate(items):
                self.visit(item, (*path, str(index)), depth + 1)
        else:
            self._leaf(value, path)

    def _leaf(self, value: Any, path: EntryPath) -> None:
        foreign = self._foreign
        if path in foreign.tensors or path in foreign.values or path in foreign.placeholders:
            raise MalformedError(f"has two entries at {join_path(path)!r}")
        if isinstance(value, Slot):
            value = value.content
            if value is None:
                raise MalformedError(f"has an array without content at {join_path(path)!r}")
        if isinstance(value, StoredTensor):
            if len(path) and len(path[-1]) > _MAX_NAME:
                raise MalformedError(f"has a tensor with a name of {len(path[-1])} characters")
            foreign.tensors[path] = value
        elif isinstance(value, Placeholder):
            foreign.placeholders[path] = value.name
        elif value is None or isinstance(value, str | bytes | int | float):
            foreign.values[path] = value
        elif isinstance(value, Storage):
            foreign.placeholders[path] = "torch.storage"
        else:
            foreign.placeholders[path] = "numpy.dtype"


def _part(name: Any) -> str:
    if isinstance(name, str):
        return name
    return name.name if isinstance(name, Placeholder) else str(name)


def _check_total(foreign: ForeignFile, size: int) -> None:
    total = sum(tensor.nbytes for tensor in foreign.tensors.values())
    limit = _EXPANSION * size + _FREE_BYTES
    if total > limit:
        raise MalformedError(f"declares tensors of {total} bytes in a file of {size}, over {limit}")
