"""The process beside a training: writes the log and draws the line; see `chatter.py`.

Run as a file, apart from the package. Standard input is the pipe with Jittor's output, standard
output the log file, standard error the terminal.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import struct
import sys
import time
from pathlib import Path

COMPILERS = {"cc1plus", "g++", "as", "ld", "collect2", "nvcc", "cicc", "ptxas", "cudafe++", "clang"}
SOURCE = re.compile(r"\.(cc|cu|cpp)$")
COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
POLL_S = 0.2
SHOW_AFTER_S = 1.0  # shorter compilations are not worth a flicker
PLAIN_EVERY_S = 20.0
BAR_WIDTH = 24
TAIL_LINES = 15


def main(argv: list[str]) -> None:
    """Leave the parent's family, then serve it until it ends."""
    parent, shared_fd, log_path = int(argv[0]), int(argv[1]), argv[2]
    try:
        pidfd = os.pidfd_open(parent)
    except OSError:  # it ended already, or the kernel is older than 5.3
        pidfd = -1
    if os.fork():
        os._exit(0)
    shared = mmap.mmap(shared_fd, os.fstat(shared_fd).st_size)
    line = Line(shared)
    log = Log()
    with contextlib.suppress(OSError):  # terminal or disk are gone: there is nobody to tell
        while serve_once(parent, pidfd, log, line):
            pass
    line.hide()
    log.drain()
    if not struct.unpack_from("<q", shared, 16)[0]:
        say_where(log_path, log)


def serve_once(parent: int, pidfd: int, log: Log, line: Line) -> bool:
    """Wait for output or the next tick; False when the parent is gone or nobody writes any more."""
    ready, _, _ = select.select([0] if pidfd < 0 else [0, pidfd], [], [], POLL_S)
    if 0 in ready and not log.read():
        return False
    if pidfd in ready or not Path(f"/proc/{parent}").exists():
        return False
    line.update(*compiling(parent))
    return True


class Log:
    """Copies standard input to standard output, without colours and rewritten lines."""

    def __init__(self) -> None:
        self.rest = b""
        self.tail: list[bytes] = []

    def read(self) -> bool:
        """Copy what is there; False at the end of the input."""
        data = os.read(0, 1 << 16)
        text = COLOUR.sub(b"", (self.rest + data)).replace(b"\r", b"\n")
        lines = text.split(b"\n")
        self.rest = lines.pop() if data else b""
        lines = [item for item in lines if item.strip()]
        if lines:
            os.write(1, b"\n".join(lines) + b"\n")
            self.tail = [*self.tail, *lines][-TAIL_LINES:]
        return bool(data)

    def drain(self) -> None:
        """Copy what is left in the pipe, without waiting for other processes that hold it."""
        while select.select([0], [], [], 0)[0] and self.read():
            pass
        if self.rest:
            os.write(1, self.rest + b"\n")


class Line:
    """The line about compiling: drawn in place on a terminal, else a plain one now and then."""

    def __init__(self, shared: mmap.mmap) -> None:
        self.shared = shared
        self.seen: set[str] = set()
        self.seconds = 0.0
        self.last_s = time.monotonic()
        self.began_s: float | None = None
        self.plain_s = -PLAIN_EVERY_S
        self.shown = False
        self.terminal = os.isatty(2)

    def update(self, active: bool, sources: set[str]) -> None:
        """Account for the time since the last call, and draw."""
        now = time.monotonic()
        self.seen |= sources
        if active and self.began_s is not None:
            self.seconds += now - self.last_s
        self.last_s = now
        struct.pack_into("<dq", self.shared, 0, self.seconds, len(self.seen))
        _, total = self.progress()
        if not active:
            self.began_s = None
        elif self.began_s is None:
            self.began_s = now
        if total or (self.began_s is not None and now - self.began_s >= SHOW_AFTER_S):
            self.show(now, core=any("/jit/" not in source for source in sources))
        elif not active:
            self.hide()

    def progress(self) -> tuple[int, int]:
        """Batches done, of how many; 0 of 0 where nobody has said."""
        done, total = struct.unpack_from("<qq", self.shared, 24)
        return min(done, total), total

    def show(self, now: float, *, core: bool) -> None:
        """Draw the line."""
        what = "Jittor itself (once per machine)" if core else "kernels"
        clock = f"{int(self.seconds) // 60}:{int(self.seconds) % 60:02}"
        text = f"Compiling {what}: {len(self.seen)} files, {clock}"
        done, total = self.progress()
        if total:
            text += f", batch {done} of {total}"
        if self.terminal:
            from rich.console import Console  # only now: most runs compile nothing
            from rich.spinner import Spinner
            from rich.text import Text

            console = Console(file=sys.stderr, highlight=False)
            utf = console.encoding.startswith("utf")
            frame = Spinner("dots" if utf else "line").render(now)
            line = Text.assemble(str(frame), " ", text, style="cyan")
            if total:
                filled = BAR_WIDTH * done // total
                stroke, rest = ("━", "─") if utf else ("#", ".")
                line.append(f" {stroke * filled}{rest * (BAR_WIDTH - filled)}")
            # The cursor stays at the start, where the next output of the training overwrites it.
            sys.stderr.write("\r\x1b[2K")
            console.print(line, end="\r", no_wrap=True, overflow="ellipsis")
        elif now - self.plain_s >= PLAIN_EVERY_S:
            self.plain_s = now
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
        self.shown = True

    def hide(self) -> None:
        """Take the line away."""
        if self.shown and self.terminal:
            with contextlib.suppress(OSError):
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()
        self.shown = False


def compiling(parent: int) -> tuple[bool, set[str]]:
    """Whether compilers run below a process, and the sources that they work on."""
    if read(f"/proc/{parent}/stat").rpartition(") ")[2].startswith("T"):
        return False, set()  # stopped by Ctrl-Z: the terminal is somebody else's
    active, sources = False, set()
    waiting = children(parent)
    while waiting:
        pid = waiting.pop()
        waiting += children(pid)
        name = read(f"/proc/{pid}/comm").strip()
        command = read(f"/proc/{pid}/cmdline").split("\0")
        if name in COMPILERS or any(item.endswith("asm_tuner.py") for item in command[:3]):
            active = True
            sources |= {item for item in command if SOURCE.search(item) and item[0] == "/"}
    return active, sources


def children(pid: int) -> list[int]:
    """Process ids of the children that any thread of a process has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, read(f"{task}/children").split())
    return found


def read(path: str) -> str:
    """The content of a file in /proc; empty when the process is gone."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def say_where(log_path: str, log: Log) -> None:
    """Tell where Jittor's last words are: the parent was killed, or crashed."""
    text = b"\n".join(log.tail).decode(errors="replace")
    with contextlib.suppress(OSError):
        sys.stderr.write(f"The process ended without finishing. Jittor's log: {log_path}\n")
        if text:
            sys.stderr.write(f"Its last lines:\n{text}\n")


if __name__ == "__main__":
    # This folder's modules must not stand before the libraries of the same name.
    sys.path.pop(0)
    main(sys.argv[1:])
