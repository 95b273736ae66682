"""The VOC average precision against cases that were computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtasks.metrics.detection import CocoEvaluator
from segtasks.metrics.voc import voc_ap, voc_scores

HERE, THERE, NOWHERE = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [80.0, 0.0, 90.0, 10.0]


def evaluator_of(
    objects: list[dict[str, Any]], *detections: tuple[list[float], float], classes: int = 1
) -> CocoEvaluator:
    """One image of objects (`bbox` and flags), and detections of class 0 as (corners, score)."""
    listed = [{"id": i, "image_id": 1, "category_id": 1, **o} for i, o in enumerate(objects)]
    truth = {"images": [{"id": 1}], "annotations": listed}
    evaluator = CocoEvaluator(truth, list(range(1, classes + 1)))
    boxes = np.array([box for box, _ in detections], np.float64).reshape(-1, 4)
    scores = np.array([score for _, score in detections], np.float64)
    evaluator.update(1, np.zeros(len(detections), np.int64), boxes, scores)
    return evaluator


def at(box: list[float], **flags: Any) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"bbox": [left, top, right - left, bottom - top], **flags}


def test_right_wrong_right_by_both_rules() -> None:
    """Recall .5 at precision 1, then 1 at 2/3: six points of 1 and five of 2/3, or the area."""
    evaluator = evaluator_of([at(HERE), at(THERE)], (HERE, 0.9), (NOWHERE, 0.8), (THERE, 0.7))
    scores = voc_scores(evaluator)
    assert scores.map_2007 == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert scores.map_2010 == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_recall_of_exactly_three_tenths_reaches_the_point() -> None:
    recall = np.array([1, 2, 3]) / 10
    # Points 0 to .3 at precision 1, the others are never reached.
    assert voc_ap(recall, np.ones(3), eleven_points=True) == pytest.approx(4 / 11)
    assert voc_ap(recall, np.ones(3), eleven_points=False) == pytest.approx(0.3)


def test_precision_is_made_to_fall() -> None:
    # Wrong first: precision 0, 1/2, 2/3; the best at recall .5 or more is 2/3 throughout.
    evaluator = evaluator_of([at(HERE), at(THERE)], (NOWHERE, 0.9), (HERE, 0.8), (THERE, 0.7))
    scores = voc_scores(evaluator)
    assert [scores.map_2007, scores.map_2010] == pytest.approx([2 / 3, 2 / 3])


def test_a_second_detection_of_an_object_is_wrong() -> None:
    evaluator = evaluator_of([at(HERE), at(THERE)], (HERE, 0.9), (HERE, 0.8), (THERE, 0.7))
    assert voc_scores(evaluator).map_2010 == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_difficult_object_is_neither_to_be_found_nor_wrong_to_find() -> None:
    objects = [at(HERE), at(THERE, difficult=1), at(NOWHERE, iscrowd=1)]
    hits = ((THERE, 0.9), (NOWHERE, 0.85), (HERE, 0.8))
    assert voc_scores(evaluator_of(objects, *hits)).map_2010 == 1
    alone = voc_scores(evaluator_of(objects[1:], *hits))
    assert np.isnan([alone.map_2007, alone.map_2010]).all()


def test_an_overlap_of_exactly_half_is_enough() -> None:
    half = [0.0, 0.0, 10.0, 5.0]
    assert voc_scores(evaluator_of([at(HERE)], (half, 0.9))).map_2010 == 1
    less = [0.0, 0.0, 10.0, 4.99]
    assert voc_scores(evaluator_of([at(HERE)], (less, 0.9))).map_2010 == 0
    assert voc_scores(evaluator_of([at(HERE)], (less, 0.9)), 0.4).map_2010 == 1


def test_the_mean_is_over_annotated_classes() -> None:
    objects = [at(HERE), at(THERE, category_id=2)]
    scores = voc_scores(evaluator_of(objects, (HERE, 0.9), classes=3))
    np.testing.assert_array_equal(scores.class_2010, [1, 0, np.nan])
    np.testing.assert_array_equal(scores.class_2007, [1, 0, np.nan])
    assert scores.map_2010 == 0.5


def test_detections_of_several_images_share_one_curve() -> None:
    truth = {
        "images": [{"id": "a"}, {"id": "b"}],
        "annotations": [{"image_id": "b", "category_id": 1, **at(HERE)}],
    }
    evaluator = CocoEvaluator(truth, [1])
    for image, score in (("b", 0.8), ("a", 0.9)):
        evaluator.update(image, np.zeros(1, np.int64), np.array([HERE]), np.array([score]))
    # The better detection lies in the image without the object.
    assert voc_scores(evaluator).map_2010 == pytest.approx(0.5)


def test_nothing_found_scores_zero_and_thresholds_have_a_range() -> None:
    evaluator = evaluator_of([at(HERE)])
    assert voc_scores(evaluator).map_2007 == 0
    with pytest.raises(ValueError, match="above 0 and at most 1, got 0"):
        voc_scores(evaluator, 0)
