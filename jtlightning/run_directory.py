"""The folder of a run: its layout, its lock, and the checkpoints to continue from.

Who runs in a folder holds a kernel lock (flock) on its lock file. The kernel gives it back when
the process is gone, however it ended, so a reused pid, a copied folder or another container with
the same pids cannot be mistaken. Only where the file system has no such locks, the process that
the file names decides, and one of another host counts as alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jtlightning.checkpoint.atomic import atomic_file, make_folder, sweep, sync_folder
from jtlightning.checkpoint.container import read_checkpoint, verify_checkpoint
from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.owner import Owner

_LOG = logging.getLogger(__name__)
_LOCK = "run.lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
# Another process that looks whether we live holds the lock for an instant.
_LOCK_TRIES, _LOCK_PAUSE_S = 20, 0.02
_PACKAGES = ("jtlightning", "segtasks", "jittor", "numpy", "opencv-python-headless", "wandb")


class RunDirectoryError(RuntimeError):
    """The folder of a run cannot be created or written."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> RunDirectoryError:
        """From what the system answers."""
        return cls(
            f"{path}: the run directory cannot be written ({error.strerror or error}); free space "
            "or mend its permissions, or choose another with `trainer.default_root_dir`"
        )


class RunLockedError(RunDirectoryError):
    """Another live process runs in the folder."""


class RunDirectory:
    """A run's folder, locked by this process until `release`.

    Made by `create` or `reopen`.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = _acquire(path / _LOCK)
        # A forked child (Jittor compiles in some) inherits the lock and would keep it for us.
        os.register_at_fork(after_in_child=self._forget)

    @classmethod
    def create(cls, experiment_dir: Path | str) -> RunDirectory:
        """Make and lock `<experiment_dir>/<YYYYmmdd-HHMMSS>-<NN>`; NN numbers a second's runs.

        Raises:
            RunDirectoryError: The folder cannot be written.
        """
        experiment = Path(experiment_dir)
        try:
            make_folder(experiment)
            path = _new_folder(experiment)
            sync_folder(experiment)
            return cls(path)
        except OSError as error:
            raise RunDirectoryError.of(experiment, error) from error

    @classmethod
    def reopen(cls, path: Path | str) -> RunDirectory:
        """Lock the folder of an earlier run to continue in it; a dead owner's lock is taken over.

        Raises:
            RunLockedError: Its owner is alive.
            RunDirectoryError: There is no such folder, or it cannot be written.
        """
        path = Path(path)
        try:
            run = cls(path)
            if run._checkpoints.is_dir():
                sweep(run._checkpoints, all_owners=True)
        except OSError as error:
            raise RunDirectoryError.of(path, error) from error
        return run

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints, made when first asked for."""
        return self._folder(self._checkpoints)

    @property
    def pictures(self) -> Path:
        """The folder for pictures, made when first asked for."""
        return self._folder(self.path / "pictures")

    def write_environment(self, command: Sequence[str]) -> None:
        """Write `environment.json`: versions, git commit, hardware and `command`.

        Raises:
            RunDirectoryError: The folder cannot be written.
        """
        text = json.dumps(_environment(command), indent=2) + "\n"
        try:
            with atomic_file(self.path / "environment.json") as write:
                write(text.encode())
        except CheckpointError as error:
            raise RunDirectoryError(str(error)) from error

    def release(self) -> None:
        """Give the lock back; the folder may then be reopened."""
        if self._lock is not None:
            # Empty, so that no owner is found where locks are not supported.
            os.ftruncate(self._lock, 0)
            self._forget()

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _folder(self, path: Path) -> Path:
        try:
            make_folder(path)
        except OSError as error:
            raise RunDirectoryError.of(path, error) from error
        return path

    def _forget(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def find_checkpoint(experiment_dir: Path | str, which: Literal["last", "best"]) -> Path | None:
    """Find the checkpoint to continue from, or to use, among an experiment's runs.

    Runs of other live processes, weights-only files and damaged ones (with a warning that names
    file and reason) are left out. What counts is the recorded position, never a file's time.

    Args:
        experiment_dir: Its subfolders are runs.
        which: `last` is the one furthest in training. `best` is the file that the state of the
            model checkpoint in `last` names, the one with a monitored metric if there are several.

    Returns:
        None where there is nothing to find.
    """
    candidates = sorted(_candidates(Path(experiment_dir)), key=lambda c: c.rank, reverse=True)
    for candidate in candidates:
        try:
            metadata = verify_checkpoint(candidate.path)
            if which == "last":
                return candidate.path
            best = _best_of(metadata, candidate.path.parent)
            if best is None or best == candidate.path:
                return best
            verify_checkpoint(best)
        except CheckpointError as error:
            _LOG.warning("left out: %s", error)
            continue
        return best
    return None


@dataclass(frozen=True)
class _Candidate:
    path: Path
    rank: tuple[Any, ...]


def _candidates(experiment: Path) -> Iterator[_Candidate]:
    for folder in sorted(experiment.glob("*/checkpoints")):
        if _locked_by_another(folder.parent / _LOCK):
            _LOG.warning("left out: %s, as another process is running there", folder.parent)
            continue
        with contextlib.suppress(OSError):  # a folder that may only be read stays as it is
            sweep(folder)  # of a run that was killed in its first save, and is never continued
        for path in sorted(folder.glob("*.ckpt")):
            try:
                metadata = read_checkpoint(path, tensors=False).metadata
                if "optimizer" in metadata:  # else it holds weights only
                    yield _Candidate(path, _rank(metadata, path))
            except CheckpointError as error:
                _LOG.warning("left out: %s", error)


def _rank(metadata: dict[str, Any], path: Path) -> tuple[Any, ...]:
    """Order of progress: later steps, and within a step what is further in its epoch."""
    loop = metadata.get("loop")
    position = [
        loop.get(name, None if name == "global_step" else 0) if isinstance(loop, dict) else None
        for name in ("global_step", "epoch", "batch_in_epoch")
    ]
    if loop is None or not all(isinstance(number, int) for number in position):
        raise CheckpointError(path, f"has no position to continue from (loop is {loop!r:.80})")
    return (
        *position,
        not loop.get("validation_due", False),
        loop.get("epoch_finished", False),
        path.name == "last.ckpt",
        str(path),
    )


def _best_of(metadata: dict[str, Any], folder: Path) -> Path | None:
    states = [
        state
        for key, state in sorted(metadata.get("callbacks", {}).items())
        if key.startswith("ModelCheckpoint") and state.get("best_model_path")
    ]
    # False sorts first: one with a score says more than one that keeps the newest.
    states.sort(key=lambda state: state.get("best_model_score") is None)
    # Only its name: the folder may have been moved since.
    return folder / Path(states[0]["best_model_path"]).name if states else None


def _new_folder(experiment: Path) -> Path:
    while True:
        second = f"{datetime.now():%Y%m%d-%H%M%S}"
        for number in range(1, 100):
            path = experiment / f"{second}-{number:02d}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
        time.sleep(_LOCK_PAUSE_S)  # a hundred runs in one second


def _acquire(path: Path) -> int:
    """Open and lock a lock file, and write down who owns it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX, _LOCK_TRIES):
            owner = _read_owner(descriptor)
            who = f"process {owner.pid} on {owner.host}" if owner else "another process"
            raise RunLockedError(
                f"{path.parent}: {who} is running in this folder; "
                "wait for it, stop it, or start a run of your own"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner.current())).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _locked_by_another(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # a folder without a lock file, or one that a running owner could not hide
    try:
        if _lock(descriptor, fcntl.LOCK_SH, 1):
            return False
        return _read_owner(descriptor) != Owner.current()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int, tries: int) -> bool:
    for attempt in range(tries):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(_LOCK_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            owner = _read_owner(descriptor)
            return owner is None or not owner.alive()
        else:
            return True
    return False


def _read_owner(descriptor: int) -> Owner | None:
    """Who the lock file names; None if it is empty or not readable as that."""
    try:
        fields = json.loads(os.pread(descriptor, 4096, 0))
        return Owner(str(fields["host"]), int(fields["pid"]), int(fields["started"]))
    except (ValueError, TypeError, KeyError):
        return None


def _environment(command: Sequence[str]) -> dict[str, Any]:
    return {
        "command": list(command),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),
        "host": platform.node(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"),
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := _version(name))},
        "git_commit": _output("git", "rev-parse", "HEAD"),
        "git_changes": _output("git", "status", "--porcelain", "--untracked-files=no"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints; None where it is missing, slow, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
