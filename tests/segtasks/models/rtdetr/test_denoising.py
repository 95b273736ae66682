from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_tensor
from segtasks.models.rtdetr.decoder import ClassEmbedding
from segtasks.models.rtdetr.denoising import (
    DenoisingSettings,
    NoisedQueries,
    SeededDraws,
    noised_queries,
)
from tests.segtasks.models.rtdetr.golden import REFERENCE, read_golden
from tests.segtasks.models.rtdetr.targets import Boxes, GoldenDraws, recorded_boxes

CASES = ("mixed", "crowded", "nonoise", "labelonly", "boxonly")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "denoising.npz")


def _repeat(golden: dict[str, Any], key: str) -> NoisedQueries:
    case = next(case for case in golden["cases"] if case["key"] == key)
    label_noise, box_noise = case["label_noise_ratio"], case["box_noise_scale"]
    draws = GoldenDraws(case["prefix"], labels=label_noise > 0, boxes=box_noise > 0)
    noised = noised_queries(
        recorded_boxes(golden, f"{key}."),
        case["num_classes"],
        case["num_queries"],
        DenoisingSettings(case["num_denoising"], label_noise, box_noise),
        draws,
    )
    assert noised is not None
    assert draws.names == []
    return noised


@pytest.mark.parametrize("key", CASES)
def test_queries_mask_and_positions_equal_the_recording(golden: dict, key: str) -> None:
    noised = _repeat(golden, key)

    np.testing.assert_array_equal(noised.labels, golden[f"{key}.query_class_ids"])
    np.testing.assert_array_equal(noised.blocked, golden[f"{key}.attn_mask"])
    assert noised.meta.groups == golden[f"{key}.dn_num_group"]
    assert list(noised.meta.split) == golden[f"{key}.dn_num_split"].tolist()
    for i, positive in enumerate(noised.meta.positive):
        np.testing.assert_array_equal(positive, golden[f"{key}.dn_positive_idx.{i}"])
        np.testing.assert_array_equal(positive, golden[f"{key}.cdn_src.{i}"])
    boxes = golden[f"{key}.query_bbox"]
    if not golden["cases"][CASES.index(key)]["bbox_is_unact"]:
        # Without box noise the official code forgets to turn them into logits.
        boxes = np.log(np.maximum(boxes, 1e-5) / np.maximum(1 - boxes, 1e-5))
    # 1 - x in single precision is known to 6e-8, of 1e-5 at least.
    np.testing.assert_allclose(noised.boxes, boxes, atol=1e-2 if key == "mixed" else 1e-3)
    bounded = 1 / (1 + np.exp(-noised.boxes.astype(np.float64)))
    np.testing.assert_allclose(bounded, 1 / (1 + np.exp(-boxes.astype(np.float64))), atol=1e-6)


@pytest.mark.parametrize("key", CASES)
def test_contents_are_rows_of_the_embedding(golden: dict, key: str) -> None:
    prefix = next(case["prefix"] for case in golden["cases"] if case["key"] == key)
    embedding = ClassEmbedding(7, 16)
    weight = golden_tensor(f"{prefix}.class_embed.weight", (8, 16))
    assert weight is not None
    embedding.weight.update(jt.array(weight))

    content = embedding(jt.array(golden[f"{key}.query_class_ids"].astype(np.int32)))

    np.testing.assert_array_equal(content.numpy(), golden[f"{key}.query_class_embed"])


def test_the_padding_row_starts_at_zero_and_gets_no_gradient() -> None:
    embedding = ClassEmbedding(3, 4)

    content = embedding(jt.array(np.int32([[0, 3, 3, 2]])))
    gradient = jt.grad(content.sum(), embedding.weight).numpy()

    assert np.abs(embedding.weight.numpy()[3]).max() == 0
    np.testing.assert_array_equal(gradient[:, 0], [1, 0, 1, 0])


def _no_boxes() -> Boxes:
    return Boxes(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))


def test_no_box_at_all_or_no_wish_means_no_denoising() -> None:
    one = Boxes(np.int64([1]), np.float32([[0.5, 0.5, 0.2, 0.2]]))
    draws = np.random.default_rng(0)

    assert noised_queries([_no_boxes(), _no_boxes()], 4, 9, DenoisingSettings(), draws) is None
    assert noised_queries([one], 4, 9, DenoisingSettings(queries=0), draws) is None
    noised = noised_queries([one, _no_boxes()], 4, 9, DenoisingSettings(), draws)
    assert noised is not None
    assert [len(positive) for positive in noised.meta.positive] == [100, 0]


def test_numpy_draws_stay_within_the_settings(rng: np.random.Generator) -> None:
    boxes = np.float32([[0.5, 0.5, 0.2, 0.1]])
    target = Boxes(np.int64([2]), boxes)
    settings = DenoisingSettings(queries=4000, label_noise=0.5, box_noise=0.5)

    noised = noised_queries([target], 10, 5, settings, rng)

    assert noised is not None
    x, w = 1 / (1 + np.exp(-noised.boxes[0, :, [0, 2]].astype(np.float64)))
    moved = np.abs(np.stack([x - w / 2 - 0.4, x + w / 2 - 0.6])) / (0.5 * 0.1)
    positive = noised.meta.positive[0]
    negative = np.setdiff1d(np.arange(8000), positive)
    # Positives stay within half a box, times the noise; negatives go one to two times as far.
    assert 0.99 < moved[:, positive].max() < 1.001
    assert 0.999 < moved[:, negative].min() < 1.01
    assert 1.99 < moved[:, negative].max() < 2.001
    # A quarter of all labels is drawn anew, of which a tenth hits the old one: 0.225 +- 0.005.
    assert np.mean(noised.labels != 2) == pytest.approx(0.225, abs=0.02)


def test_noise_follows_the_seed_and_goes_on_without_one() -> None:
    draws = SeededDraws()
    jt.set_seed(5)
    first, second = draws().random(4), draws().random(4)
    jt.set_seed(6)
    other = draws().random(4)
    jt.set_seed(5)
    again = SeededDraws()().random(4)

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("labels", "boxes", "message"),
    [
        ([0, 4], (2, 4), "image 1: labels go from 0 to 4; with 4 classes they must be 0 to 3"),
        ([-1, 2], (2, 4), "image 1: labels go from -1 to 2"),
        ([1, 2], (1, 4), r"image 1: 2 labels, but boxes \(1, 4\)"),
    ],
)
def test_targets_that_fit_no_class_are_named(labels: list, boxes: tuple, message: str) -> None:
    wrong = Boxes(np.array(labels, np.int64), np.full(boxes, 0.5, np.float32))

    with pytest.raises(ValueError, match=message):
        noised_queries([_no_boxes(), wrong], 4, 9, DenoisingSettings(), np.random.default_rng(0))
