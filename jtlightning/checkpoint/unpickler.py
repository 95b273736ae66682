"""A pickle reader that can build containers, numbers and strings, and nothing else.

It interprets the pickle itself: nothing is imported, looked up or called by a name from the file.
A name becomes a `Placeholder`, and calling one gives another placeholder, unless the name is
among the `rebuild` functions that the reader of a file format passes in.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jtlightning.checkpoint.pickle_parts import (
    CONTAINERS,
    MAX_NAME,
    Budget,
    MalformedError,
    Placeholder,
    Rebuild,
    Window,
    key,
    made_by,
    text,
)

_MAX_INTEGER_BYTES = 64
# CPython's cost of one item, growth of the container included.
_MARK_COST, _ITEM_COST, _ENTRY_COST = 48, 16, 128

#: Gives an object its state, if it knows that kind of object.
SetState: TypeAlias = Callable[[Any, Any], None]


class Unpickler:
    """Reads one pickle.

    Args:
        source: Positioned at the pickle; afterwards behind it.
        budget: Shared by all that is made from one file.
        rebuild: What a call of a named function gives, by its full name.
        persistent: What a persistent id stands for.
        set_state: For objects that `rebuild` made and that get their content afterwards.
    """

    def __init__(
        self,
        source: Window,
        budget: Budget,
        *,
        rebuild: Mapping[str, Rebuild] | None = None,
        persistent: Rebuild | None = None,
        set_state: SetState | None = None,
    ) -> None:
        self._source = source
        self._budget = budget
        self._rebuild = {**CONTAINERS, **(rebuild or {})}
        self._persistent = persistent
        self._set_state = set_state
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The object.

        Raises:
            MalformedError: Damaged, beyond the budget, or a pickle that neither PyTorch nor Jittor
                writes.
        """
        source = self._source
        while (opcode := source.take(1)) != b".":
            handler = _OPCODES.get(opcode)
            if handler is None:
                raise MalformedError(f"has an unknown instruction {opcode!r} in its pickle")
            handler(self)
        if len(self._stack) != 1 or self._marks:
            raise MalformedError("has a pickle that ends in its middle")
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._budget.charge(sys.getsizeof(value) + _ITEM_COST)
        self._stack.append(value)

    def _pop(self) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            raise MalformedError("has a pickle that takes more than it made")
        return self._stack.pop()

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise MalformedError("has a pickle with an unmatched mark")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _number(self, size: int) -> int:
        return int.from_bytes(self._source.take(size), "little")

    # Constants

    def _protocol(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            raise MalformedError(f"has a pickle of protocol {version}, expected 2 to 5")

    def _frame(self) -> None:
        self._number(8)  # a hint for buffering

    def _signed(self) -> None:
        self._push(int.from_bytes(self._source.take(4), "little", signed=True))

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._source.take(8))[0])

    def _long(self, width: int) -> None:
        size = self._number(width)
        if size > _MAX_INTEGER_BYTES:
            raise MalformedError(f"has an integer of {size} bytes, over {_MAX_INTEGER_BYTES}")
        self._push(int.from_bytes(self._source.take(size), "little", signed=True))

    def _string(self, width: int) -> None:
        size = self._number(width)
        self._budget.charge(4 * size)  # one emoji makes all characters take four bytes
        self._push(text(self._source.take(size)))

    def _python2_string(self, width: int) -> None:
        """Names of a state dict, or bytes."""
        data = self._source.take(self._number(width))
        try:
            self._push(data.decode("ascii"))
        except UnicodeDecodeError:
            self._push(data)

    def _bytes(self, width: int) -> None:
        # The payload itself is part of the file, which the budget leaves out.
        self._budget.charge(_MARK_COST)
        self._stack.append(self._source.take(self._number(width)))

    # Containers

    def _mark(self) -> None:
        self._budget.charge(_MARK_COST)
        self._marks.append(len(self._stack))

    def _tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._push(tuple(reversed(items)))

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            self._budget.charge(_ITEM_COST * len(items))
            target.extend(items)
        elif not isinstance(target, Placeholder):  # a foreign list stays empty
            raise MalformedError(f"appends to a {type(target).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise MalformedError("has a key without a value")
        if isinstance(target, dict):
            self._budget.charge(_ENTRY_COST * len(items) // 2)
            target.update(
                (key(name), value) for name, value in zip(items[::2], items[1::2], strict=True)
            )
        elif not isinstance(target, Placeholder):
            raise MalformedError(f"sets items of a {type(target).__name__}")

    def _add_items(self) -> None:
        items = self._pop_marked()
        target = self._top()
        if isinstance(target, set):
            self._budget.charge(_ENTRY_COST * len(items))
            target.update(key(item) for item in items)
        elif not isinstance(target, Placeholder):
            raise MalformedError(f"adds to a {type(target).__name__}")

    def _frozenset(self) -> None:
        items = self._pop_marked()
        self._budget.charge(_ENTRY_COST * len(items))
        self._push(frozenset(key(item) for item in items))

    def _append_one(self) -> None:
        self._append([self._pop()])

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    # Memo

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _put(self, index: int) -> None:
        self._budget.charge(_ENTRY_COST)
        self._memo[index] = self._top()

    def _get(self, width: int) -> None:
        index = self._number(width)
        if index not in self._memo:
            raise MalformedError(f"refers to object {index} before it is made")
        self._budget.charge(_ITEM_COST)
        self._stack.append(self._memo[index])

    # Names and calls

    def _global(self) -> None:
        module = self._source.line()
        self._push_name(module, self._source.line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedError("names an object by something that is not a string")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        if len(module) + len(name) > MAX_NAME:
            raise MalformedError("has a name without an end")
        full = f"{module}.{name}"
        self._budget.charge(sys.getsizeof(full))
        self._push(Placeholder(full))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Placeholder) or not isinstance(arguments, tuple):
            raise MalformedError(f"calls a {type(function).__name__}")
        rebuild = self._rebuild.get(function.name)
        if rebuild is not None:
            self._push(rebuild(arguments))
        else:
            self._push(Placeholder(made_by(function.name, arguments)))

    def _new_with_keywords(self) -> None:
        self._pop()
        self._reduce()

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        # Else it is the attributes of a placeholder, an OrderedDict or a tensor: not needed.
        if self._set_state is not None:
            self._set_state(target, state)

    def _persistent_id(self) -> None:
        identity = self._pop()
        if self._persistent is None or not isinstance(identity, tuple):
            raise MalformedError("refers to something outside of its pickle")
        self._push(self._persistent(identity))


_OPCODES: Mapping[bytes, Callable[[Unpickler], None]] = {
    b"\x80": Unpickler._protocol,
    b"\x95": Unpickler._frame,
    b"N": lambda self: self._push(None),
    b"\x88": lambda self: self._push(True),
    b"\x89": lambda self: self._push(False),
    b"K": lambda self: self._push(self._number(1)),
    b"M": lambda self: self._push(self._number(2)),
    b"J": Unpickler._signed,
    b"G": Unpickler._float,
    b"\x8a": lambda self: self._long(1),
    b"\x8b": lambda self: self._long(4),
    b"U": lambda self: self._python2_string(1),
    b"T": lambda self: self._python2_string(4),
    b"\x8c": lambda self: self._string(1),
    b"X": lambda self: self._string(4),
    b"\x8d": lambda self: self._string(8),
    b"C": lambda self: self._bytes(1),
    b"B": lambda self: self._bytes(4),
    b"\x8e": lambda self: self._bytes(8),
    b"\x96": lambda self: self._bytes(8),
    b"(": Unpickler._mark,
    b")": lambda self: self._push(()),
    b"t": lambda self: self._push(tuple(self._pop_marked())),
    b"\x85": lambda self: self._tuple(1),
    b"\x86": lambda self: self._tuple(2),
    b"\x87": lambda self: self._tuple(3),
    b"]": lambda self: self._push([]),
    b"l": lambda self: self._push(self._pop_marked()),
    b"a": Unpickler._append_one,
    b"e": lambda self: self._append(self._pop_marked()),
    b"}": lambda self: self._push({}),
    b"s": Unpickler._set_item,
    b"u": lambda self: self._set_items(self._pop_marked()),
    b"\x8f": lambda self: self._push(set()),
    b"\x90": Unpickler._add_items,
    b"\x91": Unpickler._frozenset,
    b"\x94": Unpickler._memoize,
    b"q": lambda self: self._put(self._number(1)),
    b"r": lambda self: self._put(self._number(4)),
    b"h": lambda self: self._get(1),
    b"j": lambda self: self._get(4),
    b"c": Unpickler._global,
    b"\x93": Unpickler._stack_global,
    b"R": Unpickler._reduce,
    b"\x81": Unpickler._reduce,
    b"\x92": Unpickler._new_with_keywords,
    b"b": Unpickler._build,
    b"Q": Unpickler._persistent_id,
}
