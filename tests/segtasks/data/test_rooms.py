from __future__ import annotations

import numpy as np
import pytest

from segtasks.data.rooms import CLASS_NAMES, DEPTH_RANGE_M, RoomsScene, render_scene
from segtasks.data.rooms.layout import (
    BALL,
    CABINET,
    CEILING,
    COLUMN,
    FLOOR,
    PICTURE,
    RUG,
    WALL,
)

SIZE = (96, 128)
# Of scene 0 of series 0: pixels with label 0 to 8, means of image and depth.
RECORDED_COUNTS = [967, 1851, 2588, 0, 856, 2669, 932, 1346, 1079]
RECORDED_IMAGE_MEAN = 130.212
RECORDED_DEPTH_MEAN = 103.108


@pytest.fixture(scope="module")
def scenes() -> list[RoomsScene]:
    return [render_scene(0, index, SIZE) for index in range(40)]


def test_a_scene_repeats_exactly_and_depends_on_seed_and_index() -> None:
    first, again = render_scene(3, 5, SIZE), render_scene(3, 5, SIZE)

    for name in ("image", "depth", "depth_m", "label", "boxes_xyxy", "box_classes", "box_areas"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.image != render_scene(3, 6, SIZE).image).mean() > 0.5
    assert (first.image != render_scene(4, 5, SIZE).image).mean() > 0.5


def test_a_scene_is_the_same_as_on_the_machine_that_recorded_it() -> None:
    scene = render_scene(0, 0, SIZE)

    # A last bit of a sine may move single pixels on an edge, but no more than that.
    counts = np.bincount(scene.label.reshape(-1), minlength=9)
    np.testing.assert_allclose(counts, RECORDED_COUNTS, atol=12)
    assert scene.image.mean() == pytest.approx(RECORDED_IMAGE_MEAN, abs=0.2)
    assert scene.depth.mean() == pytest.approx(RECORDED_DEPTH_MEAN, abs=0.2)


def test_sizes_show_the_same_room() -> None:
    small, large = render_scene(0, 2, SIZE), render_scene(0, 2, (192, 256))

    seen = (small.label > 0) & (large.label[::2, ::2] > 0)
    agreement = (small.label == large.label[::2, ::2])[seen].mean()
    # Edges move by half a pixel.
    assert agreement > 0.96


def test_every_class_is_seen_often_and_none_fills_the_views(scenes: list[RoomsScene]) -> None:
    labels = np.stack([scene.label for scene in scenes])
    shares = np.bincount(labels.reshape(-1), minlength=len(CLASS_NAMES) + 1)[1:] / labels.size
    visible = [(labels == number).mean(axis=(1, 2)) > 0.01 for number in range(1, 9)]

    assert labels.max() == len(CLASS_NAMES)
    assert shares.min() > 0.035
    assert shares.max() < 0.35
    assert np.mean(visible, axis=1).min() > 0.4
    assert np.sum(visible, axis=0).mean() > 7


def test_a_majority_vote_per_position_knows_little(scenes: list[RoomsScene]) -> None:
    labels = np.stack([scene.label for scene in scenes])
    votes = np.stack([(labels[:24] == number).sum(axis=0) for number in range(1, 9)])
    guess, unseen = votes.argmax(axis=0) + 1, labels[24:]

    overlaps = []
    for number in range(1, 9):
        guessed, true = (guess == number) & (unseen > 0), unseen == number
        overlaps.append((guessed & true).sum() / (guessed | true).sum())

    assert np.mean(overlaps) < 0.14


def test_an_unlabelled_line_parts_the_classes(scenes: list[RoomsScene]) -> None:
    for scene in scenes:
        for one, other in (
            (scene.label[:, :-1], scene.label[:, 1:]),
            (scene.label[:-1], scene.label[1:]),
        ):
            assert (one == other)[(one > 0) & (other > 0)].all()
        assert 0 < (scene.label == 0).mean() < 0.12


def test_depth_codes_metres_and_has_some_holes(scenes: list[RoomsScene]) -> None:
    for scene in scenes:
        measured = scene.depth > 0
        error = scene.depth[measured] * (DEPTH_RANGE_M / 255) - scene.depth_m[measured]
        # Noise of 3 mm + 1.6 mm/m^2 and steps of 24 mm.
        assert abs(error.mean()) < 0.01
        assert error.std() < 0.06
        assert scene.depth_m.min() > 0
    holes = np.mean([(scene.depth == 0).mean() for scene in scenes])
    assert 0.005 < holes < 0.06


def test_depth_is_measured_along_the_optical_axis(scenes: list[RoomsScene]) -> None:
    # In a pinhole camera 1 / depth of a plane is linear in the pixel's position.
    planes = 0
    for scene in scenes:
        for number in (FLOOR, CEILING):
            rows, columns = np.nonzero(scene.label == number)
            if len(rows) < 400:
                continue
            planes += 1
            ones = np.ones(len(rows))
            terms = np.stack([rows, columns, ones], axis=1)
            inverse = 1 / scene.depth_m[rows, columns].astype(np.float64)
            fit, *_ = np.linalg.lstsq(terms, inverse, rcond=None)
            np.testing.assert_allclose(terms @ fit, inverse, rtol=1e-4)
    assert planes > 20


def test_pictures_and_rugs_lie_flat_and_cabinets_stand_out(scenes: list[RoomsScene]) -> None:
    steps: dict[int, list[float]] = {PICTURE: [], RUG: [], CABINET: []}
    for scene in scenes:
        label, depth = scene.label, scene.depth_m
        # Jump of the depth across an unlabelled edge pixel, against the slope on both sides.
        jump = np.abs(depth[:, 2:-1] - depth[:, 1:-2]) - np.abs(depth[:, 1:-2] - depth[:, :-3])
        edge = label[:, 1:-2] == 0
        for number, host in ((PICTURE, WALL), (RUG, FLOOR), (CABINET, WALL)):
            beside = (label[:, :-3] == host) & (label[:, 2:-1] == number) & edge
            steps[number] += jump[beside].tolist()

    assert np.median(steps[PICTURE]) < 0.01
    assert np.median(steps[RUG]) < 0.01
    assert np.median(steps[CABINET]) > 0.1


def test_colour_parts_things_from_surfaces_but_not_things_from_each_other(
    scenes: list[RoomsScene],
) -> None:
    strength = {}
    for number in (WALL, FLOOR, PICTURE, RUG, CABINET, COLUMN, BALL):
        visible = [s for s in scenes if (s.label == number).mean() > 0.01]
        means = np.array([s.image[s.label == number].mean(axis=0) for s in visible])
        strength[number] = (means.max(axis=1) - means.min(axis=1)).mean()

    things = [strength[number] for number in (PICTURE, RUG, CABINET, COLUMN, BALL)]
    assert max(strength[WALL], strength[FLOOR]) < 0.8 * min(things)
    assert max(things) < 1.5 * min(things)


def test_boxes_enclose_the_visible_objects(scenes: list[RoomsScene]) -> None:
    for scene in scenes:
        assert len(scene.boxes_xyxy) == len(scene.box_classes) == len(scene.box_areas) > 0
        covered = np.zeros(scene.label.shape, bool)
        for box, class_id, area in zip(
            scene.boxes_xyxy.astype(int), scene.box_classes, scene.box_areas, strict=True
        ):
            left, top, right, bottom = box
            assert 0 <= left < right <= SIZE[1]
            assert 0 <= top < bottom <= SIZE[0]
            assert PICTURE <= class_id <= len(CLASS_NAMES)
            assert area <= (right - left) * (bottom - top)
            inside = scene.label[top:bottom, left:right] == class_id
            # Edge pixels carry no label, and a sliver may consist of them.
            assert inside.any() or area < 40
            covered[top:bottom, left:right] = True
        objects = scene.label >= PICTURE
        # Slivers below a thousandth of the picture have no box.
        assert (objects & ~covered).mean() < 0.004


@pytest.mark.parametrize(
    ("seed", "index", "size", "message"),
    [
        (-1, 0, SIZE, "seed and index must be 0 or more, got -1 and 0"),
        (0, -2, SIZE, "seed and index must be 0 or more, got 0 and -2"),
        (0, 0, (16, 128), "at least 32x32, got 16x128"),
    ],
)
def test_arguments_out_of_range_are_refused(
    seed: int, index: int, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render_scene(seed, index, size)
