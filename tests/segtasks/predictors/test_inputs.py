"""What cannot be predicted is named before anything is; what can is read as data sets read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import DataError
from segtasks.predictors.inputs import (
    PredictionError,
    Preparation,
    check_inputs,
    scale_depth,
)

RGB = np.zeros((4, 6, 3), np.uint8)
DEPTH = np.zeros((4, 6), np.uint8)


def write(path: Path, array: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), array)
    return path


@pytest.mark.parametrize(
    ("rgb", "depth", "message"),
    [
        (RGB[..., 0], DEPTH, r"rgb\[1\] has the shape \(4, 6\); .* repeat a grey one"),
        (RGB[None], DEPTH, r"rgb\[1\] has the shape \(1, 4, 6, 3\); .* several as a list"),
        (RGB[:0], DEPTH[:0], r"rgb\[1\] has the shape \(0, 6, 3\)"),
        (RGB.astype(np.float32), DEPTH, r"rgb\[1\] has float32 values; give pixels as uint8"),
        (RGB, DEPTH[None, None], r"depth\[1\] has the shape \(1, 1, 4, 6\)"),
        (RGB, np.zeros((4, 6, 2), np.uint8), r"depth\[1\] has the shape \(4, 6, 2\)"),
        (RGB, DEPTH.astype(np.float64), r"depth\[1\] has float64 values; .* with depth_max"),
        (RGB, DEPTH.astype(np.uint16), r"depth\[1\] is 16-bit, which needs depth_max"),
        (RGB, DEPTH[:3], r"rgb\[1\] is 4x6 and depth\[1\] is 3x6 \(height x width\)"),
        (None, DEPTH, r"rgb\[1\] is a NoneType; give an array or a path"),
        (RGB, 5, r"depth\[1\] is a int; give an array or a path"),
    ],
)
def test_a_wrong_array_is_named_by_its_index(rgb: Any, depth: Any, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        check_inputs([RGB, rgb], [DEPTH, depth], Preparation())


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    rgb, depth = write(tmp_path / "a.png", RGB), write(tmp_path / "a_depth.png", DEPTH)
    grey = write(tmp_path / "grey.png", DEPTH)
    wide = write(tmp_path / "wide.png", DEPTH.astype(np.uint16))
    wide_rgb = write(tmp_path / "wide_rgb.png", RGB.astype(np.uint16))
    large = write(tmp_path / "large.jpg", np.zeros((5, 6), np.uint8))
    cut = tmp_path / "cut.png"
    cut.write_bytes(rgb.read_bytes()[:-20])
    for image, its_depth, message in (
        (grey, depth, r"rgb .*grey\.png is a grey picture, .* exchanged\?"),
        (wide_rgb, depth, r"rgb .*wide_rgb\.png is a 16-bit picture"),
        (large, depth, r"rgb .*large\.jpg is a grey picture"),
        (rgb, wide, r"depth .*wide\.png is 16-bit, which needs depth_max"),
        (rgb, large, r"rgb .*a\.png is 4x6 and depth .*large\.jpg is 5x6"),
    ):
        with pytest.raises(PredictionError, match=message):
            check_inputs([str(image)], [its_depth], Preparation())
    with pytest.raises(DataError, match=r"nowhere\.png: the file is missing"):
        check_inputs([rgb], [tmp_path / "nowhere.png"], Preparation())
    with pytest.raises(DataError, match=r"cut\.png: the PNG file is cut short"):
        check_inputs([cut], [depth], Preparation())
    assert check_inputs([rgb], [depth], Preparation())[0].name == "a"


def test_arguments_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(PredictionError, match="2 images and 1 depths"):
        check_inputs([RGB, RGB], [DEPTH], Preparation())
    with pytest.raises(PredictionError, match="input_order must be 'bgr' or 'rgb', got 'gbr'"):
        check_inputs([], [], Preparation(), "gbr")  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match="channel_order must be"):
        Preparation(channel_order="RGB")  # type: ignore[arg-type]
    with pytest.raises(PredictionError, match="depth_max must be above 0, got 0"):
        Preparation(depth_max=0)


@pytest.mark.parametrize("depth_max", [10_000.0, 65535.0, 777.7])
def test_every_raw_depth_becomes_the_grey_value_of_a_data_set(
    tmp_path: Path, depth_max: float
) -> None:
    for folder in ("RGB", "Depth", "Label"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.png", RGB)
    (tmp_path / "all.txt").write_text("RGB/0.png\n")
    dataset = RGBDDataset(tmp_path, "all.txt", num_classes=2, depth_max=depth_max)
    raw = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = dataset.scale_depth(raw, tmp_path)
    np.testing.assert_array_equal(scale_depth(raw, depth_max), expected)


def test_coloured_depth_becomes_grey_whether_file_or_array(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    bgr = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = write(tmp_path / "thermal.png", bgr)
    read = [
        check_inputs([RGB], [depth], Preparation(), order)[0].read(Preparation()).depth
        for depth, order in ((path, "rgb"), (bgr, "bgr"), (bgr[..., ::-1], "rgb"))
    ]
    assert len(np.unique(read[0])) > 5
    np.testing.assert_array_equal(read[1], read[0])
    np.testing.assert_array_equal(read[2], read[0])
