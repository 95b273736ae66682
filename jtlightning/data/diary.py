"""What a worker is doing, for the parent to read once the worker does not answer any more."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import time

_INDEX = struct.Struct("<q")
NO_SAMPLE = -1
_ANSWER_S = 0.5
_SETTLED_S = 0.05


class Diary:
    """The index of the sample in hand and, on demand, the traceback, in a shared memory file.

    It works also while the worker hangs in C code, which no message would get out of.

    Args:
        file: Descriptor of the memory file, open in both processes.
    """

    def __init__(self, file: int) -> None:
        self.file = file
        self._index = mmap.mmap(file, _INDEX.size)

    @classmethod
    def create(cls) -> Diary:
        """A diary for a worker that is about to start."""
        file = os.memfd_create("jtlightning-diary")
        os.ftruncate(file, _INDEX.size)
        diary = cls(file)
        diary.note(NO_SAMPLE)
        return diary

    def close(self) -> None:
        """Close this process's descriptor."""
        self._index.close()
        os.close(self.file)

    def open_for_tracebacks(self) -> None:
        """In the worker: from now on SIGUSR1 writes the main thread's traceback."""
        os.lseek(self.file, _INDEX.size, os.SEEK_SET)
        faulthandler.register(signal.SIGUSR1, file=self.file, all_threads=False)

    def note(self, index: int = NO_SAMPLE) -> None:
        """In the worker: this sample comes next, or none."""
        _INDEX.pack_into(self._index, 0, index)

    @property
    def index(self) -> int | None:
        """The sample in hand, None where there is none."""
        (index,) = _INDEX.unpack_from(self._index)
        return None if index == NO_SAMPLE else index

    def traceback_of(self, pid: int) -> str:
        """Where the worker is, innermost call first; empty where it is stopped by a signal."""
        os.kill(pid, signal.SIGUSR1)
        size, changed = _INDEX.size, time.monotonic()
        deadline = changed + _ANSWER_S
        while time.monotonic() < deadline:
            now = os.fstat(self.file).st_size
            if now > size:
                size, changed = now, time.monotonic()
            elif size > _INDEX.size and time.monotonic() - changed > _SETTLED_S:
                break
            time.sleep(_SETTLED_S / 10)
        return os.pread(self.file, size, _INDEX.size).decode(errors="replace")
