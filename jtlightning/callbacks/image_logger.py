"""Show what the task predicts, as pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.atomic import atomic_file
from jtlightning.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)


class ImageLogger(Callback):
    """Log pictures of the predictions in every n-th validation.

    The task draws them, in a method of its own that is called after `validation_step`, where
    values may be read:

        def prediction_images(self, batch, outputs) -> Iterable[tuple[str, np.ndarray]]

    with what `validation_step` returned as `outputs`, giving a name and a picture (H, W, 3),
    uint8 RGB, for each sample. No more are drawn than are logged where it is a generator. The
    pictures go to every logger that shows pictures; where there is none, to
    `pictures/<name>-step<step>.png` in the run's folder.

    Args:
        every_n_validations: 1 for all; the sanity check does not count.
        batches: Batches at the start of a validation that are drawn.
        limit: Most pictures of one validation.
    """

    def __init__(self, every_n_validations: int = 1, batches: int = 1, limit: int = 8) -> None:
        for name, value in (
            ("every_n_validations", every_n_validations),
            ("batches", batches),
            ("limit", limit),
        ):
            if value < 1:
                raise ValueError(f"ImageLogger.{name} must be >= 1, got {value}")
        self.every_n_validations, self.batches, self.limit = every_n_validations, batches, limit
        self._validations = 0  # begun so far
        self._left = 0  # pictures that this validation may still have
        self._can_save = True

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        self._can_save = True
        if stage in ("fit", "validate") and not hasattr(task, "prediction_images"):
            raise ValueError(
                f"ImageLogger asks the task for pictures, but {type(task).__name__} has no "
                "prediction_images(batch, outputs); write it, or leave the callback out"
            )

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        self._left = 0
        if trainer.sanity_checking:
            return
        due = trainer.stage == "validate" or self._validations % self.every_n_validations == 0
        self._left = self.limit if due else 0
        self._validations += int(trainer.stage == "fit")

    def on_validation_batch_end(
        self, trainer: Trainer, task: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._left == 0 or batch_idx >= self.batches:
            return
        drawn: Iterable[tuple[str, np.ndarray]] = task.prediction_images(batch, outputs)
        for name, image in islice(drawn, self._left):
            _check(name, image, task)
            self._left -= 1
            self._show(trainer, name, image)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._validations = state["validations"]

    def _show(self, trainer: Trainer, name: str, image: np.ndarray) -> None:
        if any(logger.shows_pictures for logger in trainer.started_loggers):
            trainer.tell_loggers("log_image", name, image, step=trainer.global_step)
        elif trainer.run is not None and self._can_save:
            self._save(trainer, name, image)

    def _save(self, trainer: Trainer, name: str, image: np.ndarray) -> None:
        assert trainer.run is not None
        try:
            path = _file(trainer.run.pictures, name, trainer.global_step)
            with atomic_file(path) as write:
                write(_as_png(image))
        except (CheckpointError, OSError, RuntimeError) as error:
            _log.warning("ImageLogger saves no more pictures, training goes on: %s", error)
            self._can_save = False


def _check(name: str, image: np.ndarray, task: Task) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"{type(task).__name__}.prediction_images must give (H, W, 3) uint8 pictures, got "
            f"{image.shape} {image.dtype} for {name!r}"
        )


def _file(folder: Path, name: str, step: int) -> Path:
    """`predictions/room 1` of step 200: predictions/room_1-step0000200.png."""
    parts = [re.sub(r"[^\w\-.]", "_", part) for part in name.split("/") if part.strip(".")]
    *folders, last = parts or ["picture"]
    return folder.joinpath(*folders) / f"{last}-step{step:07d}.png"


def _as_png(image: np.ndarray) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", image[..., ::-1])[1])
