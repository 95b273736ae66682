"""A file system of its own that can be filled and made read-only, where the system allows one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jtlightning import signals


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    signals.reclaim()
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


class SmallDisk:
    """A mounted tmpfs of some KiB."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, *, leave: int = 0) -> Path:
        """Write until nothing more fits but `leave` bytes (in whole pages); returns that file."""
        ballast = self.path / "ballast"
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while os.write(descriptor, bytes(4096)):
                pass
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, max(size - leave, 0))
        os.close(descriptor)
        return ballast

    def remount(self, option: str) -> None:
        """`ro` or `rw`."""
        assert _mount("-o", f"remount,{option}", str(self.path)).returncode == 0


@contextlib.contextmanager
def mounted(path: Path, kibibytes: int) -> Iterator[SmallDisk]:
    """Mount a disk; skips the test where that is not permitted."""
    path.mkdir()
    done = _mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path))
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
