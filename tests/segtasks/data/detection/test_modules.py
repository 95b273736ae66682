from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import segtasks.data
from jtlightning.data.recipe import SampleError
from segtasks.data import (
    CocoDataModule,
    DetectionAugmentation,
    RoomsDataModule,
    RoomsDetectionDataModule,
    VocDataModule,
)
from segtasks.data.samples import DataError

STILL = DetectionAugmentation(photometric=0, zoom_out=0, iou_crop=0, mirror=0)


def write_split(root: Path, split: str, count: int, **changes: Any) -> dict[str, Any]:
    """Grey images of 40x60, the k-th with a box of k+4 by 10 pixels and a crowd."""
    generator = np.random.default_rng(count)
    images, annotations = [], []
    for k in range(count):
        (root / f"{split}2017").mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 60, 3), np.uint8)
        assert cv2.imwrite(str(root / f"{split}2017/{k}.png"), pixels)
        images.append({"id": 100 + k, "file_name": f"{k}.png", "height": 40, "width": 60})
        common = {"image_id": 100 + k, "category_id": 2 + 5 * (k % 2), "id": k}
        annotations.append({**common, "bbox": [10, 10, k + 4, 10], "area": 3, "iscrowd": 0})
        annotations.append({**common, "bbox": [0, 0, 30, 30], "iscrowd": 1})
    categories = [{"id": 2, "name": "cup"}, {"id": 7, "name": "fork"}]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", 7)
    write_split(tmp_path, "val", 3)
    return tmp_path


def make(root: Path, **changes: Any) -> CocoDataModule:
    options = {"size": (32, 48), "batch_size": 2, "val_batch_size": 2, "num_workers": 0, **changes}
    return CocoDataModule(str(root), **options)


def test_a_module_tells_classes_ids_and_shapes_before_setup(root: Path) -> None:
    module = make(root)
    assert module.num_classes == 2
    assert module.class_names == ("cup", "fork")
    assert module.category_ids == (2, 7)
    assert module.input_shapes == ((2, 3, 32, 48),)


def test_training_batches_are_full_shuffled_and_without_crowds(root: Path) -> None:
    module = make(root, augmentation=STILL)
    module.setup("fit")
    loader = module.train_dataloader()
    orders = []
    for epoch in range(2):
        batches = [*loader.batches(epoch)]
        assert [batch.image.shape for batch in batches] == [(2, 3, 32, 48)] * 3
        assert batches[0].image.dtype == np.uint8
        targets = [target for batch in batches for target in batch.targets]
        orders.append([target.image_id for target in targets])
        for target in targets:
            k = target.image_id - 100
            assert target.labels.tolist() == [k % 2]
            expected = [(10 + (k + 4) / 2) / 60, 15 / 40, (k + 4) / 60, 10 / 40]
            assert target.boxes[0].tolist() == pytest.approx(expected, abs=1e-6)
            assert target.original_size == (60, 40)
            assert target.crowd.tolist() == [False]
    assert orders[0] != orders[1]
    module.teardown("fit")


def test_validation_is_in_order_whole_and_keeps_crowds(root: Path) -> None:
    module = make(root)
    module.setup("validate")
    batches = [*module.val_dataloader().batches(0)]
    assert [t.image_id for b in batches for t in b.targets] == [100, 101, 102]
    assert batches[0].targets[0].crowd.tolist() == [False, True]
    assert batches[0].targets[0].name == "val2017/0.png"
    again = [*module.test_dataloader().batches(3, seed=9)]
    assert (again[0].image == batches[0].image).all()
    module.teardown("validate")


def test_evaluation_gets_what_the_file_says(root: Path) -> None:
    truth = make(root).val_annotations()
    original = json.loads((root / "annotations/instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox", "iscrowd")
    assert [[a[k] for k in keys] for a in truth["annotations"]] == [
        [a[k] for k in keys] for a in original["annotations"]
    ]
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert truth["annotations"][1]["area"] == 900


def test_samples_depend_on_seed_epoch_and_index_not_on_workers(root: Path) -> None:
    def images(workers: int, epoch: int, start: int = 0) -> list[np.ndarray]:
        module = make(root, num_workers=workers)
        module.setup("fit")
        found = [b.image.copy() for b in module.train_dataloader().batches(epoch, start, seed=4)]
        module.teardown("fit")
        return found

    alone, worker, later = images(0, 1), images(1, 1), images(0, 2)
    assert all((a == b).all() for a, b in zip(alone, worker, strict=True))
    assert (images(0, 1, start=2)[0] == alone[2]).all()
    assert any((a != b).any() for a, b in zip(alone, later, strict=True))


def test_from_the_stop_epoch_on_colours_and_places_stay(root: Path) -> None:
    strong = DetectionAugmentation(1.0, zoom_out=1.0, iou_crop=1.0, mirror=0)
    module = make(root, augmentation=strong, stop_augmentation_epoch=2)
    plain = make(root, augmentation=STILL)
    for made in (module, plain):
        made.setup("fit")
    loader, reference = module.train_dataloader(), plain.train_dataloader()
    assert len(loader) == 3
    for epoch in (1, 2, 5):
        pairs = [*zip(loader.batches(epoch), reference.batches(epoch), strict=True)]
        for varied, still in pairs:
            names = [[target.name for target in batch.targets] for batch in (varied, still)]
            assert names[0] == names[1]
            assert (varied.image == still.image).all() == (epoch >= 2)
    assert loader.skipped == {}


def test_the_stop_epoch_counts_also_with_workers_and_resumed_runs(root: Path) -> None:
    module = make(root, num_workers=1, augmentation=STILL, stop_augmentation_epoch=1)
    module.setup("fit")
    loader = module.train_dataloader()
    names = [
        [t.name for batch in loader.batches(epoch, 1) for t in batch.targets] for epoch in (0, 1, 0)
    ]
    assert names[0] == names[2] != names[1]
    assert loader.before._pool is not None
    assert loader.after._pool is None
    module.teardown("fit")
    assert loader.before._pool is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "must be 1 or more"),
        ({"num_workers": -1}, "num_workers 0 or more"),
        ({"stop_augmentation_epoch": -1}, "stop_augmentation_epoch must be 0 or more"),
        ({"size": (0, 5)}, "size must be"),
        ({"augmentation": DetectionAugmentation(mirror=3)}, "mirroring must be 0 to 1, got 3"),
    ],
)
def test_impossible_arguments_are_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **changes)


def test_too_few_images_for_a_batch_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="has 7 images, fewer than one batch of 8; set batch_size"):
        make(root, batch_size=8).setup("fit")
    make(root, batch_size=8).setup("test")


def test_a_training_split_without_objects_is_refused(root: Path) -> None:
    write_split(root, "train", 3, annotations=[])
    with pytest.raises(DataError, match="no image of the training split has an object"):
        make(root).setup("fit")


def test_splits_with_different_classes_are_refused(root: Path) -> None:
    write_split(root, "train", 3, categories=[{"id": 2, "name": "cup"}, {"id": 8, "name": "fork"}])
    message = r"different categories.*: 'fork' \(id 7\), 'fork' \(id 8\) stand in one of them only"
    with pytest.raises(DataError, match=message):
        make(root).setup("fit")
    with pytest.raises(DataError, match=message):
        make(root).survey("train")
    assert len(make(root).survey("test").listed) == 3


def test_damaged_images_are_found_before_training_unless_asked_not_to(root: Path) -> None:
    path = root / "train2017/3.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"train2017/3\.png: the PNG file is cut short"):
        make(root).setup("fit")
    module = make(root, check_files=False)
    module.setup("fit")
    with pytest.raises(SampleError, match=r"train2017/3\.png"):
        [*module.train_dataloader().batches(0)]


def test_damaged_training_images_may_be_left_out_and_validation_images_not(root: Path) -> None:
    (root / "train2017/3.png").write_bytes(b"")
    module = make(root, max_skipped=1, batch_size=7, stop_augmentation_epoch=1)
    module.setup("fit")
    loader = module.train_dataloader()
    for epoch in (0, 1):
        (batch,) = loader.batches(epoch)
        assert "train2017/3.png" not in [target.name for target in batch.targets]
    assert [*loader.skipped] == [3]
    (root / "val2017/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"val2017/0\.png: the file is empty"):
        make(root, max_skipped=1).setup("fit")


def test_wrong_annotations_stop_the_evaluation_too(root: Path) -> None:
    content = write_split(root, "val", 3)
    content["annotations"][0]["bbox"] = [1, 2, 3]
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\[0\]\.bbox is \[1, 2, 3\]"):
        make(root).val_annotations()


def write_voc(root: Path, split: str, names: dict[str, str]) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, name in names.items():
        assert cv2.imwrite(str(root / f"JPEGImages/{stem}.jpg"), np.zeros((40, 60, 3), np.uint8))
        (root / f"Annotations/{stem}.xml").write_text(
            "<annotation><size><width>60</width><height>40</height></size><object>"
            f"<name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax>"
            "<ymax>20</ymax></bndbox></object></annotation>"
        )
    (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))


def test_voc_classes_are_collected_from_both_splits_or_given(tmp_path: Path) -> None:
    write_voc(tmp_path, "train", {"a": "dog", "b": "cow", "e": "pig", "f": "emu", "g": "owl"})
    write_voc(tmp_path, "val", {"c": "dog", "d": "ant"})
    module = VocDataModule(str(tmp_path), size=(32, 32), batch_size=2, num_workers=0)
    assert module.class_names == ("ant", "cow", "dog", "emu", "owl", "pig")
    assert module.category_ids == (1, 2, 3, 4, 5, 6)
    module.setup("fit")
    (batch,) = module.val_dataloader().batches(0)
    assert [target.labels.tolist() for target in batch.targets] == [[2], [0]]
    assert batch.targets[0].boxes[0].tolist() == pytest.approx([0.25, 0.25, 0.5, 0.5])
    given = VocDataModule(str(tmp_path), class_names=["dog", "ant"], num_workers=0)
    assert given.class_names == ("dog", "ant")
    given.setup("test")
    with pytest.raises(DataError, match=r"4 problems(.|\n)*'cow', which is not among class_names"):
        given.setup("fit")
    with pytest.raises(DataError, match="class_names must be different names"):
        VocDataModule(str(tmp_path), class_names=["dog", "dog"])


def test_rooms_are_those_of_the_segmentation_module_with_boxes(tmp_path: Path) -> None:
    options = {"train": 3, "val": 2, "seed": 1, "cache_dir": str(tmp_path)}
    module = RoomsDetectionDataModule(
        scene_size=(64, 80), size=(64, 64), batch_size=2, num_workers=0, **options
    )
    assert module.class_names == ("picture", "rug", "cabinet", "column", "ball")
    assert module.category_ids == (4, 5, 6, 7, 8)
    assert module.root == RoomsDataModule(size=(64, 80), **options).root
    assert not any(tmp_path.iterdir())
    module.setup("fit")
    assert module.val_annotations()["categories"][0] == {"id": 4, "name": "picture"}
    (batch,) = module.val_dataloader().batches(0)
    assert batch.image.shape == (2, 3, 64, 64)
    assert batch.targets[0].name == "RGB/0004.png"
    assert sum(len(target.labels) for target in batch.targets) > 0
    module.teardown("fit")


@pytest.mark.parametrize(
    ("module", "train", "val"),
    [
        (CocoDataModule, (25, 166), (8, 78)),
        (VocDataModule, (130, 1789), (50, 673)),
    ],
)
def test_real_data_load_into_batches(
    test_data: Path, module: type, train: tuple[int, int], val: tuple[int, int]
) -> None:
    options: dict[str, Any] = {"size": (320, 320), "batch_size": 5, "num_workers": 0}
    if module is CocoDataModule:
        options |= {"root": str(test_data / "coco_mini"), "train_images": "train"}
        options |= {"train_annotations": "annotations/instances_train.json", "val_images": "val"}
        options |= {"val_annotations": "annotations/instances_val.json"}
    else:
        options["root"] = str(test_data / "bccd_voc")
    made = module(**options, augmentation=STILL)
    made.setup("fit")
    for loader, expected in ((made.train_dataloader(), train), (made.val_dataloader(), val)):
        targets = [t for batch in loader.batches(0) for t in batch.targets]
        boxes = np.concatenate([target.boxes for target in targets])
        # Objects below one pixel at the size used here are dropped in training.
        assert len(targets) == expected[0]
        assert expected[1] - 3 <= len(boxes) <= expected[1]
        assert boxes.min() >= 0
        assert boxes.max() <= 1


def test_every_exported_module_documents_its_arguments() -> None:
    for name in ("CocoDataModule", "VocDataModule", "RoomsDetectionDataModule"):
        module = getattr(segtasks.data, name)
        for argument in [*inspect.signature(module).parameters]:
            assert f"\n        {argument}: " in f"{module.__doc__}", (name, argument)
