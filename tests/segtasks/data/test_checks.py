from __future__ import annotations

import cv2
import numpy as np
import pytest

from segtasks.data.checks import check_samples
from segtasks.data.images import verify_picture
from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import DataError


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path):
    """Eight samples of 6x8 pixels with the labels 0 to 3; images are JPEG, large enough to cut."""
    generator = np.random.default_rng(0)
    for number in range(8):
        write(tmp_path / f"RGB/{number}.jpg", generator.integers(0, 256, (6, 8, 3), np.uint8))
        write(tmp_path / f"Depth/{number}.png", generator.integers(0, 256, (6, 8), np.uint8))
        write(tmp_path / f"Label/{number}.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 4)
    (tmp_path / "train.txt").write_text("".join(f"RGB/{n}.jpg\n" for n in range(8)))
    return tmp_path


def check(root, **changes):
    dataset = RGBDDataset(root, "train.txt", **{"num_classes": 3, **changes})
    check_samples(dataset, str(root / "train.txt"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def shrink(path):
    write(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:-1])


def deepen(path):
    write(path, cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 257)


def test_whole_data_set_passes(root):
    check(root)
    deepen(root / "Depth/3.png")
    check(root, depth_max=65535)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (cut, "RGB/2.jpg", r"RGB/2\.jpg: the JPEG file is cut short"),
        (cut, "Depth/2.png", r"Depth/2\.png: the PNG file is cut short"),
        (cut, "Label/2.png", r"Label/2\.png: the PNG file is cut short"),
        (shrink, "RGB/2.jpg", r"RGB/2\.jpg is 5x8, Depth/2\.png is 6x8, Label/2\.png is 6x8"),
        (shrink, "Depth/2.png", r"RGB/2\.jpg is 6x8, Depth/2\.png is 5x8"),
        (deepen, "Depth/2.png", r"Depth/2\.png: 16-bit depth .* needs depth_max"),
    ],
)
def test_damage_to_a_file_is_found_and_named(root, damage, file, message):
    damage(root / file)
    with pytest.raises(DataError, match=message):
        check(root)


def test_several_bad_samples_are_counted_and_the_first_five_told(root):
    with pytest.raises(DataError) as caught:
        check(root, num_classes=2)
    first, *told, last = str(caught.value).splitlines()
    assert first == f"{root}/train.txt: 8 of 8 samples cannot be used"
    assert len(told) == 5
    assert told[0].startswith(f"  {root}/Label/0.png: label 3 is out of range")
    assert last == "  and 3 more"


@pytest.mark.parametrize("extra", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_jpeg_header_tells_the_size_behind_other_segments(tmp_path, extra):
    path = tmp_path / "a.jpg"
    assert cv2.imwrite(str(path), np.zeros((300, 70, 3), np.uint8), list(extra))
    data = path.read_bytes()
    comment = b"\xff\xff\xfe\x00\x05abc"  # one fill byte, and a segment of five bytes
    path.write_bytes(data[:2] + comment + data[2:])
    assert verify_picture(path).size == (300, 70)
    assert verify_picture(path).bits == 8
    path.write_bytes(data[:2] + b"\x00" + data[2:])
    with pytest.raises(DataError, match=r"a\.jpg: the picture has no size"):
        verify_picture(path)
