"""The kernels in Jittor's cache: which are there, and which a piece of work has added."""

from __future__ import annotations

import os
from pathlib import Path


def stamps(cache: Path) -> dict[str, int]:
    """File name of every compiled kernel -> when it was written, in ns.

    Args:
        cache: `jittor.flags.cache_path`; a folder that is not there holds no kernels.
    """
    folder = cache / "jit"
    if not folder.is_dir():
        return {}
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".so"):
                found[entry.name] = entry.stat().st_mtime_ns
    return found


def added(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Kernels that were compiled between two calls of `stamps`, for the first time or anew."""
    return sorted(name for name, stamp in after.items() if before.get(name) != stamp)
