"""Ctrl-C while Jittor is imported, which replaces the handler for it with one that exits by 1."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.1
_EXIT_CODE = 128 + signal.SIGINT


@contextlib.contextmanager
def leave_at_ctrl_c(before: Callable[[], object] | None = None) -> Iterator[None]:
    """While entered, Ctrl-C ends the process with 130, whatever handlers C code installs.

    The signal is blocked, so that no handler runs, and a thread waits for it. The import's
    compilers inherit the block, and are ended by SIGTERM, which Jittor does not mind. Python's
    own handler must be back in place at the end. Outside the main thread nothing is changed.
    Threads that were started before with the signal open may still take it.

    Args:
        before: Called before the process ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over, before), daemon=True)
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    thread.start()  # with the signal blocked, as it must be for who waits for it
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _watch(over: threading.Event, before: Callable[[], object] | None) -> None:
    while not over.is_set():
        if signal.sigtimedwait({signal.SIGINT}, _POLL_S) is None:
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
