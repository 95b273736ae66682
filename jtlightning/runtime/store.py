"""Folders that are written once, whole or not at all, by whichever process comes first."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

TYPE_CHECKING = False  # as in runtime/__init__: typing is not imported for this
if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = "jtlightning"
#: Stands in every folder that is whole.
CONTENT = "content.json"
_ASIDE = ".unfinished-"


def cache(jittor_home: Path) -> Path:
    """The folder that holds everything that this package writes for Jittor."""
    return jittor_home / ".cache" / "jittor" / FOLDER


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Have `target` built, unless it is there and whole.

    Processes that come meanwhile wait. What a killed process has left is cleared away, and a
    folder that has lost files, or whose links lead nowhere any more, is built anew.

    Args:
        target: The folder.
        build: Fills the empty folder that it is given, which then becomes `target`.

    Returns:
        `target`.

    Raises:
        OSError: Something cannot be written.
    """
    if is_whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or the process dies
        if is_whole(target):
            return target
        for leftover in [*target.parent.glob(f"*{_ASIDE}*"), target]:
            if leftover.exists():
                shutil.rmtree(leftover)
        aside = Path(tempfile.mkdtemp(prefix=target.name + _ASIDE, dir=target.parent))
        try:
            build(aside)
            aside.chmod(0o755)  # others may share the cache; mkdtemp makes it ours alone
            _note_content(aside)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def is_whole(folder: Path) -> bool:
    """Whether a folder is there with every file in its size."""
    try:
        content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(_size(folder / name) == size for name, size in content.items())


def _note_content(folder: Path) -> None:
    content = {}
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in [*files, *links]:
            path = Path(place, name)
            content[path.relative_to(folder).as_posix()] = _size(path)
    with (folder / CONTENT).open("w", encoding="utf-8") as file:
        json.dump(content, file)


def _size(path: Path) -> int | None:
    """Bytes of a file, 0 for a folder, None for nothing."""
    try:
        return path.stat().st_size if not path.is_dir() else 0
    except OSError:
        return None
