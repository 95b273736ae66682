"""Which process owns a file: host, pid and start time, so that a reused pid is no owner."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process. `started` is in clock ticks since boot, 0 where the system does not tell."""

    host: str
    pid: int
    started: int

    @classmethod
    def current(cls) -> Owner:
        """The calling process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0)

    def alive(self) -> bool:
        """Whether it still runs; a process of another host cannot be asked and counts as alive."""
        if self.host != socket.gethostname():
            return True
        return _started(self.pid) == self.started


def _started(pid: int) -> int | None:
    """Start time of a running process, None where there is none (a zombie is none)."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return 0  # it runs, under another user
        return 0
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command in brackets and may itself contain blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
