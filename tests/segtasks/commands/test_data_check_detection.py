from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segtasks.commands.data import main

CONFIG = """
data:
  class_path: segtasks.data.CocoDataModule
  init_args: {root: ROOT, batch_size: 2, num_workers: 0, size: [32, 32]}
"""


def box(image: int, category: int, *numbers: float, crowd: int = 0) -> dict[str, Any]:
    entry = {"image_id": image, "category_id": category, "bbox": [*numbers], "iscrowd": crowd}
    return {**entry, "id": 1}


def write(root: Path, split: str, names: list[str], boxes: list[dict[str, Any]]) -> None:
    (root / f"{split}2017").mkdir(exist_ok=True)
    for name in names:
        pixels = np.zeros((40, 60, 3), np.uint8)
        assert cv2.imwrite(str(root / f"{split}2017/{name}.png"), pixels)
    content = {
        "images": [
            {"id": k, "file_name": f"{name}.png", "height": 40, "width": 60}
            for k, name in enumerate(names)
        ],
        "annotations": boxes,
        "categories": [{"id": 4, "name": "cup"}, {"id": 9, "name": "fork"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    train = [box(0, 4, 1, 1, 5, 5), box(0, 4, 9, 9, 5, 5), box(0, 9, 0, 0, 9, 9, crowd=1)]
    write(tmp_path, "train", ["a", "b", "c"], [*train, box(1, 4, 50, 30, 20, 5)])
    write(tmp_path, "val", ["a"], [box(0, 9, 3, 3, 0, 4), box(0, 9, 1, 1, 4, 4)])
    (tmp_path / "a.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    return tmp_path


def check(root: Path, *options: str) -> int:
    return main(["check", "--config", str(root / "a.yaml"), *options])


def test_boxes_are_counted_by_class_and_repairs_are_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(root) == 0
    printed = capsys.readouterr().out
    cells = [line.split() for line in printed.splitlines()]
    assert ["0", "cup", "3", "100.00%", "2", "0", "0.00%", "0"] in cells
    assert ["1", "fork", "0", "0.00%", "0", "1", "100.00%", "1"] in cells
    assert ["samples", "3", "1"] in cells
    assert ["boxes", "3", "1"] in cells
    assert ["crowds", "and", "difficult", "ones", "1", "0"] in cells
    assert ["images", "without", "a", "box", "1", "0"] in cells
    assert ["clipped", "to", "the", "image", "1", "0"] in cells
    assert ["dropped,", "without", "an", "area", "0", "1"] in cells
    assert "instances_train2017.json: boxes" in printed.replace("\n", "")
    # The same name in two folders is not the same image.
    assert "nothing is wrong with 4 samples" in printed


def test_problems_of_all_kinds_give_1_and_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [box(0, 5, 1, 1, 2, 2), box(7, 4, 1, 1, 2, 2), box(0, 4, 1, 1)]
    content["images"].append({**content["images"][0], "file_name": "x.png"})
    path.write_text(json.dumps(content))
    (root / "train2017/a.png").write_bytes(b"")
    assert cv2.imwrite(str(root / "train2017/b.png"), np.zeros((60, 40, 3), np.uint8))
    (root / "train2017/c.png").unlink()
    assert check(root) == 1
    printed = capsys.readouterr().out
    for kind, count in (
        ("missing", 1),
        ("unreadable", 1),
        ("size", 1),
        ("label", 1),
        ("annotation", 2),
        ("duplicate", 1),
    ):
        assert f"{kind}: {count}\n" in printed
    assert "7 problems in 4 samples" in printed
    assert "annotations[6].bbox is [1, 1]" in printed


def test_an_image_in_both_splits_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root, "--data.val_images", "train2017") == 1
    assert "overlap: 1\n" in capsys.readouterr().out


def test_what_would_stop_a_training_is_a_problem_too(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(root, "--data.batch_size", "4") == 1
    assert "has 3 images, fewer than one batch of 4" in capsys.readouterr().out


def test_augmentation_is_set_from_a_configuration(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "a.yaml").write_text(
        CONFIG.replace("ROOT", str(root)).replace(
            "batch_size:", "augmentation: {zoom_out: 0, crop_min_ious: [0.5, 1]}, batch_size:"
        )
    )
    assert check(root) == 0
    assert check(root, "--data.augmentation.zoom_out", "7") == 2
    assert "probability of zooming out must be 0 to 1, got 7" in capsys.readouterr().err


def test_rooms_are_rendered_and_walked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("train=2", "val=1", "scene_size=[64, 64]", "batch_size=2", f"cache_dir={tmp_path}")
    module = "segtasks.data.RoomsDetectionDataModule"
    assert main(["check", "--data", module, *(f"--data.{option}" for option in options)]) == 0
    assert "nothing is wrong with 3 samples" in capsys.readouterr().out


def test_real_voc_data_are_in_order(test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"--data.root={test_data / 'bccd_voc'}"
    assert main(["check", "--data", "segtasks.data.VocDataModule", root]) == 0
    printed = capsys.readouterr().out
    assert "nothing is wrong with 180 samples" in printed
    assert ["boxes", "1,789", "673"] in [line.split() for line in printed.splitlines()]
