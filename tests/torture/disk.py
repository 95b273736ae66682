"""A disk that loses its power: what a folder's file operations leave at each moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

#: What may be lost of the operations since the last fsync.
LOSSES = ("data", "torn data", "names", "new names")


@dataclass(frozen=True)
class Operation:
    """One change of the disk: what was called, on which files, and a file's bytes at its fsync."""

    name: str
    path: str
    other: str = ""
    content: bytes | None = None


class _Recorder:
    """The one audit hook of this process, which cannot be removed again; idle unless told."""

    def __init__(self) -> None:
        self.heard: Callable[[str, tuple[Any, ...]], None] | None = None
        self.installed = False

    def listen(self, heard: Callable[[str, tuple[Any, ...]], None] | None) -> None:
        self.heard = heard
        if not self.installed:
            sys.addaudithook(self._audit)
            self.installed = True

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.heard is not None:
            self.heard(event, arguments)


_RECORDER = _Recorder()


@contextmanager
def recorded(folder: Path) -> Iterator[list[Operation]]:
    """Record what changes `folder` and below, in order, while everything really happens.

    Names come from Python's audit events, so that no way of calling the system is missed; writes
    and syncs, which have none, from `os.write` and `os.fsync`.
    """
    log: list[Operation] = []
    write, fsync = os.write, os.fsync

    def inside(*names: Any) -> bool:
        return all(isinstance(n, str | Path) and Path(n).is_relative_to(folder) for n in names)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        first, second = [*arguments, None, None][:2]
        if event in ("os.rename", "os.link") and inside(first, second):
            log.append(Operation(event[3:], str(first), str(second)))
        elif event in ("os.remove", "os.mkdir") and inside(first):
            log.append(Operation(event[3:], str(first)))
        elif event == "open" and inside(first) and arguments[2] & os.O_CREAT:
            emptied = arguments[2] & os.O_TRUNC and Path(first).exists()
            log.append(Operation("truncate" if emptied else "create", str(first)))

    def writing(descriptor: int, data: Any) -> int:
        done = write(descriptor, data)
        name = _name_of(descriptor)
        if inside(name):
            log.append(Operation("write", name))
        return done

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        name = _name_of(descriptor)
        if inside(name):
            content = None if Path(name).is_dir() else Path(name).read_bytes()
            log.append(Operation("fsync", name, content=content))

    _RECORDER.listen(heard)
    try:
        with mock.patch.object(os, "write", writing), mock.patch.object(os, "fsync", syncing):
            yield log
    finally:
        _RECORDER.listen(None)


def _name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


@dataclass
class Disk:
    """Names and contents, as processes see them and as they would be found after a power loss.

    Attributes:
        seen: Path -> number of the file; None for a folder. What processes see.
        kept: The same on the disk: a folder's names as of its last fsync.
        contents: Number of a file -> its bytes at its last fsync.
        removed: Names that were removed since; they may be gone although others are not there.
    """

    seen: dict[str, int | None] = field(default_factory=dict)
    kept: dict[str, int | None] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    _files: int = 0

    def apply(self, done: Operation) -> None:
        """One operation more."""
        if done.name == "mkdir":
            self.seen[done.path] = None
        elif done.name == "create" and done.path not in self.seen:
            self._files += 1
            self.seen[done.path] = self._files
        elif done.name == "truncate":
            self.contents.pop(self.seen[done.path] or 0, None)
        elif done.name == "link":
            self.seen[done.other] = self.seen[done.path]
        elif done.name == "rename":
            # Of two names of one file, rename() does nothing.
            if self.seen.get(done.other, -1) != self.seen[done.path]:
                self.seen[done.other] = self.seen.pop(done.path)
        elif done.name == "remove" and self.seen.pop(done.path, None) is not None:
            self.removed.add(done.path)
        elif done.name == "fsync" and done.content is None:
            self._keep_names(done.path)
        elif done.name == "fsync":
            number = self.seen[done.path]
            assert number is not None
            assert done.content is not None
            self.contents[number] = done.content

    def _keep_names(self, folder: str) -> None:
        here = [path for path in {*self.seen, *self.kept} if str(Path(path).parent) == folder]
        for path in here:
            self.removed.discard(path)
            if path in self.seen:
                self.kept[path] = self.seen[path]
            else:
                self.kept.pop(path, None)

    def after_power_loss(self, loss: str) -> dict[str, bytes | None]:
        """Path -> content of all that is found then; None for a folder.

        Args:
            loss: `data`: what was not synced of files; `torn data`: the half of it that came
                first; `names`: all changes of folders that were not synced, too; `new names`: of
                those only what was added, as if every removal reached the disk at once.
        """
        names = dict(self.seen if "data" in loss else self.kept)
        if loss == "new names":
            names = {path: number for path, number in names.items() if path not in self.removed}
        found: dict[str, bytes | None] = {}
        for path, number in names.items():
            parents = [str(parent) for parent in Path(path).parents if str(parent) in self.seen]
            if not all(parent in names for parent in parents):
                continue  # its folder itself is not there
            found[path] = None if number is None else self._content(path, number, loss)
        return found

    def _content(self, path: str, number: int, loss: str) -> bytes:
        if number in self.contents:
            return self.contents[number]
        if loss == "torn data" and Path(path).exists():
            whole = Path(path).read_bytes()
            return whole[: len(whole) // 2]
        return b""
