"""Program: two training steps and a validation of a model, as the trainer does them.

The second step is there because optimizer states appear after the first, and with them kernels.
Where the device is a stand-in, no kernel runs: values mean nothing, and nobody looks at them.

    python -m tests.cuda.one_step MODEL DEVICE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from jtlightning import Task, Trainer
from jtlightning.trainer import step
from segtasks.data import RoomsDataModule, RoomsDetectionDataModule
from segtasks.losses.matcher import HungarianMatcher
from segtasks.metrics.detection import CocoEvaluator
from segtasks.metrics.segmentation import ConfusionMatrix
from segtasks.models import dformer, rtdetr
from segtasks.tasks import RTDETRTask, SegmentationTask

#: The least that DFormer's five halvings leave something of.
SIZE = (64, 96)
SIDE = 64


def main(model: str, device: str, folder: str) -> None:
    """Train and evaluate `model` on `device`, "cuda" or "cpu"."""
    task, data = detection(model) if model.startswith("rtdetr") else segmentation(model)
    trainer = Trainer(
        accelerator=device, max_steps=2, num_sanity_val_steps=0, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    # What looks at values: the check that they are finite, counting and assigning.
    with (
        mock.patch.object(step, "math"),
        mock.patch.object(ConfusionMatrix, "update"),
        mock.patch.object(CocoEvaluator, "update", found_nothing(CocoEvaluator.update)),
        mock.patch.object(HungarianMatcher, "_assign", first_queries),
    ):
        trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    assert trainer.metrics.keys() & {"val/miou", "val/ap"}
    assert trainer.device == device


def segmentation(model: str) -> tuple[Task, Any]:
    """Task and data of a DFormer."""
    data = RoomsDataModule(
        train=4, val=2, size=SIZE, crop_size=SIZE, scales=(1.0,), batch_size=2, val_batch_size=2,
        num_workers=0,
    )  # fmt: skip
    return SegmentationTask(getattr(dformer, model)(num_classes=data.num_classes)), data


def detection(model: str) -> tuple[Task, Any]:
    """Task and data of an RT-DETR; the second step has another size than the first."""
    data = RoomsDetectionDataModule(
        train=4, val=2, scene_size=SIZE, size=(SIDE, SIDE), batch_size=2, val_batch_size=2,
        num_workers=0,
    )  # fmt: skip
    network = getattr(rtdetr, model)(num_classes=data.num_classes, num_queries=20)
    return RTDETRTask(network, multi_scale=[SIDE, SIDE + 32]), data


def first_queries(
    _matcher: HungarianMatcher, costs: np.ndarray, *_: Any
) -> tuple[np.ndarray, np.ndarray]:
    """An assignment that asks no value: each box gets the query of its number."""
    boxes = np.arange(costs.shape[1])
    return boxes, boxes


def found_nothing(update: Any) -> Any:
    """`CocoEvaluator.update` for an image in which nothing was detected, whatever there is."""

    def replaced(evaluator: CocoEvaluator, image_id: int, *_: Any) -> None:
        update(evaluator, image_id, np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))

    return replaced


if __name__ == "__main__":
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
