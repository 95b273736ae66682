"""Files that are either the old or the new version, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.owner import Owner

_TEMPORARY = re.compile(r"\.jtl-(?P<pid>\d+)-(?P<started>\d+)-[0-9a-f]{8}-(?P<host>.*)\.tmp")
#: What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
Write = Callable[[memoryview | bytes], None]


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Write]:
    """Give a function that writes bytes; they become `path` when the block ends without error.

    The bytes go to a temporary file in the same folder and are on the disk (fsync) before the
    rename, the rename before the block ends. Temporary files of dead writers are removed.

    Raises:
        CheckpointError: the system refused (disk full, read-only, quota, I/O error). The old file
            is intact and the temporary file is gone.
    """
    temporary: Path | None = None
    try:
        make_folder(path.parent)
        sweep(path.parent)
        temporary = _temporary_name(path.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            yield lambda data: _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise CheckpointError(path, *_explain(path, error)) from error
    except BaseException:
        _discard(temporary)
        raise


def publish_file(
    path: Path, link: Path | None, retired: list[Path], write: Callable[[Path], None]
) -> None:
    """Let `write` make a file; once it is on the disk, link it and remove the older ones.

    Args:
        path: What `write` is called with; it writes through `atomic_file`.
        link: A second name for the file.
        retired: Files that go when all else is done.
        write: Makes the file.

    Raises:
        CheckpointError: The system refused; nothing has been removed unless the file is there.
    """
    make_folder(path.parent)
    write(path)
    if link is not None:
        link_file(path, link)
    for old in retired:
        remove_file(old)


def link_file(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, replacing it in one step.

    A hard link, or a copy on file systems that have none.

    Raises:
        CheckpointError: the system refused; the old `target` is intact.
    """
    temporary = _temporary_name(target.parent)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise CheckpointError(target, *_explain(target, error)) from error
    finally:
        # rename() of two names of one file does nothing and leaves the temporary one.
        _discard(temporary)


def remove_file(path: Path) -> None:
    """Remove a file that is no longer needed; it may be gone already.

    Raises:
        CheckpointError: The system refused.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = f"could not be removed: {error.strerror or error}"
        raise CheckpointError(
            path, reason, "mend the permissions; newer ones are intact"
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents so that they survive a power loss."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sweep(folder: Path, *, all_owners: bool = False) -> None:
    """Remove the temporary files of dead writers; with `all_owners` those of every other process.

    Only who holds the lock of the run directory may ask for `all_owners`: it also removes what a
    machine that is gone has left.
    """
    me = Owner.current()
    for entry in folder.iterdir():
        match = _TEMPORARY.fullmatch(entry.name)
        if match is None:
            continue
        owner = Owner(match["host"], int(match["pid"]), int(match["started"]))
        if owner != me and (all_owners or not owner.alive()):
            entry.unlink(missing_ok=True)


def _temporary_name(folder: Path) -> Path:
    me = Owner.current()
    return folder / f".jtl-{me.pid}-{me.started}-{secrets.token_hex(4)}-{me.host}.tmp"


def _write_all(descriptor: int, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while len(view):  # one call writes at most 2 GiB, and less when a signal arrives
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Let what was created or renamed in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(temporary: Path | None) -> None:
    if temporary is not None:
        # Where even this fails, the next writer sweeps; the first error is the one to report.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _explain(path: Path, error: OSError) -> tuple[str, str]:
    """Reason and remedy for a failed write."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB free"
    except OSError:
        free = "free space unknown"
    reason = f"could not be written: {error.strerror or error} ({free} in {folder})"
    return reason, "free space or mend the permissions; what was saved before is intact"
