"""Boxes on images: where they are drawn, in which colour, and over what."""

from __future__ import annotations

import numpy as np
import pytest

from segtasks.visualize import PictureError, colour_map
from segtasks.visualize_boxes import Boxes, detection_sheet, draw_boxes

NAMES = ["cat", "dog", "lamp"]
COLOURS = colour_map(3)


@pytest.fixture
def image() -> np.ndarray:
    return np.full((200, 300, 3), 128, np.uint8)


def boxes(*rows: tuple[int, list[float]], scores: list[float] | None = None) -> Boxes:
    labels = np.array([label for label, _ in rows], np.int64)
    xyxy = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    return Boxes(labels, xyxy, None if scores is None else np.array(scores, np.float32))


def test_a_box_has_the_colour_of_its_class(image: np.ndarray) -> None:
    drawn = draw_boxes(image, boxes((1, [50, 60, 250, 160])), NAMES)
    for x, y in ((50, 100), (250, 100), (150, 160), (200, 60)):
        np.testing.assert_array_equal(drawn[y, x], COLOURS[1], err_msg=f"{x}, {y}")
    np.testing.assert_array_equal(drawn[110, 150], image[110, 150])
    # The name stands on a bar of the same colour above the box.
    np.testing.assert_array_equal(drawn[56, 51], COLOURS[1])
    assert (image == 128).all()


def test_the_better_of_two_boxes_lies_on_top(image: np.ndarray) -> None:
    box = [50.0, 60.0, 250.0, 160.0]
    for better in (0, 2):
        scores = [0.3, 0.3]
        scores[better // 2] = 0.9
        drawn = draw_boxes(image, boxes((0, box), (2, box), scores=scores), NAMES)
        np.testing.assert_array_equal(drawn[160, 150], COLOURS[better])


def test_a_score_stands_beside_the_name(image: np.ndarray) -> None:
    one = (0, [50.0, 60.0, 250.0, 160.0])
    plain = draw_boxes(image, boxes(one), NAMES)
    scored = [draw_boxes(image, boxes(one, scores=[s]), NAMES) for s in (0.5, 0.9)]
    assert (plain != scored[0]).any()
    assert (scored[0] != scored[1]).any()


def test_a_box_beyond_the_border_is_cut_off(image: np.ndarray) -> None:
    drawn = draw_boxes(image, boxes((0, [-40, -40, 400, 400])), NAMES)
    np.testing.assert_array_equal(drawn[199, 150], COLOURS[0])
    np.testing.assert_array_equal(drawn[100, 299], COLOURS[0])
    draw_boxes(image, boxes((0, [290, 190, 300, 200])), NAMES)


def test_scores_choose_what_is_shown() -> None:
    two = boxes((0, [0, 0, 1, 1]), (1, [0, 0, 2, 2]), scores=[0.4, 0.5])
    kept = two.above(0.5)
    assert (kept.labels.tolist(), kept.xyxy.tolist()) == ([1], [[0, 0, 2, 2]])
    annotated = boxes((0, [0, 0, 1, 1]))
    assert annotated.above(0.9) is annotated


def test_a_sheet_has_annotations_beside_detections(image: np.ndarray) -> None:
    small = np.full((50, 100, 3), 128, np.uint8)
    truth, nothing = boxes((0, [10, 10, 90, 40])), boxes(scores=[])
    sheet = detection_sheet([image, small], [nothing, truth], [nothing, nothing], NAMES)
    # Two tiles of 400 wide with gaps of 8; 32 of header, 267 and 200 of tiles with gaps.
    assert sheet.shape == (32 + 267 + 8 + 200 + 8, 824, 3)
    left, right = sheet[:, :412], sheet[:, 412:]
    # Four times as large: the lower edge lies 160 below the second tile's top.
    np.testing.assert_array_equal(left[32 + 267 + 8 + 160, 8 + 200], COLOURS[0])
    assert not (right.reshape(-1, 3) == COLOURS[0]).all(1).any()


def test_what_cannot_be_drawn_is_refused(image: np.ndarray) -> None:
    with pytest.raises(PictureError, match="labels from 3 to 3, but 3 class names"):
        draw_boxes(image, boxes((3, [0, 0, 1, 1])), NAMES)
    with pytest.raises(PictureError, match=r"\(H, W, 3\) uint8, got \(200, 300\)"):
        draw_boxes(image[..., 0], boxes(), NAMES)
    with pytest.raises(PictureError, match="at least one; got 1, 0, 1"):
        detection_sheet([image], [], [boxes()], NAMES)
