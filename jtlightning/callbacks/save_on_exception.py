"""Save the run when an error ends it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jtlightning.callbacks.base import Callback

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)


class SaveOnException(Callback):
    """Save the last finished step when an error ends training; Lightning's `OnExceptionCheckpoint`.

    The file is a whole checkpoint, which `ckpt_path: auto` finds and continues from. It holds the
    state of the last step boundary: nothing of the step or the validation that failed, so the
    resumed run repeats it. An error before the first step of the process leaves no file, as
    nothing is lost then, and neither do Ctrl-C and other requests to exit, which the trainer saves
    itself. Where saving fails as well, that is logged, and the first error is the one that is
    raised.

    Args:
        filename: Name of the file, without its suffix.
        dirpath: Folder to save in; by default `checkpoints` in the run's folder.
    """

    def __init__(self, filename: str = "exception", dirpath: str | None = None) -> None:
        if filename in ("", "..") or Path(filename).name != filename:
            raise ValueError(
                f"SaveOnException.filename must be a file's name alone, got {filename!r}"
            )
        self.filename, self.dirpath = filename, dirpath
        self._path: Path | None = None
        self._first_step: int | None = None

    @property
    def state_key(self) -> str:
        return f"SaveOnException({self.filename})"

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._first_step = self._path = None
        if stage != "fit" or not trainer.enable_checkpointing:
            return
        folder = Path(self.dirpath) if self.dirpath is not None else None
        if folder is None and trainer.run is not None:
            folder = trainer.run.path / "checkpoints"  # made only when there is something to save
        if folder is None:
            raise ValueError("SaveOnException needs `dirpath`: this run has no folder of its own")
        self._path = folder / f"{self.filename}.ckpt"

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        self._first_step = trainer.global_step

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        # KeyboardInterrupt and SystemExit: the trainer has saved, or was told not to.
        if self._path is None or not isinstance(exception, Exception):
            return
        if self._first_step is None or trainer.global_step == self._first_step:
            return
        if not trainer.at_step_boundary:
            _log.warning("%s is not written: a step was under way", self._path)
            return
        try:
            trainer.save_checkpoint(self._path)
        except Exception as second:  # noqa: BLE001 - must not take the place of the first error
            _log.error("%s could not be saved after an error: %s", self._path, second)
        else:
            _log.info("saved step %d to %s after an error", trainer.global_step, self._path)
