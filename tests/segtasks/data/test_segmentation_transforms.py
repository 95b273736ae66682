from __future__ import annotations

import json
import pickle
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import SegmentationSample, collate
from segtasks.data.transforms.segmentation import (
    OFFICIAL_SCALES,
    RandomCrop,
    RandomMirror,
    RandomScale,
    cut_and_pad,
    mirror,
    normalise,
    pad_bottom_right,
    rescale,
    restore_pixels,
    training_transform,
    validation_transform,
)

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol"
RECORDED = np.load(PROTOCOL / "protocol.npz")
META = json.loads(RECORDED["meta"].tobytes())


def recorded_samples(array):
    """The 256 evenly spread elements that the recording keeps."""
    return array.reshape(-1)[np.arange(256) * array.size // 256]


def assert_equals_recorded(sample, key, image_tolerance=1e-5):
    batch = collate([sample])
    expected = {name: RECORDED[f"{key}/{name}"] for name in ("rgb", "modal", "label")}
    assert np.abs(recorded_samples(batch.image[0]) - expected["rgb"]).max() <= image_tolerance
    assert np.abs(recorded_samples(batch.depth[0]) - expected["modal"]).max() <= image_tolerance
    assert (recorded_samples(batch.label[0]) == expected["label"]).all()


def assert_statistics(sample, expected, tolerance):
    """Compare the whole arrays, of which only samples are recorded, by shape, mean and deviation.

    The tolerance is absolute; means and deviations of labels, which are exact, get none.
    """
    batch = collate([sample])
    for name, array in (("rgb", batch.image[0]), ("modal", batch.depth[0])):
        assert list(array.shape) == expected[name]["shape"]
        assert array.mean(dtype=np.float64) == pytest.approx(expected[name]["mean"], abs=tolerance)
        assert array.std(dtype=np.float64) == pytest.approx(expected[name]["std"], abs=tolerance)
    label, recorded = batch.label[0].astype(np.float64), expected["label"]
    assert list(label.shape) == recorded["shape"]
    assert (label.mean(), label.std()) == pytest.approx((recorded["mean"], recorded["std"]), 1e-12)


def make_sample(height=11, width=14, seed=0):
    generator = np.random.default_rng(seed)
    return SegmentationSample(
        image=generator.integers(0, 256, (height, width, 3), np.uint8),
        depth=generator.integers(0, 256, (height, width, 3), np.uint8),
        label=generator.integers(0, 9, (height, width), np.uint8),
        name=f"s{seed}",
    )


@pytest.mark.parametrize("key", sorted(META["val"]))
def test_validation_samples_equal_the_recorded_reference(key):
    order = "rgb" if key == "SUNRGBD/DFormerv2_S" else "bgr"
    dataset = RGBDDataset(PROTOCOL / "mini", "test.txt", num_classes=13, channel_order=order)
    transform = validation_transform((531, 730) if META["val"][key]["pad"] else None)
    for index, expected in enumerate(META["val"][key]["items"]):
        sample = transform(dataset[index], np.random.default_rng(0))
        assert f"{sample.name}.png" == expected["file"]
        assert_equals_recorded(sample, f"val/{key}/{index}")
        values, counts = np.unique(sample.label, return_counts=True)
        assert expected["label_counts"] == {
            str(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)
        }
        # The recorded means were taken in float32.
        assert_statistics(sample, expected, tolerance=1e-6)


@pytest.mark.parametrize("key", sorted(META["train"]))
def test_recorded_training_decisions_give_the_recorded_samples(key):
    decisions = META["train"][key]
    dataset = RGBDDataset(PROTOCOL / "mini", "train.txt", num_classes=13)
    sample = dataset[dataset.stems.index(Path(decisions["file"]).stem)]
    sample = mirror(sample) if decisions["mirror"] else sample
    sample = rescale(sample, decisions["scale"])
    assert list(sample.size) == decisions["scaled_size"]
    sample = cut_and_pad(normalise(sample), decisions["crop_pos"], decisions["crop_size"])
    # One grey level, over the smallest deviation, is what 8-bit resizing may differ by between
    # builds of OpenCV; 4.11 on x86 gives the recorded bits.
    assert_equals_recorded(sample, f"train/{key}", image_tolerance=1 / 255 / 0.224)
    assert_statistics(sample, decisions, tolerance=2e-4)


class Replay:
    """A generator that draws as the official code does, from Python's `random`."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def random(self):
        # The official code mirrors from one half up, ours below it.
        return 1 - self._random.random()

    def integers(self, low, high=None):
        if high is None:
            return self._random.choice(range(low))
        return self._random.randint(low, high - 1)


@pytest.mark.parametrize("key", sorted(META["train"]))
def test_random_decisions_are_drawn_in_the_official_order_and_ranges(key):
    decisions = META["train"][key]
    dataset = RGBDDataset(PROTOCOL / "mini", "train.txt", num_classes=13)
    sample = dataset[dataset.stems.index(Path(decisions["file"]).stem)]
    transform = training_transform(tuple(decisions["crop_size"]))
    sample = transform(sample, Replay(decisions["seed"]))
    assert_equals_recorded(sample, f"train/{key}", image_tolerance=1 / 255 / 0.224)


def test_cut_and_pad_equals_the_recorded_edges():
    values = np.random.RandomState(zlib.crc32(b"protocol/edge")).standard_normal((10, 12))
    plane = values.astype(np.float32)
    sample = SegmentationSample(
        np.dstack([plane] * 3), np.dstack([plane] * 3), np.ones(plane.shape, np.uint8), "edge"
    )
    cut = cut_and_pad(sample, (3, 5), (8, 8))
    assert (cut.image[..., 1] == RECORDED["edge/crop_3_5_8x8"]).all()
    padded = cut_and_pad(sample, (0, 0), (15, 15))
    recorded = RECORDED["edge/crop_0_0_15x15"]
    inside = recorded != 255
    assert (padded.label == np.where(inside, 1, 255)).all()
    assert (padded.depth[..., 2] == np.where(inside, recorded, 0)).all()


def test_normalise_computes_in_float64_and_rounds_once():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sample = SegmentationSample(np.dstack([ramp] * 3), np.dstack([ramp] * 3), ramp, "ramp")
    out = normalise(sample)
    mean, std = np.array(META["norm_mean"]), np.array(META["norm_std"])
    wide = sample.image.astype(np.float64) / 255
    assert (out.image == ((wide - mean) / std).astype(np.float32)).all()
    mean, std = META["depth_mean"], META["depth_std"]
    assert (out.depth == ((wide - mean) / std).astype(np.float32)).all()
    assert out.label is ramp


def test_normalising_twice_is_refused():
    with pytest.raises(ValueError, match="uint8, got float32"):
        normalise(normalise(make_sample()))


def test_restored_pixels_are_those_before_normalising():
    sample = make_sample()
    batch = collate([normalise(sample)])
    image, depth = restore_pixels(batch.image[0], batch.depth[0])
    assert (image == sample.image).all()
    assert (depth == sample.depth).all()


def test_mirror_moves_image_depth_and_label_together():
    sample = make_sample()
    out = mirror(sample)
    for name in ("image", "depth", "label"):
        assert (getattr(out, name) == getattr(sample, name)[:, ::-1]).all()


def test_random_mirror_follows_its_probability():
    sample, generator = make_sample(), np.random.default_rng(0)
    assert RandomMirror(0.0)(sample, generator) is sample
    assert (RandomMirror(1.0)(sample, generator).label == sample.label[:, ::-1]).all()


def test_scaled_label_takes_the_nearest_lower_source_pixel():
    sample = make_sample(8, 6)
    out = rescale(sample, 1.75)
    rows = (np.arange(14) * 8 / 14).astype(int)
    columns = (np.arange(10) * 6 / 10).astype(int)
    assert (out.label == sample.label[rows][:, columns]).all()


def test_scale_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"scale 0\.05 leaves nothing"):
        rescale(make_sample(), 0.05)


def test_every_scale_is_drawn():
    generator = np.random.default_rng(0)
    sample = make_sample(16, 16)
    sizes = {RandomScale()(sample, generator).size[0] for _ in range(80)}
    assert sizes == {int(16 * scale) for scale in OFFICIAL_SCALES}


def test_crop_starts_up_to_one_line_past_the_last_full_window():
    crop, generator = RandomCrop((5, 8)), np.random.default_rng(0)
    starts = {crop.draw_start((7, 8), generator) for _ in range(200)}
    assert starts == {(0, 0), (1, 0), (2, 0), (3, 0)}


def test_crop_with_an_odd_rest_pads_more_at_the_bottom_right():
    sample = normalise(make_sample(4, 3))
    out = RandomCrop((7, 8))(sample, np.random.default_rng(0))
    assert (out.label[1:5, 2:5] == sample.label).all()
    assert (out.label == 255).sum() == 7 * 8 - 4 * 3
    assert (out.image[1:5, 2:5] == sample.image).all()
    assert (out.image[5:] == 0).all()


def test_padding_stands_before_normalising():
    out = validation_transform((13, 16))(make_sample(), np.random.default_rng(0))
    assert out.size == (13, 16)
    assert out.image[12, 15, 0] == np.float32((0 - 0.485) / 0.229)
    assert (out.label[11:] == 255).all()


def test_sample_larger_than_the_padded_size_is_refused():
    with pytest.raises(ValueError, match=r"'s0' is \(11, 14\), larger"):
        pad_bottom_right(make_sample(), (20, 13))


def test_training_transform_repeats_for_the_same_generator_state():
    transform = pickle.loads(pickle.dumps(training_transform((6, 6))))
    first = transform(make_sample(), np.random.default_rng(7))
    again = transform(make_sample(), np.random.default_rng(7))
    other = transform(make_sample(), np.random.default_rng(8))
    assert (first.image == again.image).all()
    assert not np.array_equal(first.image, other.image)
    assert first.size == (6, 6)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: RandomMirror(1.5), "1.5"),
        (lambda: RandomScale(()), "scales"),
        (lambda: RandomScale((1.0, 0.0)), "above 0"),
        (lambda: RandomCrop((0, 5)), "crop size"),
    ],
)
def test_impossible_settings_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()
