from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jtlightning.loggers.tensorboard import TensorBoardLogger


def open_logger(folder: Path, resumed_step: int | None = None) -> TensorBoardLogger:
    logger = TensorBoardLogger(flush_s=0.0)
    logger.start(SimpleNamespace(path=folder), resumed_step=resumed_step)
    return logger


def events(folder: Path) -> Iterator[Any]:
    """Events of all files, oldest first: length, its checksum, the message, its checksum."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((folder / "tensorboard").iterdir(), key=lambda p: p.suffix):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            message, data = data[12 : 12 + length], data[8:]
            (checksum,) = struct.unpack("<I", data[4 + length : 8 + length])
            crc = crc32c(message)
            assert checksum == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            data = data[8 + length :]
            yield Event.FromString(message)


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    }


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
    for step in (10, 20):
        first.log_metrics({"a": 1.0}, step=step, epoch=0)
    first.finish("stopped")
    second = open_logger(tmp_path, resumed_step=15)
    second.log_metrics({"a": 2.0}, step=20, epoch=0)
    second.finish("finished")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [16]


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
