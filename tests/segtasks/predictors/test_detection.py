"""A detector says what the trainer says of the same checkpoint, however it is asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import jittor as jt
import numpy as np
import pytest

from jtlightning.checkpoint.container import Checkpoint, write_checkpoint
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.state import RunState
from jtlightning.trainer import Trainer
from segtasks import load_detector, load_segmenter
from segtasks.data import RoomsDetectionDataModule
from segtasks.data.samples import DataError
from segtasks.models.rtdetr import rtdetr_r18
from segtasks.predictors import Detector, PredictionError
from segtasks.tasks import RTDETRTask
from segtasks.visualize_boxes import Boxes, draw_boxes

RED, GREEN = (255, 0, 0), (0, 255, 0)


def square(size: tuple[int, int], box: tuple[int, int, int, int], colour: Any = RED) -> np.ndarray:
    """An RGB picture with one bright box, left, top, right, bottom."""
    picture = np.full((*size, 3), 20, np.uint8)
    left, top, right, bottom = box
    picture[top:bottom, left:right] = colour
    return picture


@pytest.fixture
def detector(bright_checkpoint: Path) -> Detector:
    return load_detector(bright_checkpoint, class_names=["red", "green"], device="cpu")


def test_detections_equal_the_trainer_s_of_the_same_checkpoint(
    tmp_path: Path, rooms_arguments: dict[str, Any]
) -> None:
    arguments = {
        "train": 2,
        "val": 3,
        "scene_size": [64, 96],
        "size": [64, 64],
        "val_batch_size": 2,
        "num_workers": 0,
        "cache_dir": rooms_arguments["cache_dir"],
    }
    jt.set_global_seed(5)
    model = rtdetr_r18(5, 20)
    tensors = {f"model/model.{name}": value.numpy() for name, value in model.named_parameters()}
    model_config = {
        "class_path": "segtasks.models.rtdetr.rtdetr_r18",
        "init_args": {"num_classes": 5, "num_queries": 20},
    }
    config = {
        "data": {"class_path": "segtasks.data.RoomsDetectionDataModule", "init_args": arguments},
        "task": {"class_path": "segtasks.tasks.RTDETRTask", "init_args": {"model": model_config}},
    }
    metadata = {"format": 1, "loop": RunState().state_dict(), "callbacks": {}, "config": config}
    path = tmp_path / "r18.ckpt"
    write_checkpoint(path, Checkpoint(tensors, metadata))

    data = RoomsDetectionDataModule(**arguments)
    trainer = Trainer(
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = trainer.predict(RTDETRTask(rtdetr_r18(5, 20)), datamodule=data, ckpt_path=path)
    expected = {name: found for batch in batches for name, found in batch.items()}
    detector = load_detector(path, device="cpu")
    assert detector.size == (64, 64)
    assert detector.class_names == ("picture", "rug", "cabinet", "column", "ball")
    results = detector.predict([data.root / name for name in expected], batch_size=2)
    for result, (name, found) in zip(results, expected.items(), strict=True):
        assert result.name == Path(name).stem
        assert len(result) == 100  # 20 queries of 5 classes
        np.testing.assert_array_equal(result.labels, found.labels)
        # The trainer rounds, for its files.
        np.testing.assert_allclose(result.boxes_xyxy, found.boxes, atol=0.01)
        np.testing.assert_allclose(result.scores, found.scores, atol=1e-5)
        assert result.image.shape == (64, 96, 3)


def test_boxes_are_in_pixels_of_each_image(detector: Detector, tmp_path: Path) -> None:
    images = [square((128, 192), (48, 32, 96, 64)), square((64, 64), (8, 16, 24, 48), GREEN)]
    path = tmp_path / "seen.png"
    cv2.imwrite(str(path), images[0][..., ::-1])
    for given, order in (
        (images, "rgb"),
        ([image[..., ::-1] for image in images], "bgr"),
        ([str(path), images[1]], "rgb"),
    ):
        first, second = detector.predict(given, batch_size=2, input_order=order)
        best = first.above(0.5)
        np.testing.assert_allclose(best.boxes_xyxy, [[48, 32, 96, 64]], atol=3)
        assert best.labels.tolist() == [0]
        np.testing.assert_allclose(best.scores, 1 / (1 + np.exp(-4)), atol=1e-5)
        np.testing.assert_array_equal(first.image, images[0])
        np.testing.assert_allclose(second.boxes_xyxy[0], [8, 16, 24, 48], atol=1e-4)
        assert second.labels.tolist() == [1, 0]
    assert first.name == "seen"
    alone = detector.predict(images[1], score_threshold=0.5)
    assert len(alone) == 1
    assert len(detector.predict(images[1], max_detections=1)) == 1
    assert alone.records() == [
        {"label": 1, "class": "green", "score": 0.98201, "box_xyxy": [8.0, 16.0, 24.0, 48.0]}
    ]
    boxes = Boxes(alone.labels, alone.boxes_xyxy, alone.scores)
    drawn = draw_boxes(images[1], boxes, ["red", "green"])
    np.testing.assert_array_equal(alone.draw(), drawn)


def test_a_grey_file_is_an_image_and_a_grey_array_a_mistake(
    detector: Detector, tmp_path: Path
) -> None:
    grey = square((64, 64), (8, 16, 24, 48), (255,) * 3)[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_allclose(
        detector.predict(tmp_path / "grey.png").boxes_xyxy[0], [8, 16, 24, 48], atol=1e-4
    )
    with pytest.raises(PredictionError, match=r"images\[0\] has the shape \(64, 64\)"):
        detector.predict(grey)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size and max_detections must be 1 or more"),
        ({"max_detections": 0}, "got 1, 0 and 0.0"),
        ({"score_threshold": 1.5}, "score_threshold 0 to 1, got 1, 300 and 1.5"),
        ({"input_order": "RGB"}, "input_order must be 'bgr' or 'rgb'"),
    ],
)
def test_impossible_arguments_are_refused(
    detector: Detector, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(PredictionError, match=message):
        detector.predict(square((64, 64), (8, 8, 16, 16)), **arguments)


def test_classes_are_numbered_where_their_names_cannot_be_read(
    bright_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        detector = load_detector(bright_checkpoint)
    assert detector.class_names == ("class 0", "class 1")
    assert "their names cannot be read" in caplog.text


def test_the_number_of_classes_follows_from_names_or_data(
    tmp_path: Path, bright_checkpoint: Path
) -> None:
    weights = tmp_path / "bright.pth"
    write_torch(weights, {"model": {"factor": np.ones(1, np.float32)}})
    config = tmp_path / "bright.yaml"
    config.write_text(
        "data: {class_path: segtasks.data.CocoDataModule, init_args: {root: gone}}\n"
        "task:\n  class_path: segtasks.tasks.RTDETRTask\n"
        "  init_args: {model: {class_path: bright_detector.Bright}}\n"
    )
    assert load_detector(weights, config=config, class_names=["a", "b"]).num_classes == 2
    with pytest.raises(DataError, match="gone"):
        load_detector(weights, config=config)


def test_what_is_no_detector_is_refused(bright_checkpoint: Path, dformer_checkpoint: Path) -> None:
    with pytest.raises(PredictionError, match="no detection task; load_detector needs"):
        load_detector(dformer_checkpoint)
    with pytest.raises(PredictionError, match="no segmentation task; load_segmenter needs"):
        load_segmenter(bright_checkpoint)
    with pytest.raises(PredictionError, match=r"multiples of 32, got \(64, 60\)"):
        load_detector(bright_checkpoint, size=(64, 60))
    with pytest.raises(PredictionError, match="2 classes apart, and class_names has 1"):
        load_detector(bright_checkpoint, class_names=["a"])
