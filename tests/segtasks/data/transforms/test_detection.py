from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segtasks.data.detection.samples import DetectionSample, Objects
from segtasks.data.transforms.detection import (
    DetectionAugmentation,
    PhotometricDistortion,
    RandomIoUCrop,
    RandomMirror,
    RandomZoomOut,
    Resize,
    validation_transform,
)
from segtasks.data.transforms.detection_steps import (
    Distortion,
    Window,
    cut,
    distort,
    mirror,
    resize,
    sanitize,
    window_ious,
    zoom_out,
)


def objects(boxes: object) -> Objects:
    """Objects whose label, area and crowd tell which they are."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    numbers = np.arange(len(array))
    return Objects(array, numbers, 100.0 + numbers.astype(np.float32), numbers % 2 == 1)


def painted(boxes: list[list[int]], size: tuple[int, int] = (60, 80)) -> DetectionSample:
    """A grey image with a rectangle of its own colour at each box."""
    image = np.full((*size, 3), 40, np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right] = 100 + 50 * number
    return DetectionSample(image, objects(boxes), 7, (size[1], size[0]), "a.png")


def found(image: np.ndarray, number: int, tolerance: int = 0) -> list[int]:
    """The box around the pixels of a rectangle's colour."""
    distance = np.abs(image.astype(int) - (100 + 50 * number)).max(axis=2)
    rows, columns = np.nonzero(distance <= tolerance)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


BOXES = [[5, 10, 25, 30], [40, 20, 70, 55]]


def assert_boxes_follow(sample: DetectionSample) -> None:
    assert len(sample.objects) > 0
    for label, box in zip(sample.objects.labels, sample.objects.boxes_xyxy, strict=True):
        assert found(sample.image, int(label)) == box.tolist()


def test_boxes_follow_the_pixels_through_each_step() -> None:
    sample = painted(BOXES)
    assert_boxes_follow(sample)
    for changed in (
        mirror(sample),
        zoom_out(sample, (100, 200), (31, 60)),
        cut(sample, Window(10, 5, 75, 50)),
        mirror(zoom_out(cut(sample, Window(10, 5, 75, 50)), (90, 90), (3, 4))),
    ):
        assert_boxes_follow(changed)
    larger = resize(painted(BOXES[:1]), (180, 120))  # alone, as blurred edges have any colour
    assert larger.objects.boxes_xyxy[0].tolist() == [7.5, 30, 37.5, 90]
    assert np.abs(np.subtract(found(larger.image, 0, 30), [7.5, 30, 37.5, 90])).max() <= 1
    assert mirror(sample).objects.boxes_xyxy[0].tolist() == [55, 10, 75, 30]
    assert zoom_out(sample, (100, 200), (31, 60)).objects.boxes_xyxy[0].tolist() == [65, 41, 85, 61]
    assert zoom_out(sample, (100, 200), (31, 60)).image[:31].max() == 0


def test_what_belongs_to_the_image_as_read_stays() -> None:
    changed = resize(mirror(painted(BOXES)), (30, 40))
    assert (changed.image_id, changed.original_size, changed.name) == (7, (80, 60), "a.png")
    assert changed.objects.area.tolist() == [100, 101]


def test_a_cut_drops_objects_with_their_centre_outside_and_clips_the_rest() -> None:
    sample = painted([[0, 0, 20, 20], [8, 0, 28, 20], [10, 10, 30, 30]])
    # Centres 10, 18 and 20: the first lies on the window's edge, which is not inside.
    window = cut(sample, Window(10, 0, 40, 20))
    assert window.objects.labels.tolist() == [1]
    assert window.objects.boxes_xyxy.tolist() == [[0, 0, 18, 20]]
    assert window.objects.area.tolist() == [101]
    assert window.objects.crowd.tolist() == [True]
    assert window.size == (20, 30)


def test_sanitizing_filters_every_field_alike() -> None:
    boxes = [[0, 0, 0.9, 5], [1, 1, 2, 2], [0, 0, 5, 0.5], [-1, 0, 5, 5], [70, 50, 80, 60.5]]
    kept = sanitize(replace(painted([]), objects=objects(boxes))).objects
    assert kept.labels.tolist() == [1]
    assert kept.area.tolist() == [101]
    assert kept.crowd.tolist() == [True]


def test_fields_of_different_lengths_are_refused() -> None:
    good = objects(BOXES)
    with pytest.raises(ValueError, match=r"must have one N, got \(2, 4\), \(2,\), \(1,\)"):
        Objects(good.boxes_xyxy, good.labels, good.area[:1], good.crowd)


def test_resizing_is_pillows_antialiased_bilinear() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 200
    sample = DetectionSample(image, objects([]), 1, (8, 4), "a")
    halved = resize(sample, (2, 4)).image
    # Antialiasing by 2 weighs the four nearest pixels 1/8, 3/8, 3/8, 1/8.
    assert halved[0, :, 0].tolist() == [0, 25, 175, 200]
    assert resize(sample, (4, 8)) is sample


def test_a_box_on_the_border_is_still_within_the_image_after_any_resize() -> None:
    for width in range(1, 700):
        sample = DetectionSample(
            np.zeros((1, width, 3), np.uint8), objects([0, 0, width, 1]), 1, (width, 1), "a"
        )
        assert len(sanitize(resize(sample, (64, 640))).objects) == 1


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (12, 16, 3), np.uint8)


def test_brightness_multiplies_and_contrast_stretches_about_the_mean_grey(
    picture: np.ndarray,
) -> None:
    brighter = distort(picture, Distortion(brightness=1.1))
    assert np.abs(brighter - np.minimum(picture * 1.1, 255)).max() <= 1
    grey = picture @ [0.299, 0.587, 0.114]
    flatter = distort(picture, Distortion(contrast=0.5))
    assert np.abs(flatter - (0.5 * picture + 0.5 * grey.mean())).max() <= 1.5


def test_saturation_moves_away_from_each_pixels_grey(picture: np.ndarray) -> None:
    grey = (picture @ [0.299, 0.587, 0.114])[..., None]
    for factor in (0.5, 1.5):
        expected = np.clip(grey + factor * (picture - grey), 0, 255)
        assert np.abs(distort(picture, Distortion(saturation=factor)) - expected).max() <= 1.5


def test_hue_turns_the_colour_circle_both_ways() -> None:
    red = np.array([[[255, 0, 0]]], np.uint8)
    # A third of the circle (85 of 255) leads from red to green, or backwards to blue.
    assert distort(red, Distortion(hue=1 / 3 + 1e-6))[0, 0].argmax() == 1
    assert distort(red, Distortion(hue=-1 / 3 - 1e-6))[0, 0].argmax() == 2
    grey = np.full((1, 1, 3), 90, np.uint8)
    assert (distort(grey, Distortion(hue=0.3)) == grey).all()


def test_channels_are_permuted_and_contrast_may_come_last(picture: np.ndarray) -> None:
    permuted = distort(picture, Distortion(channels=(2, 0, 1)))
    assert (permuted == picture[..., [2, 0, 1]]).all()
    first = distort(picture, Distortion(contrast=1.5, saturation=1.5))
    last = distort(picture, Distortion(contrast=1.5, saturation=1.5, contrast_first=False))
    halfway = distort(picture, Distortion(saturation=1.5))
    assert (last == distort(halfway, Distortion(contrast=1.5))).all()
    assert (first != last).any()
    assert (distort(picture, Distortion()) == picture).all()


def test_draws_have_the_official_ranges_and_chances() -> None:
    generator = np.random.default_rng(1)
    draws = [PhotometricDistortion().draw(generator) for _ in range(4000)]
    ranges = {
        "brightness": (0.875, 1.125),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-0.05, 0.05),
    }
    for name, (low, high) in ranges.items():
        values = [v for d in draws if (v := getattr(d, name)) is not None]
        assert len(values) / len(draws) == pytest.approx(0.5, abs=0.03)
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high
    permuted = [d.channels for d in draws if d.channels is not None]
    assert len(permuted) / len(draws) == pytest.approx(0.5, abs=0.03)
    assert len(set(permuted)) == 6
    assert np.mean([d.contrast_first for d in draws]) == pytest.approx(0.5, abs=0.03)


def test_zooming_out_gives_canvases_up_to_four_times_as_large() -> None:
    generator = np.random.default_rng(2)
    results = [RandomZoomOut()(painted(BOXES, (60, 80)), generator) for _ in range(1500)]
    zoomed = [r for r in results if r.size != (60, 80)]
    assert len(zoomed) / len(results) == pytest.approx(0.5, abs=0.04)
    heights = [r.size[0] for r in zoomed]
    assert min(heights) < 65
    assert 235 < max(heights) <= 240
    for result in zoomed[:50]:
        assert_boxes_follow(result)
        assert result.size[1] / result.size[0] == pytest.approx(80 / 60, rel=0.02)


def test_every_crop_meets_the_official_rules() -> None:
    generator = np.random.default_rng(3)
    sample = painted(BOXES)
    boxes = sample.objects.boxes_xyxy
    whole = 0
    for _ in range(400):
        window = RandomIoUCrop(probability=1.0).draw(sample, generator)
        if window is None:
            whole += 1
            continue
        width, height = window.right - window.left, window.bottom - window.top
        assert 0.3 * 80 - 1 <= width <= 80
        assert 0.3 * 60 - 1 <= height <= 60
        assert 0.5 <= width / height <= 2
        assert min(window.left, window.top) >= 0
        assert window.right <= 80
        assert window.bottom <= 60
        assert len(cut(sample, window).objects) > 0
    # One of seven values is "as it is", and draws without a window are repeated.
    assert 0.1 < whole / 400 < 0.4
    for _ in range(50):
        window = RandomIoUCrop(1.0, min_ious=(0.7, 1.0)).draw(sample, generator)
        if window is not None:
            corners = np.array([[window.left, window.top, window.right, window.bottom]], np.float32)
            assert window_ious(boxes, corners).max() >= 0.7


def test_iou_of_a_window_and_boxes_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30]], np.float32)
    windows = np.array([[0, 0, 10, 10]], np.float32)
    assert window_ious(boxes, windows)[0].tolist() == pytest.approx([1, 25 / 175, 0])


def test_an_image_without_objects_is_not_cropped() -> None:
    sample = painted([])
    generator = np.random.default_rng(0)
    assert all(RandomIoUCrop(1.0)(sample, generator) is sample for _ in range(20))


def test_the_whole_transform_keeps_boxes_on_their_objects() -> None:
    transform = DetectionAugmentation(photometric=0).transform((160, 160))
    kept = 0
    for seed in range(60):
        result = transform(painted(BOXES), np.random.default_rng(seed))
        assert result.image.shape == (160, 160, 3)
        assert result.image.dtype == np.uint8
        for label, box in zip(result.objects.labels, result.objects.boxes_xyxy, strict=True):
            left, top, right, bottom = np.rint(box).astype(int)
            if min(right - left, bottom - top) < 16:  # too small to be clear of blurred edges
                continue
            kept += 1
            inner = result.image[top + 4 : bottom - 4, left + 4 : right - 4, 0].astype(int)
            assert np.abs(inner - (100 + 50 * int(label))).max() <= 1
            # Rows and columns just outside are another colour, unless the image ends there.
            if left >= 8:
                assert (result.image[top + 4 : bottom - 4, left - 6, 0] != inner[0, 0]).all()
            if bottom <= 152:
                assert (result.image[bottom + 5, left + 4 : right - 4, 0] != inner[0, 0]).all()
    assert kept > 60


def test_the_same_generator_gives_the_same_sample(picture: np.ndarray) -> None:
    transform = DetectionAugmentation().transform((64, 64))
    sample = replace(painted(BOXES, (12, 16)), image=picture, objects=objects([1, 2, 12, 9]))
    first, again, other = (transform(sample, np.random.default_rng(s)) for s in (5, 5, 6))
    assert (first.image == again.image).all()
    assert (first.objects.boxes_xyxy == again.objects.boxes_xyxy).all()
    assert (first.image != other.image).any()


def test_without_strong_changes_only_mirror_and_size_are_left() -> None:
    transform = DetectionAugmentation(mirror=1.0).transform((30, 40), strong=False)
    expected = resize(mirror(painted(BOXES)), (30, 40))
    for seed in range(5):
        result = transform(painted(BOXES), np.random.default_rng(seed))
        assert (result.image == expected.image).all()


def test_boxes_too_small_before_the_resize_are_dropped_and_those_after_it() -> None:
    generator = np.random.default_rng(0)
    boxes = [[5, 5, 5.6, 20], [5, 5, 7, 20], [5, 5, 25, 25]]
    sample = replace(painted([]), objects=objects(boxes))
    enlarge = DetectionAugmentation().transform((600, 800), strong=False)
    assert enlarge(sample, generator).objects.labels.tolist() == [1, 2]
    shrink = DetectionAugmentation().transform((20, 20), strong=False)
    assert shrink(sample, generator).objects.labels.tolist() == [2]


def test_validation_resizes_as_pillow_does_and_drops_no_box(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (30, 50, 3), np.uint8)
    sample = DetectionSample(image, objects([3, 3, 3.1, 20]), 1, (50, 30), "a")
    result = validation_transform((20, 20))(sample, rng)
    expected = Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR)
    assert (result.image == np.asarray(expected)).all()
    assert len(result.objects) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"photometric": 1.5}, "photometric probability must be 0 to 1, got 1.5"),
        ({"zoom_out": -1}, "probability of zooming out"),
        ({"iou_crop": 2}, "probability of cropping"),
        ({"mirror": 2}, "probability of mirroring"),
        ({"brightness": (1.2, 0.8)}, r"brightness must be two ascending .* got \[1.2, 0.8\]"),
        ({"hue": (-0.6, 0.1)}, r"hue must be two ascending numbers from -0.5 to 0.5"),
        ({"zoom_factor": (0.5, 2)}, "zoom_factor .* from 1 to inf"),
        ({"crop_scale": (0.3, 1.2)}, "crop_scale"),
        ({"crop_aspect_ratio": (2, 1)}, "crop_aspect_ratio"),
        ({"crop_min_ious": (0.1, 0.9)}, "crop_min_ious .* one of them 1"),
        ({"crop_trials": 0}, "crop_trials must be 1 or more, got 0"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionAugmentation(**values).transform((64, 64))  # type: ignore[arg-type]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size must be \(height, width\)"):
        Resize((0, 5))


def test_mirroring_happens_with_its_probability() -> None:
    generator = np.random.default_rng(0)
    sample = painted(BOXES)
    times = sum(RandomMirror(0.25)(sample, generator) is not sample for _ in range(2000))
    assert times / 2000 == pytest.approx(0.25, abs=0.04)
