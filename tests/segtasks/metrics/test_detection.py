"""The COCO evaluation against cases that were computed by hand."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtasks.metrics.detection import COCO_NUMBERS, CocoEvaluator, EvaluationError

NOTHING = (np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def annotations(*objects: tuple[int, int, list[float]], **more: Any) -> dict[str, Any]:
    """Objects as (image, category, left-top-width-height), from annotation id 0 on."""
    listed = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, **more}
        for i, (image, category, box) in enumerate(objects)
    ]
    return {"images": [{"id": 7}, {"id": 9}], "annotations": listed, "categories": []}


def found(*detections: tuple[int, list[float], float]) -> tuple[np.ndarray, ...]:
    """Detections as (class, left-top-right-bottom, score)."""
    labels, boxes, scores = zip(*detections, strict=True)
    return np.array(labels), np.array(boxes, np.float32), np.array(scores, np.float32)


def test_perfect_detections_score_one() -> None:
    evaluator = CocoEvaluator(annotations((7, 3, [10, 10, 20, 20]), (9, 3, [0, 0, 50, 50])), [3])
    evaluator.update(7, *found((0, [10, 10, 30, 30], 0.9)))
    evaluator.update(9, *found((0, [0, 0, 50, 50], 0.8)))
    scores = evaluator.scores()
    assert scores.ap == scores.ap50 == pytest.approx(1)
    assert scores.class_ap.tolist() == scores.class_ap50.tolist() == [pytest.approx(1)]
    # 400 pixels are small and 2,500 medium; nothing is large.
    assert scores.numbers["ap_small"] == scores.numbers["ap_medium"] == pytest.approx(1)
    assert math.isnan(scores.numbers["ap_large"])
    assert tuple(scores.numbers) == COCO_NUMBERS


def test_the_average_is_that_of_the_curve() -> None:
    """Two objects, three detections: right, wrong, right.

    Recall .5 at precision 1, recall 1 at 2/3: 51 of the 101 recall points are 1, 50 are 2/3. The
    last detection overlaps by .64: it counts at the IoUs .50, .55 and .60 and at no other.
    """
    truth = annotations((7, 1, [0, 0, 100, 100]), (9, 1, [0, 0, 100, 100]))
    evaluator = CocoEvaluator(truth, [1])
    evaluator.update(7, *found((0, [0, 0, 100, 100], 0.9), (0, [200, 200, 300, 300], 0.8)))
    evaluator.update(9, *found((0, [0, 0, 100, 64], 0.7)))
    scores = evaluator.scores()
    full, half = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert scores.ap50 == pytest.approx(full)
    assert scores.ap == pytest.approx((3 * full + 7 * half) / 10)
    assert scores.numbers["ap75"] == pytest.approx(half)
    assert (scores.class_ap[0], scores.class_ap50[0]) == (scores.ap, scores.ap50)
    # One detection of each image: both right ones. Recall 1 at three IoUs, .5 at seven.
    assert scores.numbers["ar1"] == pytest.approx((3 + 3.5) / 10)


def test_classes_are_averaged_and_keep_their_places() -> None:
    # Class 0 is the category 5, found; class 1 the category 2, missed; class 2 is not annotated.
    truth = annotations((7, 5, [0, 0, 40, 40]), (7, 2, [50, 50, 40, 40]))
    evaluator = CocoEvaluator(truth, [5, 2, 8])
    evaluator.update(7, *found((0, [0, 0, 40, 40], 0.9), (2, [0, 0, 9, 9], 0.9)))
    scores = evaluator.scores()
    np.testing.assert_allclose(scores.class_ap50, [1, 0, np.nan])
    np.testing.assert_allclose(scores.class_ap, [1, 0, np.nan])
    assert scores.ap50 == pytest.approx(0.5)


def test_only_images_that_were_given_count() -> None:
    truth = annotations((7, 1, [0, 0, 40, 40]), (9, 1, [0, 0, 40, 40]))
    evaluator = CocoEvaluator(truth, [1])
    evaluator.update(7, *found((0, [0, 0, 40, 40], 0.9)))
    assert evaluator.scores().ap == pytest.approx(1)
    evaluator.update(9, *NOTHING)
    assert evaluator.scores().numbers["ar100"] == pytest.approx(0.5)


def test_a_crowd_is_neither_to_be_found_nor_wrong_to_find() -> None:
    truth = annotations((7, 1, [0, 0, 40, 40]))
    truth["annotations"].append(
        {"id": 5, "image_id": 7, "category_id": 1, "bbox": [100, 0, 100, 100], "iscrowd": 1}
    )
    before = copy.deepcopy(truth)
    evaluator = CocoEvaluator(truth, [1])
    crowd = (0, [110.0, 0.0, 120.0, 10.0], 0.95)
    evaluator.update(7, *found(crowd, (0, [0, 0, 40, 40], 0.9)))
    assert evaluator.scores().ap == pytest.approx(1)
    assert truth == before


def test_a_hundred_detections_of_a_class_count() -> None:
    evaluator = CocoEvaluator(annotations((7, 1, [0, 0, 40, 40])), [1])
    wrong = [(0, [100.0, 100.0, 110.0, 110.0], 0.9)] * 100
    evaluator.update(7, *found(*wrong, (0, [0, 0, 40, 40], 0.1)))
    assert len(evaluator.detections()) == 101
    assert evaluator.scores().ap == 0


def test_an_area_of_the_file_decides_on_the_size() -> None:
    # 2,500 pixels of box, but an area of 1,000: small.
    evaluator = CocoEvaluator(annotations((7, 1, [0, 0, 50, 50]), area=1000), [1])
    evaluator.update(7, *found((0, [0, 0, 50, 50], 0.9)))
    numbers = evaluator.scores().numbers
    assert numbers["ap_small"] == pytest.approx(1)
    assert math.isnan(numbers["ap_medium"])


def test_a_wrong_detection_of_another_size_does_not_count() -> None:
    evaluator = CocoEvaluator(annotations((7, 1, [0, 0, 20, 20])), [1])
    evaluator.update(7, *found((0, [100, 100, 150, 150], 0.9), (0, [0, 0, 20, 20], 0.8)))
    scores = evaluator.scores()
    assert scores.numbers["ap_small"] == pytest.approx(1)
    assert scores.ap == pytest.approx(0.5)


def test_no_detections_score_zero() -> None:
    evaluator = CocoEvaluator(annotations((7, 1, [0, 0, 40, 40])), [1])
    evaluator.update(7, *NOTHING)
    scores = evaluator.scores()
    assert (scores.ap, scores.numbers["ar100"]) == (0, 0)
    assert evaluator.detections() == []


def test_without_annotations_every_score_is_undefined() -> None:
    evaluator = CocoEvaluator(annotations(), [1])
    evaluator.update(7, *found((0, [0, 0, 40, 40], 0.9)))
    scores = evaluator.scores()
    assert np.isnan(list(scores.numbers.values())).all()
    assert np.isnan(scores.class_ap).all()


def test_results_are_coco_records_of_what_was_evaluated() -> None:
    evaluator = CocoEvaluator(annotations((9, 4, [10, 20, 30, 40])), [4])
    evaluator.update(9, *found((0, [10.123456, 20, 40, 60], 0.123456789)))
    (record,) = json.loads(json.dumps(evaluator.detections()))
    assert (record["image_id"], record["category_id"]) == (9, 4)
    assert record["bbox"] == [10.1235, 20, 29.8765, 40]
    assert record["score"] == pytest.approx(np.float32(0.123456789), abs=1e-8)


def test_pycocotools_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = CocoEvaluator(annotations((7, 1, [0, 0, 40, 40])), [1])
    evaluator.update(7, *NOTHING)
    evaluator.scores()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("image", "detections", "message"),
    [
        (8, NOTHING, "image 8 is not among the 2 annotated images"),
        (7, found((1, [0, 0, 1, 1], 0.5)), "image 7: labels from 1 to 1.*0 to 0.*num_classes"),
        (7, found((0, [0, 0, np.nan, 1], 0.5)), "image 7: a box or score is not finite"),
        (7, (np.zeros(2), np.zeros((1, 4)), np.zeros(1)), "2 labels, 1 boxes and 1 scores"),
    ],
)
def test_what_has_no_meaning_is_refused(image: int, detections: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        CocoEvaluator(annotations(), [1]).update(image, *detections)


def test_reduce_takes_the_images_of_all_processes_in_the_order_of_the_annotations() -> None:
    truth = annotations((7, 0, [0, 0, 9, 9]), (9, 0, [0, 0, 9, 9]))
    first, second = CocoEvaluator(truth, [0]), CocoEvaluator(truth, [0])
    first.update(9, *found((0, [0, 0, 9, 9], 0.9)))
    second.update(7, *found((0, [0, 0, 9, 3], 0.7)))
    first.reduce(lambda mine: [mine, second.images])
    assert [record["image_id"] for record in first.detections()] == [7, 9]
    assert first.scores().ap50 == pytest.approx(51 / 101)  # one of two, and one wrong after it


def test_an_image_is_taken_once() -> None:
    evaluator = CocoEvaluator(annotations(), [1])
    with pytest.raises(EvaluationError, match="no image was given"):
        evaluator.scores()
    evaluator.update(7, *NOTHING)
    with pytest.raises(EvaluationError, match="image 7 was given twice"):
        evaluator.update(7, *NOTHING)
    with pytest.raises(EvaluationError, match="an id twice"):
        CocoEvaluator(annotations(), [1, 1])


def test_real_annotations_against_themselves_score_one(test_data: Path) -> None:
    file = test_data / "coco_mini" / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    ids = [category["id"] for category in truth["categories"]]
    evaluator = CocoEvaluator(truth, ids)
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([ids.index(a["category_id"]) for a in own], np.int64)
        # A crowd's own box is found last, as none but one object may stand for it.
        evaluator.update(image["id"], labels, boxes, np.array([1.0 - a["iscrowd"] for a in own]))
    assert evaluator.scores().ap == pytest.approx(1)
