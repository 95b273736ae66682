from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.visualize import (
    PictureError,
    colour_map,
    overlay,
    paint_depth,
    paint_labels,
    prediction_sheet,
    save_picture,
)

NAMES = ("wall", "floor", "ball")


def sample(height: int = 24, width: int = 32) -> tuple[np.ndarray, ...]:
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    depth = np.tile(np.linspace(10, 240, width).astype(np.uint8), (height, 1))
    label = np.zeros((height, width), np.uint8)
    prediction = np.ones((height, width), np.uint8)
    return image, depth, label, prediction


def shows(picture: np.ndarray, colour: np.ndarray) -> bool:
    return bool((picture == colour).all(axis=-1).any())


@pytest.mark.parametrize("num_classes", [2, 8, 40, 150])
def test_colours_differ_and_do_not_change_with_their_number(num_classes: int) -> None:
    colours = colour_map(num_classes)

    assert colours.shape == (num_classes, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == num_classes
    np.testing.assert_array_equal(colours, colour_map(200)[:num_classes])


def test_no_classes_have_no_colours() -> None:
    with pytest.raises(ValueError, match="got 0"):
        colour_map(0)


def test_labels_take_the_colour_of_their_class() -> None:
    colours = colour_map(3)

    painted = paint_labels(np.array([[0, 2, 255]], np.uint8), colours)

    np.testing.assert_array_equal(painted[0, :2], colours[[0, 2]])
    assert painted[0, 2].max() < 60


def test_overlay_mixes_and_leaves_unlabelled_pixels() -> None:
    colours = np.array([[100, 0, 200]], np.uint8)
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)

    mixed = overlay(image, np.array([[0, 255]], np.uint8), colours, opacity=0.25)

    assert mixed[0].tolist() == [[175, 75, 50], [200, 100, 0]]


def test_overlay_refuses_what_does_not_fit() -> None:
    image, _, label, _ = sample()
    with pytest.raises(PictureError, match="differ in size"):
        overlay(image, label[:-1], colour_map(3))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        overlay(image, label, colour_map(3), opacity=1.5)


def test_depth_is_brighter_farther_and_black_in_holes() -> None:
    depth = np.array([[50, 100, 0, 150]], np.uint8)

    painted = paint_depth(depth).astype(int).sum(axis=-1)[0]

    assert painted[0] < painted[1] < painted[3]
    assert painted[2] == 0
    # Far is yellow: RGB, not BGR.
    red, _, blue = paint_depth(depth)[0, 3]
    assert red > 200 > 100 > blue
    np.testing.assert_array_equal(
        paint_depth(np.repeat(depth[..., None], 3, 2)), paint_depth(depth)
    )
    assert paint_depth(np.zeros((2, 2), np.uint8)).max() == 0


def test_the_sheet_shows_all_four_pictures_in_order_and_a_legend() -> None:
    image, depth, label, prediction = sample()
    colours = colour_map(3)

    sheet = prediction_sheet([image], [depth], [label], [prediction], NAMES)

    quarters = np.array_split(sheet[:-40], 4, axis=1)
    assert shows(quarters[0], np.array([200, 100, 50]))
    assert shows(quarters[2], colours[0])
    assert not shows(quarters[2], colours[1])
    assert shows(quarters[3], colours[1])
    legend = sheet[-34:]
    assert shows(legend, colours[0])
    assert shows(legend, colours[1])
    # Class 2 does not occur.
    assert not shows(legend, colours[2])


def test_samples_of_several_sizes_fit_on_one_sheet() -> None:
    one, two = sample(24, 32), sample(300, 300)

    sheet = prediction_sheet(*([a, b] for a, b in zip(one, two, strict=True)), NAMES)

    taller = prediction_sheet(*([b, b] for b in two), NAMES)
    # A tile is as wide as all others: 192 pixels high for 24x32, 256 for a square.
    assert taller.shape[0] - sheet.shape[0] == 64
    assert taller.shape[1] == sheet.shape[1]


def test_a_long_legend_wraps() -> None:
    image, depth, label, prediction = sample()
    label[:, 2:] = 2
    short = prediction_sheet([image], [depth], [label], [prediction], NAMES)

    long = prediction_sheet([image], [depth], [label], [prediction], ("a" * 50, "b" * 50, "c" * 50))

    assert long.shape[0] > short.shape[0]
    assert long.shape[1] == short.shape[1]


def test_samples_that_do_not_fit_together_are_named() -> None:
    image, depth, label, prediction = sample()
    with pytest.raises(PictureError, match="at least one; got 0, 0, 0, 0"):
        prediction_sheet([], [], [], [], NAMES)
    with pytest.raises(PictureError, match="got 1, 1, 1, 2"):
        prediction_sheet([image], [depth], [label], [prediction] * 2, NAMES)
    with pytest.raises(PictureError, match="sample 1"):
        prediction_sheet([image] * 2, [depth, depth[1:]], [label] * 2, [prediction] * 2, NAMES)


def test_saved_pictures_keep_their_colours(tmp_path: Path) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0] = 250

    save_picture(tmp_path / "new" / "red.png", picture)

    read = cv2.imread(str(tmp_path / "new" / "red.png"))
    np.testing.assert_array_equal(read[..., ::-1], picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["red.png"]


def test_pictures_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(PictureError, match=r"\.xyz"):
        save_picture(tmp_path / "a.xyz", picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(PictureError, match="cannot write"):
        save_picture(tmp_path / "file" / "a.png", picture)
