from __future__ import annotations

import numpy as np
import pytest

from jtlightning.data.batch import batch_size_of, map_arrays
from segtasks.data.detection.samples import DetectionSample, Objects, collate, relative_cxcywh
from segtasks.data.samples import DataError


def sample(name: str, boxes: list[list[float]], size: tuple[int, int] = (4, 8)) -> DetectionSample:
    n = len(boxes)
    objects = Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(n),
        np.ones(n, np.float32),
        np.zeros(n, bool),
    )
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(*size, 3)
    return DetectionSample(image, objects, 5, (640, 480), name)


def test_corners_become_centre_and_sides_as_fractions() -> None:
    boxes = np.array([[0, 0, 8, 4], [2, 1, 4, 2]], np.float32)
    relative = relative_cxcywh(boxes, (4, 8))
    assert relative.dtype == np.float32
    assert relative.tolist() == [[0.5, 0.5, 1, 1], [0.375, 0.375, 0.25, 0.25]]


def test_a_batch_has_8_bit_images_channels_first_and_targets_with_and_without_objects() -> None:
    first, second = sample("a", [[2, 1, 4, 2]]), sample("b", [])
    batch = collate([first, second])
    assert batch.image.dtype == np.uint8
    assert (batch.image[0] == first.image.transpose(2, 0, 1)).all()
    target, empty = batch.targets
    assert target.boxes.tolist() == [[0.375, 0.375, 0.25, 0.25]]
    assert target.labels.dtype == np.int64
    assert empty.boxes.shape == (0, 4)
    assert (target.image_id, target.original_size, target.name) == (5, (640, 480), "a")
    assert target.area.tolist() == [1]
    assert target.crowd.tolist() == [False]
    assert repr(target) == "DetectionTarget('a', 1 objects)"


def test_what_moves_a_batch_to_the_device_leaves_the_targets_on_the_host() -> None:
    batch = collate([sample("a", [[2, 1, 4, 2]])])
    moved = map_arrays(lambda array: "moved", batch)
    assert moved.image == "moved"
    assert moved.targets[0].boxes.tolist() == batch.targets[0].boxes.tolist()
    assert batch_size_of(batch) == 1


def test_images_of_several_sizes_share_no_batch() -> None:
    with pytest.raises(DataError, match=r"got a \(4x8\), b \(8x4\); end the transform with Resize"):
        collate([sample("a", []), sample("b", [], (8, 4))])
