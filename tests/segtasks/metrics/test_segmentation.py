from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segtasks.metrics.segmentation import ConfusionMatrix

REFERENCE = Path(__file__).parents[2] / "reference" / "protocol" / "protocol.npz"


def test_scores_equal_the_recorded_reference():
    with np.load(REFERENCE) as recorded:
        expected = json.loads(recorded["meta"].tobytes())["metrics"]
        matrix = ConfusionMatrix(expected["num_classes"], expected["ignore"])
        for prediction, label in zip(recorded["metrics/pred"], recorded["metrics/gt"], strict=True):
            matrix.update(prediction, label)
        assert (matrix.counts == recorded["metrics/hist"]).all()
    scores = matrix.scores()
    # The reference rounds percentages to two digits, partly in float32.
    for values, name in ((scores.iou, "ious"), (scores.accuracy, "acc"), (scores.f1, "f1")):
        assert np.allclose(100 * values, expected[name], atol=0.0051)
    assert round(100 * scores.miou, 2) == expected["miou"]
    assert round(100 * scores.macc, 2) == expected["macc"]
    assert round(100 * scores.mf1, 2) == expected["mf1"]
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_acc"], rel=1e-12)
    assert scores.fwiou == pytest.approx(expected["fw_iou"], rel=1e-12)


def test_scores_equal_a_count_pixel_by_pixel():
    generator = np.random.default_rng(0)
    label = generator.choice([0, 1, 2, 3, 255], (2, 9, 7)).astype(np.uint8)
    prediction = generator.integers(0, 4, (2, 9, 7))
    matrix = ConfusionMatrix(4)
    matrix.update(prediction, label)
    scores = matrix.scores()
    kept = label != 255
    for k in range(4):
        truth, found = (label == k) & kept, (prediction == k) & kept
        both = float((truth & found).sum())
        assert scores.iou[k] == pytest.approx(both / (truth | found).sum(), rel=1e-12)
        assert scores.accuracy[k] == pytest.approx(both / truth.sum(), rel=1e-12)
        assert scores.f1[k] == pytest.approx(2 * both / (truth.sum() + found.sum()), rel=1e-12)
    assert scores.pixel_accuracy == pytest.approx((label == prediction)[kept].mean(), rel=1e-12)


def test_absent_class_scores_zero_and_lowers_the_mean():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 1]), np.array([0, 1]))
    assert matrix.scores().iou.tolist() == [1, 1, 0, 0]
    assert matrix.scores().miou == 0.5


def test_nothing_counted_scores_zero():
    scores = ConfusionMatrix(3).scores()
    assert (scores.miou, scores.pixel_accuracy, scores.fwiou) == (0, 0, 0)


def test_single_pixels_count_beyond_the_precision_of_float32():
    matrix = ConfusionMatrix(2)
    matrix.counts[1, 1] = 2**24
    matrix.update(np.array([1]), np.array([1]))
    assert matrix.counts[1, 1] == 2**24 + 1


def test_8bit_predictions_of_many_classes_do_not_overflow():
    matrix = ConfusionMatrix(40)
    matrix.update(np.full(3, 39, np.uint8), np.full(3, 39, np.uint8))
    assert matrix.counts[39, 39] == 3


@pytest.mark.parametrize("bad", [5, -1])
def test_prediction_outside_the_classes_is_refused(bad):
    with pytest.raises(ValueError, match=f"prediction has the value {bad}.* 0 to 4"):
        ConfusionMatrix(5).update(np.array([bad]), np.array([1]))


def test_label_254_of_a_shifted_255_is_refused():
    with pytest.raises(ValueError, match=r"label has the value 254"):
        ConfusionMatrix(5).update(np.array([0]), np.array([254], np.uint8))


def test_prediction_on_an_ignored_pixel_may_be_anything():
    matrix = ConfusionMatrix(5)
    matrix.update(np.array([99, 2]), np.array([255, 2]))
    assert matrix.counts.sum() == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        ConfusionMatrix(5).update(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(0, 255), (3, 2)])
def test_impossible_class_numbers_are_refused(num_classes, ignore_index):
    with pytest.raises(ValueError, match=str(num_classes)):
        ConfusionMatrix(num_classes, ignore_index)


def test_reduce_takes_the_sum_over_processes_and_reset_forgets():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1]), np.array([0]))
    matrix.reduce(lambda counts: counts * 3)
    assert matrix.counts[0, 1] == 3
    matrix.reset()
    assert matrix.counts.sum() == 0
