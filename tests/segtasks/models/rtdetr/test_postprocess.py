from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.models.rtdetr.postprocess import top_predictions
from tests.segtasks.models.rtdetr.golden import REFERENCE, read_golden

BRANCHES = [("focal", False, 30), ("softmax_all", True, 20), ("softmax_top8", True, 8)]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "postprocess.npz")


@pytest.mark.parametrize(("branch", "softmax", "count"), BRANCHES)
def test_detections_equal_the_recording(
    golden: dict, branch: str, softmax: bool, count: int
) -> None:
    logits, boxes = jt.array(golden["logits"]), jt.array(golden["boxes"])

    found = top_predictions(logits, boxes, golden["orig_size_wh"], count, softmax=softmax)

    for i, detections in enumerate(found):
        recorded = [golden[f"{branch}.{i}.{name}"] for name in ("labels", "boxes", "scores")]
        # With softmax and enough places for all queries, the official code does not sort.
        order = np.argsort(-recorded[2], kind="stable")
        recorded = [values[order] for values in recorded]
        np.testing.assert_array_equal(detections.labels, recorded[0])
        np.testing.assert_allclose(detections.boxes_xyxy, recorded[1], atol=1e-3)
        np.testing.assert_allclose(detections.scores, recorded[2], rtol=1e-5)
        assert detections.labels.dtype == np.int64
        assert detections.boxes_xyxy.dtype == detections.scores.dtype == np.float32


def test_equal_scores_keep_their_order_and_none_is_lost() -> None:
    # Enough of them for an unstable sort to show.
    logits = np.full((1, 60, 3), 2.0, np.float32)
    boxes = np.tile(np.float32([0.5, 0.5, 1, 1]), (1, 60, 1))

    found = top_predictions(logits, boxes, np.array([[40, 20]]), 100)[0]

    assert found.labels.tolist() == [i % 3 for i in range(100)]
    assert found.boxes_xyxy[0].tolist() == [0, 0, 40, 20]
    assert len(top_predictions(logits, boxes, np.array([[40, 20]]))[0].scores) == 180


def test_scores_of_unlikely_classes_keep_their_digits() -> None:
    logits = np.float32([[[-30.0, -60.0, -200.0, 90.0]]])

    found = top_predictions(logits, np.zeros((1, 1, 4)), np.array([[1, 1]]))[0]

    assert found.labels.tolist() == [3, 0, 1, 2]
    np.testing.assert_allclose(found.scores, [1, np.exp(-30), np.exp(-60), 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "boxes", "count", "message"),
    [
        ((1, 2), (2, 5, 4), 3, r"sizes must be \(2, 2\), one per image, got \(1, 2\)"),
        ((2, 2), (2, 4, 4), 3, r"got \(2, 4, 4\) beside \(2, 5, 3\)"),
        ((2, 2), (2, 5, 4), 0, "count must be at least 1, got 0"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    sizes: tuple, boxes: tuple, count: int, message: str
) -> None:
    logits = golden_input("postprocess", (2, 5, 3))

    with pytest.raises(ValueError, match=message):
        top_predictions(logits, np.zeros(boxes), np.ones(sizes), count)
