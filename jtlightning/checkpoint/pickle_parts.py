"""What a pickle may consist of: names that stay names, plain containers, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeAlias

MAX_NAME = 4096
_MAX_KEY_PARTS = 8
_BASE_BUDGET = 32 * 2**20


class MalformedError(ValueError):
    """A file says something that cannot be; the message has no file name yet."""

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Placeholder:
    """Stands for a foreign object of which nothing was imported or executed.

    `name` is its module and qualified name: `argparse.Namespace`.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Placeholder({self.name!r})"


class Budget:
    """Memory that the objects of one file may take, in bytes, beyond the file's own bytes."""

    def __init__(self, file_bytes: int) -> None:
        self.left = file_bytes + _BASE_BUDGET

    def charge(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            MalformedError: They are used up.
        """
        self.left -= size
        if self.left < 0:
            raise MalformedError("holds more objects than a file of its size can mean")


class Window:
    """The bytes [begin, end) of a file, read forward."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file = file
        self.position, self.end = begin, end
        file.seek(begin)

    def take(self, count: int) -> bytes:
        """The next `count` bytes; whether they exist is checked before memory is taken."""
        if count > self.end - self.position:
            raise MalformedError(f"is truncated: it declares {count} bytes where fewer are left")
        data = self._file.read(count)
        if len(data) != count:
            raise MalformedError("became shorter while it was read")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Go on behind the next `count` bytes."""
        if count > self.end - self.position:
            raise MalformedError(f"is truncated: it declares {count} bytes where fewer are left")
        self.position += count
        self._file.seek(self.position)

    def line(self) -> str:
        """The next line of ASCII, without its end."""
        limit = min(MAX_NAME, self.end - self.position)
        data = self._file.readline(limit)
        if not data.endswith(b"\n"):
            raise MalformedError("is truncated, or holds a name without an end")
        self.position += len(data)
        return text(data[:-1])


#: Makes a value from the arguments of a call in the pickle; raises `MalformedError`.
Rebuild: TypeAlias = Callable[[tuple[Any, ...]], Any]


def text(data: bytes) -> str:
    """Bytes as UTF-8; what is none is spelled out, as a file name in some argument may be."""
    return data.decode("utf-8", "backslashreplace")


def key(value: Any) -> Any:
    """A dict's key or a set's item; those whose hash may recurse or raise are refused."""
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > _MAX_KEY_PARTS or not all(_hashes_fast(part) for part in parts):
        raise MalformedError(f"uses a {type(value).__name__} as a key that no checkpoint has")
    return value


def _hashes_fast(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**61 - 1  # larger ones can be made to collide at will
    return value is None or isinstance(value, str | bytes | float | Placeholder)


def made_by(name: str, arguments: tuple[Any, ...]) -> str:
    """The name of what a call makes: of the class, where the function only makes instances."""
    makers = ("copy_reg._reconstructor", "copyreg._reconstructor", "copyreg.__newobj__")
    if name in makers and arguments and isinstance(arguments[0], Placeholder):
        return arguments[0].name
    return name


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    items = arguments[0] if arguments else ()
    if isinstance(items, Placeholder):  # a defaultdict's factory
        items = arguments[1] if len(arguments) > 1 else ()
    if isinstance(items, dict):
        return dict(items)
    if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in _sequence(items)):
        raise MalformedError("makes a dict of something that is no pairs")
    return {key(name): value for name, value in items}


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise MalformedError(f"makes a container of a {type(value).__name__}")
    return value


def _items(arguments: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    return _sequence(arguments[0]) if arguments else ()


def _encode(arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 spells bytes: text of which each character is a byte."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise MalformedError("has bytes in an unknown encoding")
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError:
        raise MalformedError("has bytes that are none") from None


def _plain_bytes(arguments: tuple[Any, ...]) -> bytes:
    value = arguments[0] if arguments else b""
    if not isinstance(value, bytes):
        raise MalformedError("has bytes that are none")
    return value


CONTAINERS: Mapping[str, Rebuild] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _encode,
    **{
        f"{module}.{name}": make
        for module in ("builtins", "__builtin__")
        for name, make in {
            "set": lambda arguments: {key(item) for item in _items(arguments)},
            "frozenset": lambda arguments: frozenset(key(item) for item in _items(arguments)),
            "list": lambda arguments: list(_items(arguments)),
            "tuple": lambda arguments: tuple(_items(arguments)),
            "dict": _dict,
            "bytes": _plain_bytes,
            "bytearray": _plain_bytes,
        }.items()
    },
}
