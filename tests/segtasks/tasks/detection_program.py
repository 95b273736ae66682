"""What each of several processes runs: python detection_program.py SCENARIO FOLDER."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

import jtlightning  # noqa: F401 - before Jittor
from jtlightning.optim import SGD
from segtasks.data import CocoDataModule
from segtasks.tasks import RTDETRTask
from tests.segtasks.tasks.constant_detector import Constant, make_data, make_trainer

#: Boxes of each image (left, top, width, height): a batch of two has six or four of them.
BOXES = [[8, 8, 16, 16], [32, 16, 24, 24], [4, 20, 30, 20], [20, 4, 12, 30]]
COUNTS = (4, 2, 1, 3, 2)


def five_images(root: Path, batch_size: int) -> CocoDataModule:
    """Five images with different numbers of objects."""
    images, annotations = [], []
    for number, count in enumerate(COUNTS):
        name = f"{number}.png"
        cv2.imwrite(str(root / name), np.full((48, 64, 3), 40 * number, np.uint8))
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        for box in BOXES[:count]:
            one = {"id": len(annotations), "image_id": number, "category_id": 1 + count % 2}
            annotations.append({**one, "bbox": box})
    categories = [{"id": 1, "name": "even"}, {"id": 2, "name": "odd"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return make_data(root, content, images=".", batch_size=batch_size, val_batch_size=1)


def learn(folder: Path, batch_size: int) -> dict[str, Any]:
    """Two steps, then a test."""
    root = folder / f"data-{os.environ.get('OMPI_COMM_WORLD_RANK', 'alone')}"
    root.mkdir(parents=True)
    data = five_images(root, batch_size)
    task = RTDETRTask(Constant(), optimizer=SGD(lr=0.05), voc=True)
    trainer = make_trainer(folder, max_steps=2)
    trainer.fit(task, datamodule=data)
    metrics = dict(trainer.test(task, datamodule=data))
    return {
        "logits": task.model.logits.numpy().tolist(),
        "box": task.model.box.numpy().tolist(),
        "metrics": {name: value for name, value in metrics.items() if name.startswith("test/")},
        "detections": [json.loads(p.read_text()) for p in folder.glob("runs/*/detections.json")],
    }


SCENARIOS = {"alone": lambda folder: learn(folder, 4), "shared": lambda folder: learn(folder, 2)}

if __name__ == "__main__":
    scenario, out = sys.argv[1], Path(sys.argv[2])
    report = SCENARIOS[scenario](out)
    name = f"{scenario}-{os.environ.get('OMPI_COMM_WORLD_RANK', 'alone')}.json"
    (out / name).write_text(json.dumps(report))
