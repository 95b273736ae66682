"""Counts the file operations of a save, and can stop the process at one of them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Audit events of the operations that change a folder, by the name that they are told under.
_AUDITED = {"os.rename": "rename", "os.link": "link", "os.remove": "remove"}


class Operations:
    """Numbers every operation by which a save changes the disk, from 0 in each save.

    Args:
        tell: Gets an event `saved` with the operations of each finished save.
        pause: Called before the chosen operation; in a write, when half of it is done.
        chosen: `SAVE:NAME:NUMBER`: from that save of this process on (the first is 1), the first
            that has so many operations of the name; empty for none.
    """

    def __init__(self, tell: Callable[..., None], pause: Callable[..., None], chosen: str) -> None:
        self._tell, self._pause = tell, pause
        first, self._name, number = chosen.split(":") if chosen else ("0", "", "0")
        self._first, self._number = int(first), int(number)
        self._saves = 0
        self._thread = threading.local()  # `names`: operations of the save that this thread runs
        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self._writing, self._syncing
        sys.addaudithook(self._audit)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count what this thread does inside as one save."""
        self._saves += 1
        self._thread.names = []
        yield
        names = self._thread.names
        del self._thread.names
        self._tell("saved", operations=names)

    def _reached(self, name: str) -> bool:
        """Note an operation; True where it is the chosen one."""
        names = getattr(self._thread, "names", None)
        if names is None:
            return False
        names.append(name)
        here = name == self._name and names.count(name) == self._number
        if not here or self._saves < self._first:
            return False
        self._name = ""  # once
        return True

    def _wait(self, name: str) -> None:
        names = self._thread.names
        del self._thread.names  # what the pause writes is no operation of the save
        self._pause(f"{name} of a save")
        self._thread.names = names

    def _writing(self, descriptor: int, data: Any) -> int:
        if not self._reached("write"):
            return self._write(descriptor, data)
        done = self._write(descriptor, data[: len(data) // 2])
        self._wait("write")
        return done if done else self._write(descriptor, data)

    def _syncing(self, descriptor: int) -> None:
        if self._reached("fsync"):
            self._wait("fsync")
        self._fsync(descriptor)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        name = _AUDITED.get(event)
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT:
            name = "create" if isinstance(arguments[0], str | Path) else None
        if name is not None and self._reached(name):
            self._wait(name)
