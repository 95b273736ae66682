"""Keep Jittor's own output off the terminal, and show its compiling as one line instead.

Jittor writes to file descriptor 2 from C++ and holds Python's lock while it compiles, so nothing
in this process could read that output or draw meanwhile. A small process of its own does both
(`monitor.py`): it reads a pipe that takes the place of descriptor 2, appends to the log file, and
draws on the real terminal while compilers run. Python's `sys.stderr` stays on the terminal.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TextIO

from jtlightning.runtime import environment

# Shared with monitor.py: seconds of compiling, sources compiled, 1 once the end is a planned one,
# and how much of a known amount of work is done.
SHARED = struct.Struct("<dqqqq")


class Chatter:
    """Descriptor 2 on its way to a log file, until `close`.

    Args:
        log_file: What Jittor writes is appended here.

    Raises:
        OSError: The log file cannot be written.
    """

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self._pid = os.getpid()
        log_file.parent.mkdir(parents=True, exist_ok=True)
        shared_fd = os.memfd_create("jtlightning")
        os.ftruncate(shared_fd, SHARED.size)
        self._shared = mmap.mmap(shared_fd, SHARED.size)
        self._terminal = os.dup(2)
        read_end, write_end = os.pipe()
        try:
            with log_file.open("ab") as log:
                _start_monitor(log_file, read_end, log.fileno(), self._terminal, shared_fd)
            sys.stderr.flush()
            os.dup2(write_end, 2)
        finally:
            for descriptor in (read_end, write_end, shared_fd):
                os.close(descriptor)
        self._stderr = sys.stderr
        sys.stderr = self._on_terminal()
        atexit.register(self._end_is_planned)

    @property
    def compile_seconds(self) -> float:
        """Seconds during which at least one compiler ran for this process."""
        return float(SHARED.unpack(self._shared)[0])

    @property
    def kernels(self) -> int:
        """Sources compiled so far."""
        return int(SHARED.unpack(self._shared)[1])

    def show_progress(self, done: int, total: int) -> None:
        """Show the line, with a bar for `done` of `total` batches, also between compilations.

        A total of 0 ends that.
        """
        struct.pack_into("<qq", self._shared, 24, done, total)

    def close(self) -> None:
        """Put descriptor 2 and `sys.stderr` back."""
        self._end_is_planned()
        sys.stderr.flush()
        sys.stderr = self._stderr
        os.dup2(self._terminal, 2)
        os.close(self._terminal)
        atexit.unregister(self._end_is_planned)

    def _on_terminal(self) -> TextIO:
        return open(
            self._terminal, "w", encoding=self._stderr.encoding,
            errors="backslashreplace", buffering=1, closefd=False,
        )  # fmt: skip

    def _end_is_planned(self) -> None:
        # A forked child must not speak for its parent.
        if os.getpid() == self._pid:
            struct.pack_into("<q", self._shared, 16, 1)


# The one exception to "no mutable globals": a process has one descriptor 2, and whoever prints the
# compile time is not the one who captured it.
_active: Chatter | None = None


def capture(log_file: Path) -> Chatter | None:
    """Start capturing, unless the user asked to see everything; see the module's docstring."""
    global _active
    if environment.wants_verbose():
        return None
    if _active is None:
        _active = Chatter(log_file)
        if environment.set_by_us("log_silent"):
            os.environ["log_silent"] = "0"  # there is a log file now, so it may have all
        if "jittor" not in sys.modules:
            sys.meta_path.insert(0, _QuietImport())
    return _active


def compile_seconds() -> float:
    """Seconds that compilers have run for this process; 0.0 where nothing is captured."""
    return _active.compile_seconds if _active else 0.0


def _start_monitor(log_file: Path, pipe: int, log: int, terminal: int, shared: int) -> None:
    monitor = Path(__file__).with_name("monitor.py")
    command = [sys.executable, str(monitor), str(os.getpid()), str(shared), str(log_file)]
    # Its own session: Ctrl-C and signals to the group belong to the training. It forks once more
    # and is nobody's child, because Jittor ends a process whose child dies by a signal.
    subprocess.run(
        command, stdin=pipe, stdout=log, stderr=terminal,
        pass_fds=[shared], start_new_session=True, check=True,
    )  # fmt: skip


class _QuietImport:
    """A finder that sends what Jittor prints to stdout during its import to descriptor 2."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find Jittor with the other finders, and wrap its loader."""
        if name != "jittor":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(Loader):
    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the real loader does, its prints going to the log."""
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        with (
            open(2, "w", buffering=1, closefd=False) as log,
            contextlib.redirect_stdout(log),
        ):
            self.inner.exec_module(module)
