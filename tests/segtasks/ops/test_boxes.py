from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.ops import boxes

BOX_OPS = Path(__file__).parents[2] / "reference" / "rtdetr" / "box_ops.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(BOX_OPS) as archive:
        return dict(archive)


def test_formats_equal_the_recording_and_undo_each_other(recorded: dict) -> None:
    corners = boxes.cxcywh_to_xyxy(jt.array(recorded["boxes_a"]))

    np.testing.assert_allclose(corners.numpy(), recorded["a_xyxy"], atol=1e-7)
    np.testing.assert_allclose(boxes.xyxy_to_cxcywh(corners).numpy(), recorded["a_back"], atol=1e-7)


def test_overlaps_of_all_pairs_and_their_gradient_equal_the_recording(recorded: dict) -> None:
    source, b = jt.array(recorded["boxes_a"]), jt.array(recorded["b_xyxy"])
    a = boxes.cxcywh_to_xyxy(source)

    iou, union = boxes.pairwise_iou(a, b)
    giou = boxes.pairwise_giou(a, b)
    gradient = jt.grad((giou * jt.array(recorded["giou_up"])).sum(), source)

    np.testing.assert_allclose(iou.numpy(), recorded["iou"], atol=1e-6)
    np.testing.assert_allclose(union.numpy(), recorded["union"], atol=1e-7)
    np.testing.assert_allclose(giou.numpy(), recorded["giou"], atol=1e-6)
    # Box 0 is in both sets: its corners are ties. Gradients reach 8.5.
    np.testing.assert_allclose(gradient.numpy(), recorded["grad_a"], atol=2e-5)


def test_overlap_of_box_i_with_box_i_is_the_diagonal_of_all_pairs(recorded: dict) -> None:
    a, b = jt.array(recorded["a_xyxy"][:5]), jt.array(recorded["b_xyxy"])

    iou, giou = boxes.elementwise_iou(a, b).numpy(), boxes.elementwise_giou(a, b).numpy()

    np.testing.assert_allclose(iou, np.diag(recorded["iou"][:5]), atol=1e-6)
    np.testing.assert_allclose(giou, np.diag(recorded["giou"][:5]), atol=1e-6)


def test_pairs_keep_leading_axes(recorded: dict) -> None:
    a, b = recorded["a_xyxy"], recorded["b_xyxy"]

    giou = boxes.pairwise_giou(jt.array(np.stack([a, a[::-1]])), jt.array(np.stack([b, b])))

    np.testing.assert_allclose(giou.numpy()[0], recorded["giou"], atol=1e-6)
    np.testing.assert_allclose(giou.numpy()[1], recorded["giou"][::-1], atol=1e-6)


def test_touching_boxes_get_the_gradient_of_both_sides() -> None:
    # Side by side on x, equal on y: the intersection has width exactly 0.
    a = jt.array(np.float32([[0, 0, 1, 1]]))
    b = jt.array(np.float32([[1, 0, 2, 1]]))

    gradient = jt.grad(boxes.elementwise_iou(a, b).sum(), a).numpy()

    # Growing to the right overlaps b: d(intersection) = 1 and the union is 2.
    np.testing.assert_allclose(gradient, [[0, 0, 0.5, 0]], atol=1e-7)


def test_inverse_sigmoid_equals_the_recording_at_its_edges(recorded: dict) -> None:
    logits = boxes.inverse_sigmoid(jt.array(recorded["inv_sigmoid_in"]))

    np.testing.assert_allclose(logits.numpy(), recorded["inv_sigmoid_out"], rtol=1e-6, atol=1e-7)


def test_inverse_sigmoid_has_the_gradient_of_pytorch() -> None:
    x = np.float32([-0.5, 0, 1e-6, 0.25, 0.5, 1 - 1e-6, 1, 1.5])
    source = jt.array(x)

    gradient = jt.grad(boxes.inverse_sigmoid(source).sum(), source).numpy()

    # Beyond the limits nothing passes; where one of the two logarithms is bounded by eps, only
    # the other one does: 1 / (1 - x) at the lower edge, 1 / x at the upper one.
    expected = [0, 1, 1, 1 / (0.25 * 0.75), 4, 1, 1, 0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_no_boxes_give_empty_overlaps() -> None:
    none, some = jt.zeros((0, 4)), jt.array(np.float32([[0, 0, 1, 1]]))

    assert boxes.pairwise_giou(some, none).shape == [1, 0]
    assert boxes.elementwise_iou(none, none).shape == [0]
    assert boxes.cxcywh_to_xyxy(none).shape == [0, 4]
