from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jtlightning.callbacks.image_logger import ImageLogger
from jtlightning.loggers.base import Logger
from jtlightning.loggers.csv import CSVLogger
from tests.jtlightning.fake_trainer import FakeTrainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class Pictures(Logger):
    """Keeps the pictures that it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        self.images: dict[str, np.ndarray] = {}

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        self.seen.append((step, name))
        self.images[name] = image


class Drawing:
    """A task that draws three pictures of a batch, and knows how many."""

    drawn = 0

    def prediction_images(self, batch: Any, outputs: Any) -> Iterator[tuple[str, np.ndarray]]:
        for index in range(3):
            self.drawn += 1
            yield f"{batch}/{index}", np.full((2, 4, 3), (outputs, index, 7), np.uint8)


def validate(trainer: FakeTrainer, callback: ImageLogger, task: Any, batches: int = 3) -> None:
    callback.on_validation_start(trainer, task)
    for index in range(batches):
        callback.on_validation_batch_end(trainer, task, 10 * index, f"b{index}", index)


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    trainer = FakeTrainer(tmp_path)
    trainer.loggers = [Pictures(), Pictures()]
    return trainer


def test_the_first_batches_go_to_every_logger(trainer: FakeTrainer) -> None:
    trainer.global_step = 40
    validate(trainer, ImageLogger(batches=2), Drawing())
    names = [f"b{batch}/{index}" for batch in (0, 1) for index in range(3)]
    for logger in trainer.loggers:
        assert logger.seen == [(40, name) for name in names]
        assert logger.images["b1/2"][0, 0].tolist() == [10, 2, 7]


def test_no_more_pictures_are_drawn_than_allowed(trainer: FakeTrainer) -> None:
    task = Drawing()
    validate(trainer, ImageLogger(batches=3, limit=4), task)
    assert [name for _, name in trainer.loggers[0].seen] == ["b0/0", "b0/1", "b0/2", "b1/0"]
    assert task.drawn == 4


def test_every_nth_validation_counts_on_after_a_resume(trainer: FakeTrainer) -> None:
    callback, steps = ImageLogger(every_n_validations=3, limit=1), range(1, 9)
    for trainer.global_step in steps:
        trainer.sanity_checking = True
        validate(trainer, callback, Drawing())
        trainer.sanity_checking = False
        validate(trainer, callback, Drawing())
        resumed = ImageLogger(every_n_validations=3, limit=1)
        resumed.load_state_dict(callback.state_dict())
        callback = resumed
    assert [step for step, _ in trainer.loggers[0].seen] == [1, 4, 7]


def test_a_validation_on_its_own_is_always_drawn(trainer: FakeTrainer) -> None:
    callback = ImageLogger(every_n_validations=2, limit=1)
    validate(trainer, callback, Drawing())
    trainer.stage, trainer.global_step = "validate", 9
    validate(trainer, callback, Drawing())
    trainer.stage, trainer.global_step = "fit", 10  # the second of the training
    validate(trainer, callback, Drawing())
    assert [step for step, _ in trainer.loggers[0].seen] == [0, 9]


def test_without_a_logger_for_pictures_they_are_files(trainer: FakeTrainer) -> None:
    class Odd(Drawing):
        def prediction_images(self, batch: Any, outputs: Any) -> Iterator[tuple[str, np.ndarray]]:
            yield "rooms/../a b", np.full((2, 4, 3), (250, 1, 7), np.uint8)

    trainer.loggers, trainer.global_step = [CSVLogger()], 40
    validate(trainer, ImageLogger(), Odd())
    (path,) = trainer.run.path.rglob("*.png")
    assert path == trainer.run.pictures / "rooms" / "a_b-step0000040.png"
    with Image.open(path) as read:
        assert np.asarray(read)[1, 3].tolist() == [250, 1, 7]


def test_a_full_disk_warns_once_and_goes_on(
    trainer: FakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.loggers = []
    trainer.run.pictures.touch()  # a file where the folder would be
    validate(trainer, ImageLogger(batches=2), Drawing())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "pictures" in record.getMessage()


def test_what_is_no_picture_or_no_drawing_task_is_an_error(trainer: FakeTrainer) -> None:
    class Floats(Drawing):
        def prediction_images(self, batch: Any, outputs: Any) -> Iterator[tuple[str, np.ndarray]]:
            yield "room", np.zeros((2, 4, 3))

    with pytest.raises(ValueError, match=r"Floats.*uint8.*\(2, 4, 3\) float64 for 'room'"):
        validate(trainer, ImageLogger(), Floats())
    with pytest.raises(ValueError, match=r"object has no prediction_images"):
        ImageLogger().setup(trainer, object(), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit must be >= 1"):
        ImageLogger(limit=0)


class DrawnTask(TinyTask):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        return self.model(batch.x)

    def prediction_images(self, batch: Any, outputs: Any) -> Iterator[tuple[str, np.ndarray]]:
        grey = (255 * (outputs.numpy() > 0)).astype(np.uint8)
        yield "logits", np.repeat(grey[..., None], 3, axis=2)


def test_drawing_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    pictures, weights = Pictures(), []
    for callbacks in ([ImageLogger()], []):
        trainer = make_trainer(
            tmp_path, max_epochs=2, val_check_interval=3, callbacks=callbacks, logger=[pictures]
        )
        task = DrawnTask()
        trainer.fit(task, datamodule=TinyData())
        weights.append(parameters_of(task))
    assert [step for step, _ in pictures.seen] == [3, 6, 9, 12]
    assert pictures.images["logits"].shape == (4, 3, 3)
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
