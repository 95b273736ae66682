from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from segtasks.data.baseline import MajorityMap
from segtasks.data.modules import RGBDDataModule
from segtasks.metrics.segmentation import ConfusionMatrix


def test_commonest_class_of_each_position_is_predicted():
    labels = np.array(
        [[[0, 2, 255, 255]], [[1, 2, 0, 255]], [[1, 255, 0, 255]], [[2, 0, 1, 255]]], np.uint8
    )
    majority = MajorityMap(3, (1, 4))
    for label in labels:
        majority.update(label)
    # Classes 0, 1 and 2 were seen 4, 3 and 3 times: the unlabelled position gets class 0.
    assert majority.predict((1, 4)).tolist() == [[1, 2, 0, 0]]


def test_never_labelled_position_gets_the_class_that_is_commonest_overall():
    majority = MajorityMap(3, (1, 3))
    majority.update(np.array([[2, 2, 255]], np.uint8))
    assert majority.predict((1, 3)).tolist() == [[2, 2, 2]]


def test_labels_and_predictions_of_other_sizes_take_the_nearest_pixel():
    majority = MajorityMap(4, (2, 2))
    majority.update(np.repeat(np.repeat([[0, 1], [2, 3]], 3, 0), 5, 1).astype(np.uint8))
    assert majority.predict((2, 2)).tolist() == [[0, 1], [2, 3]]
    assert majority.predict((4, 2)).tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


DATA = os.environ.get("SEGTASKS_TEST_DATA")


@pytest.mark.skipif(DATA is None, reason="needs the folder SEGTASKS_TEST_DATA with nyuv2_mini")
@pytest.mark.parametrize(
    ("folder", "num_classes", "pixel_accuracy", "miou"),
    [("Label", 40, 0.304, 0.015), ("Label13", 13, 0.350, 0.058)],
)
def test_baseline_on_real_images_scores_what_was_published_with_them(
    folder, num_classes, pixel_accuracy, miou
):
    module = RGBDDataModule(
        str(Path(str(DATA)) / "nyuv2_mini"),
        num_classes,
        label_folder=folder,
        class_names=f"nyu{num_classes}",
        num_workers=0,
    )
    module.setup("fit")
    matrix = ConfusionMatrix(num_classes)
    for batch in module.test_dataloader().batches(0):
        matrix.update(module.majority_label(batch.label.shape[1:])[None], batch.label)
    scores = matrix.scores()
    assert round(scores.pixel_accuracy, 3) == pixel_accuracy
    assert round(scores.miou, 3) == miou
