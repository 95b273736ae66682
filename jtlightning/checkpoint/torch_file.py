"""PyTorch's checkpoint files, zip and older, without PyTorch."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
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
    Storage,
    StoredTensor,
    is_size,
    make_tensor,
    read_numbers,
)
from jtlightning.checkpoint.unpickler import Unpickler
from jtlightning.checkpoint.zip_records import Record, read_directory

#: The number that legacy files start with, as its bytes in a pickle.
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
STATE_DICT = "save `model.state_dict()` in PyTorch and take that file"
#: Names of dtypes by those of storages; what is missing here (complex, quantised) has no reader.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
#: Dtypes that came after the storages with a type; such a tensor names its own.
TENSORS = {"torch.uint16": "U16", "torch.uint32": "U32", "torch.uint64": "U64"}
_UNTYPED_STORAGE = ("UntypedStorage", "_UntypedStorage")
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


def read_zip(file: BinaryIO, size: int, budget: Budget) -> Contents:
    """Read a file of PyTorch 1.6 or later.

    Raises:
        MalformedError: Damaged, or no checkpoint.
    """
    records = read_directory(file, size)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise MalformedError("is an archive, but not a checkpoint of PyTorch", STATE_DICT)
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise MalformedError("is a TorchScript program, not a state dict", STATE_DICT)
    for name, record in records.items():
        if record.compressed:
            raise MalformedError(
                f"has the compressed entry {name!r}, which PyTorch never writes",
                "repack it without compression",
            )
    order = records.get(f"{root}byteorder")
    if order is not None and Window(file, order.begin, order.begin + order.size).take(3) == b"big":
        raise _big_endian()
    pickled = records[pickles[0]]
    _check_crc(file, pickled)
    source = Window(file, pickled.begin, pickled.begin + pickled.size)
    storages = _Storages(file)
    tree = storages.unpickler(source, budget).load()
    for storage in storages.known.values():
        name = f"{root}data/{storage.key}"
        if name not in records:
            raise MalformedError(f"lacks the entry {name!r}, which its tensors need")
        storages.place(storage, records[name])
    return storages.contents("PyTorch zip", tree)


def read_legacy(file: BinaryIO, size: int, budget: Budget) -> Contents:
    """Read a file of PyTorch 0.4 to 1.5, or of a later one that was asked for that format.

    Raises:
        MalformedError: Damaged, or no checkpoint.
    """
    source = Window(file, 0, size)
    start = [Unpickler(source, budget).load() for _ in range(3)]
    if start[:2] != [_LEGACY_NUMBER, _LEGACY_VERSION] or not isinstance(start[2], dict):
        raise MalformedError(f"is of an unknown version of PyTorch ({start[1]!r:.40})")
    if start[2].get("little_endian") is not True:
        raise _big_endian()
    storages = _Storages(file)
    tree = storages.unpickler(source, budget).load()
    if storages.foreign:
        raise MalformedError("holds tensors of complex or quantised numbers in the old format")
    keys = Unpickler(source, budget).load()
    if not isinstance(keys, list) or sorted(storages.known) != sorted(map(str, keys)):
        raise MalformedError("lists other storages than its tensors need")
    for key in keys:
        storage = storages.known[str(key)]
        count = int.from_bytes(source.take(8), "little")
        if count != storage.size:
            raise MalformedError(
                f"has the storage {key!r} of {count} items where {storage.size} are declared"
            )
        length = count * storages.unit(storage)
        storages.place(storage, Record(source.position, length, None))
        source.skip(length)
    if source.position != size:
        raise MalformedError(f"has {size - source.position} bytes added at its end")
    return storages.contents("PyTorch legacy", tree)


class _Storages:
    """The storages that a pickle mentions, their places in the file, and what was loaded."""

    def __init__(self, file: BinaryIO) -> None:
        self.known: dict[str, Storage] = {}
        self.foreign: set[str] = set()
        self._file = file
        self._dtypes: dict[str, str] = {}
        self._places: dict[str, Record] = {}
        self._loaded: dict[tuple[str, bool], np.ndarray] = {}

    def unpickler(self, source: Window, budget: Budget) -> Unpickler:
        return Unpickler(
            source, budget, rebuild=_rebuilders(self._tensor), persistent=self._storage
        )

    def contents(self, kind: str, tree: Any) -> Contents:
        """The file, once all its storages have their places."""
        wide = (self._places[key].size for key, dtype in self._dtypes.items() if dtype == "BF16")
        return Contents(kind, tree, self.load, sum(wide))

    def unit(self, storage: Storage) -> int:
        """Bytes per item of the declared size."""
        return 1 if storage.dtype is None else DTYPES[storage.dtype].itemsize

    def place(self, storage: Storage, record: Record) -> None:
        """Remember where a storage lies, if its size is as declared."""
        unit = self.unit(storage)
        if not 0 <= record.size - storage.size * unit < unit:
            raise MalformedError(
                f"has the storage {storage.key!r} of {record.size} bytes where "
                f"{storage.size} items of {unit} bytes are declared"
            )
        self._places[storage.key] = record

    def load(self, tensor: StoredTensor, widen: bool) -> np.ndarray:
        key = (tensor.storage, widen and tensor.dtype == "BF16")
        if key not in self._loaded:
            record = self._places[tensor.storage]
            self._loaded[key] = read_numbers(
                self._file, record.begin, record.size, tensor.dtype, record.crc, key[1]
            )
        return self._loaded[key]

    def _storage(self, identity: tuple[Any, ...]) -> Storage | Placeholder:
        """What a persistent id stands for: (`storage`, type, key, device, size[, view])."""
        if len(identity) == 4 and identity[0] == "module" and isinstance(identity[1], Placeholder):
            return identity[1]  # a class, with its source code
        if len(identity) < 5 or not isinstance(identity[1], Placeholder):
            raise MalformedError("refers to an unknown kind of thing outside of its pickle")
        what, kind, key, _, size = identity[:5]
        if what != "storage" or not isinstance(key, str) or not is_size(size):
            raise MalformedError("refers to a storage without a key or a size")
        module, _, name = kind.name.rpartition(".")
        known = module in _STORAGE_MODULES and (name in STORAGES or name in _UNTYPED_STORAGE)
        if not known:
            self.foreign.add(key)
            return kind
        storage = Storage(key, STORAGES.get(name), size)
        if self.known.setdefault(key, storage) != storage:
            raise MalformedError(f"describes the storage {key!r} in two ways")
        return _part(storage, identity[5] if len(identity) > 5 else None)

    def _tensor(self, arguments: tuple[Any, ...], dtype: Any = None) -> StoredTensor | Placeholder:
        storage, offset, shape, strides = arguments[:4] if len(arguments) > 3 else (None,) * 4
        if isinstance(storage, Placeholder):
            return Placeholder(storage.name)
        if not isinstance(storage, Storage):
            raise MalformedError("has a tensor without a storage")
        known = storage.dtype
        if known is None:
            if not isinstance(dtype, Placeholder):
                raise MalformedError("has a tensor without a dtype")
            known = TENSORS.get(dtype.name)
        if known is None:
            return Placeholder(dtype.name)
        if self._dtypes.setdefault(storage.key, known) != known:
            raise MalformedError(f"uses the storage {storage.key!r} with two dtypes")
        return make_tensor(storage, known, offset, shape, strides)


def _part(storage: Storage, view: Any) -> Storage:
    """A part of a storage, as the earliest files have them: (key, offset, size)."""
    if view is None:
        return storage
    if not isinstance(view, tuple) or len(view) != 3 or not is_size(view[1]):
        raise MalformedError("has a view of a storage that is none")
    return replace(storage, offset=view[1])


def _rebuilders(tensor: Callable[..., Any]) -> dict[str, Rebuild]:
    tensors: dict[str, Rebuild] = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": lambda a: tensor(a, a[6] if len(a) > 6 else None),
    }

    def subclass(arguments: tuple[Any, ...]) -> Any:
        """A tensor with attributes or of a subclass: (function, type, arguments, state)."""
        if len(arguments) < 3 or not isinstance(arguments[0], Placeholder):
            raise MalformedError("has a tensor without a storage")
        function, _, inner = arguments[:3]
        if function.name not in tensors or not isinstance(inner, tuple):
            return Placeholder(function.name)
        return tensors[function.name](inner)

    return {
        **tensors,
        "torch._utils._rebuild_parameter": _wrapped,
        "torch._utils._rebuild_parameter_with_state": _wrapped,
        "torch.nn.parameter.Parameter": _wrapped,
        "torch._tensor._rebuild_from_type": subclass,
        "torch._tensor._rebuild_from_type_v2": subclass,
        "torch.Size": _size,
    }


def _wrapped(arguments: tuple[Any, ...]) -> Any:
    if not arguments or not isinstance(arguments[0], StoredTensor | Placeholder):
        raise MalformedError("has a parameter that is no tensor")
    return arguments[0]


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise MalformedError("has a shape that is none")
    return tuple(arguments[0])


def _check_crc(file: BinaryIO, record: Record) -> None:
    file.seek(record.begin)
    found, left = 0, record.size
    while left and (data := file.read(min(left, 2**20))):
        found = zlib.crc32(data, found)
        left -= len(data)
    if found != record.crc:
        raise MalformedError("is damaged: the checksum of its pickle is wrong")


def _big_endian() -> MalformedError:
    return MalformedError("was written on a big-endian machine", "save it on another one")
