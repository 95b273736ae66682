"""Ctrl-C while Jittor is imported, which replaces the handler for it with one that exits by 1."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_OVER = b"\0"  # no signal has this number
_EXIT_CODE = 128 + signal.SIGINT


@contextlib.contextmanager
def leave_at_ctrl_c(before: Callable[[], object] | None = None) -> Iterator[None]:
    """While entered, Ctrl-C ends the process with 130, also where an exception would be lost.

    Jittor's import is full of `except:`, which a KeyboardInterrupt would end in, and runs C++ for
    long. So the handler does nothing, and a thread hears of the signal from C
    (`signal.set_wakeup_fd`). Outside the main thread nothing is changed.

    Args:
        before: Called before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(reader, before), daemon=True)
    previous = signal.signal(signal.SIGINT, _nothing)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.set_wakeup_fd(wakeup)
        os.write(writer, _OVER)
        thread.join()
        os.close(reader)
        os.close(writer)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Stand in for the handler: the signal's number is written all the same."""


def _watch(reader: int, before: Callable[[], object] | None) -> None:
    while (heard := os.read(reader, 1)) != _OVER:
        if heard[0] != signal.SIGINT:
            continue
        for child in _descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        if before is not None:
            before()
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(_EXIT_CODE)  # sys.exit would end this thread only


def _descendants(pid: int) -> list[int]:
    """Children of a process, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process is gone
            # `pid (name) state parent ...`, where the name may hold anything
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for known in found:  # grows while it is walked
        found += children.get(known, [])
    return found[1:]
