"""Tests of a task by each protocol against NumPy in double precision, written independently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.trainer import Trainer
from segtasks.data import RGBDDataModule
from segtasks.inference import MultiScaleFlip, SingleScale, Sliding
from segtasks.tasks import SegmentationTask

#: Neither side is a multiple of 32, and three images do not fill batches of two.
SIZE, IMAGES, CLASSES = (41, 54), 3, 4
CROP, STRIDE = (32, 40), (20, 15)
SCALES = (0.5, 1.0, 1.75)
PROTOCOLS = {
    "single": SingleScale(),
    "sliding": Sliding(CROP, STRIDE),
    "scales": MultiScaleFlip(SCALES, flip=False),
    "scales_flip": MultiScaleFlip(SCALES),
    "scales_flip_sliding": MultiScaleFlip(SCALES, window=Sliding(CROP, STRIDE)),
}


def logits_of(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(B, 3, H, W) each -> (B, K, H, W); they depend on the place, so that windows matter."""
    number = np.arange(1, CLASSES + 1)[:, None, None]
    height, width = image.shape[2:]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    waves = np.sin(0.4 * number * columns) + np.cos(0.3 * number * rows)
    mixed = np.stack([image[:, 0], image[:, 2] - image[:, 1], depth[:, 0], -depth[:, 0]], axis=1)
    return mixed + waves


class ByPlace(nn.Module):
    """`logits_of`, which no kernel has to be compiled for."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = CLASSES
        self.offset = jt.zeros(CLASSES)

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        return jt.array(logits_of(image.numpy(), depth.numpy()).astype(np.float32))


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> RGBDDataModule:
    """Three noisy images; a seventh of the pixels, and a whole corner, have no label."""
    for index in range(IMAGES):
        label = rng.integers(1, CLASSES + 1, SIZE, dtype=np.uint8)
        label[rng.random(SIZE) < 1 / 7] = 0
        label[-9:, -11:] = 0
        image = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), SIZE[::-1])
        depth = cv2.resize(rng.integers(0, 256, (7, 10), dtype=np.uint8), SIZE[::-1])
        for folder, pixels in (("RGB", image), ("Depth", depth), ("Label", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / folder / f"{index}.png"), pixels)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(f"RGB/{i}.png\n" for i in range(IMAGES)))
    return RGBDDataModule(str(tmp_path), CLASSES, val_batch_size=2, num_workers=0)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_task_s_scores_equal_those_of_numpy(
    tmp_path: Path, data: RGBDDataModule, name: str
) -> None:
    trainer = Trainer(
        accelerator="cpu", enable_progress_bar=False, default_root_dir=str(tmp_path / "runs")
    )
    task = SegmentationTask(ByPlace(), protocol=PROTOCOLS[name], pictures=0)

    metrics = trainer.test(task, datamodule=data)

    assert trainer.run is not None
    results = json.loads((trainer.run.path / "results.json").read_text())
    found, expected = results["scores"]["model"], scores(counts(data.root, name))
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-12, err_msg=key)
    assert metrics["test/miou"] == pytest.approx(expected["miou"])
    assert metrics["test/macc"] == pytest.approx(np.mean(expected["accuracy"]))
    assert results["protocol"] == PROTOCOLS[name].describe()
    assert results["unit"] == "0 to 1"


def test_the_protocols_give_different_numbers(data: RGBDDataModule) -> None:
    seen = {scores(counts(data.root, name))["miou"] for name in PROTOCOLS}
    assert len(seen) == len(PROTOCOLS)


# ---- the same in NumPy, from the papers' description ---------------------------------------


def counts(root: Path, name: str) -> np.ndarray:
    """(K, K) pixels by label and prediction."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for index in range(IMAGES):
        bgr, grey, raw = (
            cv2.imread(str(root / folder / f"{index}.png"), cv2.IMREAD_UNCHANGED)
            for folder in ("RGB", "Depth", "Label")
        )
        image = (bgr / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        depth = np.repeat(((grey / 255 - 0.48) / 0.28)[..., None], 3, 2)
        inputs = [np.moveaxis(x, 2, 0)[None] for x in (image, depth)]
        prediction = asked(name, *inputs)[0].argmax(0)
        for label, guess in zip(raw.reshape(-1), prediction.reshape(-1), strict=True):
            if label:
                matrix[label - 1, guess] += 1
    return matrix


def scores(matrix: np.ndarray) -> dict[str, Any]:
    right, labelled, guessed = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = right / (labelled + guessed - right)
    return {
        "iou": iou,
        "miou": iou.mean(),
        "accuracy": right / labelled,
        "f1": 2 * right / (labelled + guessed),
        "mf1": (2 * right / (labelled + guessed)).mean(),
        "pixel_accuracy": right.sum() / matrix.sum(),
    }


def asked(name: str, image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Probabilities, up to a factor."""
    size = image.shape[2:]
    ask = windows if "sliding" in name else logits_of
    if not name.startswith("scales"):
        return softmax(resized(ask(image, depth), size))
    total = np.zeros((1, CLASSES, *size))
    for scale in SCALES:
        to = [-32 * (-int(side * scale) // 32) for side in size]
        small = [resized(x, to) for x in (image, depth)]
        total += softmax(resized(ask(*small), size))
        if "flip" in name:
            mirrored = ask(*(x[..., ::-1] for x in small))[..., ::-1]
            total += softmax(resized(mirrored, size))
    return total


def windows(image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    if any(side < crop for side, crop in zip(image.shape[2:], CROP, strict=True)):
        image, depth = resized(image, CROP), resized(depth, CROP)
    total = np.zeros((1, CLASSES, *image.shape[2:]))
    visits = np.zeros(image.shape[2:])
    for rows in spans(image.shape[2], CROP[0], STRIDE[0]):
        for columns in spans(image.shape[3], CROP[1], STRIDE[1]):
            at = (..., rows, columns)
            total[at] += logits_of(image[at], depth[at])
            visits[at] += 1
    return total / visits


def spans(length: int, crop: int, stride: int) -> Iterator[slice]:
    start = 0
    while True:
        end = min(start + crop, length)
        yield slice(end - crop, end)
        if end == length:
            return
        start += stride


def resized(x: np.ndarray, size: Any) -> np.ndarray:
    """Bilinear, the corners' centres on each other."""
    for axis, length in ((2, size[0]), (3, size[1])):
        at = np.linspace(0, x.shape[axis] - 1, length)
        below = np.minimum(at.astype(int), x.shape[axis] - 2)
        share = (at - below).reshape([-1 if k == axis else 1 for k in range(4)])
        x = x.take(below, axis) * (1 - share) + x.take(below + 1, axis) * share
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
