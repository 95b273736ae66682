from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from jtlightning.loggers.tensorboard import TensorBoardLogger


def open_logger(folder: Path, resumed_step: int | None = None) -> TensorBoardLogger:
    logger = TensorBoardLogger()
    logger.start(SimpleNamespace(path=folder), resumed_step=resumed_step)
    return logger


def events(folder: Path) -> Iterator[Any]:
    """Events of all files, oldest first, as TensorBoard reads them; checksums are compared."""
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.suffix):
        yield from LegacyEventFileLoader(str(path)).Load()


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard would show."""
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={SCALARS: 0})
    read.Reload()
    points = [(tag, point) for tag in read.Tags()["scalars"] for point in read.Scalars(tag)]
    shown = {(tag, point.step): point.value for tag, point in points}
    assert len(shown) == len(points)
    return shown


def test_scalars_are_in_the_file_under_their_step(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"val/miou": 0.5}, step=10, epoch=1)
    logger.log_metrics({"val/miou": 0.75}, step=20, epoch=2)
    assert scalars(tmp_path) == {
        ("val/miou", 10): 0.5,
        ("epoch", 10): 1.0,
        ("val/miou", 20): 0.75,
        ("epoch", 20): 2.0,
    }
    logger.finish("finished")


def test_a_picture_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    logger = open_logger(tmp_path)
    logger.log_image("predictions", image, step=3)
    logger.finish("finished")
    (value,) = [v for event in events(tmp_path) for v in event.summary.value]
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as read:
        np.testing.assert_array_equal(np.asarray(read), image)


def test_the_configuration_is_there_when_given_before_the_start(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    logger.log_config({"model": {"depth": 3}})
    logger.start(SimpleNamespace(path=tmp_path), resumed_step=None)
    logger.finish("finished")
    (value,) = [v for event in events(tmp_path) for v in event.summary.value]
    assert b'"depth": 3' in value.tensor.string_val[0]


def test_resume_hides_what_will_be_logged_again(tmp_path: Path) -> None:
    first = open_logger(tmp_path)
    for step in (10, 16, 20):
        first.log_metrics({"a": 1.0}, step=step, epoch=0)
    first.finish("stopped")
    second = open_logger(tmp_path, resumed_step=15)
    assert [key for key in scalars(tmp_path) if key[0] == "a"] == [("a", 10)]
    second.log_metrics({"a": 2.0}, step=20, epoch=0)
    second.finish("finished")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    shown = {step: value for (tag, step), value in scalars(tmp_path).items() if tag == "a"}
    assert shown == {10: 1.0, 20: 2.0}


def test_what_was_logged_at_the_resumed_step_stays(tmp_path: Path) -> None:
    first = open_logger(tmp_path)
    first.log_metrics({"a": 1.0}, step=10, epoch=0)
    first.finish("stopped")
    open_logger(tmp_path, resumed_step=10).finish("finished")
    assert scalars(tmp_path)["a", 10] == 1.0


def test_what_stands_under_the_resumed_step_is_not_doubled(tmp_path: Path) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    first = open_logger(tmp_path)
    first.log_metrics({"a": 1.0}, step=10, epoch=0)
    first.log_image("room", image, step=10)
    first.finish("failed")
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes() + b"\x40\0\0\0\0\0\0\0cut short")
    resumed = open_logger(tmp_path, resumed_step=10)
    resumed.log_metrics({"a": 1.0, "b": 2.0}, step=10, epoch=0)
    resumed.log_image("room", image, step=10)
    resumed.log_metrics({"a": 3.0}, step=11, epoch=0)
    resumed.finish("finished")
    assert scalars(tmp_path) == {
        ("a", 10): 1.0,
        ("epoch", 10): 0.0,
        ("b", 10): 2.0,
        ("a", 11): 3.0,
        ("epoch", 11): 0.0,
    }
    assert [v.tag for e in events(tmp_path) for v in e.summary.value].count("room") == 1


def test_values_are_in_the_file_before_the_process_is_killed(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"a": 0.5}, step=1, epoch=0)
    assert scalars(tmp_path)["a", 1] == 0.5
    logger.finish("finished")


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"nan": float("nan"), "inf": float("inf"), "large": 1e300}, step=1, epoch=0)
    logger.finish("finished")
    shown = scalars(tmp_path)
    assert np.isnan(shown["nan", 1])
    assert shown["inf", 1] == shown["large", 1] == float("inf")  # 32 bits


def test_a_full_disk_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = open_logger(tmp_path)
    logger._writer._writer.close()
    logger._writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115 - the logger closes it
    for step in (1, 2):
        logger.log_metrics({"a": 1.0}, step=step, epoch=0)
    logger.finish("finished")
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_folder_that_cannot_be_made_warns_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").touch()
    logger = open_logger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    logger.log_image("b", np.zeros((2, 2, 3), np.uint8), step=1)
    logger.finish("finished")
    assert len(caplog.records) == 1
