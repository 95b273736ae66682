"""RT-DETR learns four real images by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jtlightning.optim import AdamW, PolySchedule
from jtlightning.trainer import Trainer
from segtasks.data import CocoDataModule, DetectionAugmentation
from segtasks.models.rtdetr import rtdetr_r18
from segtasks.tasks import RTDETRTask

#: 15 objects of 11 classes, from 0.18 to 0.98 of the image's side.
IMAGES = (30, 165, 309, 599)
STEPS = 150


@pytest.mark.slow
def test_four_images_are_learnt_by_heart(tmp_path: Path, test_data: Path) -> None:
    root = test_data / "coco_mini"
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] in IMAGES]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in IMAGES]
    file = tmp_path / "four.json"
    file.write_text(json.dumps(content))
    data = CocoDataModule(
        str(root),
        train_images="train",
        train_annotations=str(file),
        val_images="train",
        val_annotations=str(file),
        size=(192, 192),
        batch_size=4,
        val_batch_size=4,
        num_workers=0,
        augmentation=DetectionAugmentation(photometric=0, zoom_out=0, iou_crop=0, mirror=0),
    )
    task = RTDETRTask(
        rtdetr_r18(num_queries=100),
        optimizer=AdamW(lr=5e-4, weight_decay=1e-4),
        schedule=PolySchedule(warmup_steps=20),
    )
    trainer = Trainer(
        max_steps=STEPS,
        check_val_every_n_epoch=STEPS,
        num_sanity_val_steps=0,
        gradient_clip_val=0.1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
        default_root_dir=str(tmp_path / "runs"),
    )
    trainer.fit(task, datamodule=data)
    assert trainer.metrics["val/ap50"] > 0.9
