from __future__ import annotations

import cv2
import numpy as np
import pytest

from segtasks.data.rgbd import RGBDDataset
from segtasks.data.survey import find_overlap, survey_split


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path):
    """Five samples of 4x6 pixels; label of sample k: one row of class 1, the rest raw k % 3."""
    generator = np.random.default_rng(0)
    for number in range(5):
        write(tmp_path / f"RGB/{number}.jpg", generator.integers(0, 256, (4, 6, 3), np.uint8))
        write(tmp_path / f"Depth/{number}.png", generator.integers(0, 256, (4, 6), np.uint8))
        label = np.full((4, 6), number % 3, np.uint8)
        label[0] = 1
        write(tmp_path / f"Label/{number}.png", label)
    (tmp_path / "train.txt").write_text("".join(f"RGB/{n}.jpg\n" for n in range(5)))
    return tmp_path


def survey(root, split="train.txt", progress=None, **changes):
    dataset = RGBDDataset(root, split, skip_missing=True, **{"num_classes": 2, **changes})
    return survey_split(dataset, root / split, progress)


def problems(root, **changes):
    return [(p.kind, p.text) for p in survey(root, **changes).problems]


def test_labels_sizes_and_depth_are_counted(root):
    calls = []
    found = survey(root, progress=lambda *numbers: calls.append(numbers))
    # Raw labels 0, 1, 2, 0, 1 below the row of ones: classes -, 0, 1, -, 0.
    assert found.pixels[[0, 1, 255]].tolist() == [5 * 6 + 2 * 18, 18, 2 * 18]
    assert found.images[[0, 1, 255]].tolist() == [5, 1, 2]
    assert found.pixels.sum() == 5 * 24
    assert found.sizes == {(4, 6): 5}
    assert found.depth_bits == {8: 5}
    assert found.problems == []
    assert calls == [(n, 5) for n in range(1, 6)]


def test_labels_without_shift_are_counted_as_they_are(root):
    found = survey(root, num_classes=3, label_shift=False)
    assert found.pixels[[0, 1, 2, 255]].tolist() == [36, 66, 18, 0]


def test_missing_files_are_told_and_the_other_samples_read(root):
    (root / "Depth/1.png").unlink()
    (root / "Label/1.png").unlink()
    (root / "RGB/3.jpg").unlink()
    found = survey(root)
    assert [p.kind for p in found.problems] == ["missing", "missing"]
    assert found.problems[0].text.endswith("lists '1': no file Depth/1 and Label/1")
    assert found.problems[1].text.endswith("lists '3': no file RGB/3")
    assert found.listed == ["0", "1", "2", "3", "4"]
    assert sum(found.sizes.values()) == 3


def test_every_damaged_file_of_a_sample_is_told(root):
    for name in ("RGB/2.jpg", "Depth/2.png", "Label/2.png"):
        (root / name).write_bytes(b"")
    found = problems(root)
    assert [kind for kind, _ in found] == ["unreadable"] * 3
    assert "RGB/2.jpg: the file is empty" in found[0][1]
    assert "Label/2.png" in found[2][1]


def test_picture_whose_bytes_are_whole_but_hold_no_pixels_is_unreadable(root):
    end = b"\0\0\0\0IEND\xaeB`\x82"
    (root / "Depth/2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + end)
    ((kind, text),) = problems(root)
    assert kind == "unreadable"
    assert "Depth/2.png: the picture cannot be decoded" in text


def test_sizes_that_differ_are_told(root):
    write(root / "Depth/4.png", np.zeros((4, 7), np.uint8))
    ((kind, text),) = problems(root)
    assert kind == "size"
    assert "Depth/4.png is 4x7" in text


def test_labels_beyond_the_classes_are_told_and_still_counted(root):
    found = survey(root, num_classes=1)
    assert [p.kind for p in found.problems] == ["label"]
    assert "Label/2.png: label 2 is out of range" in found.problems[0].text
    assert found.pixels[1] == 18


def test_16bit_depth_needs_depth_max(root):
    write(root / "Depth/1.png", np.full((4, 6), 700, np.uint16))
    found = survey(root)
    assert [p.kind for p in found.problems] == ["16-bit depth"]
    assert found.depth_bits == {8: 4, 16: 1}
    assert found.largest_depth == 700
    assert problems(root, depth_max=700) == []


def test_sample_listed_twice_is_told_once(root):
    (root / "train.txt").write_text("RGB/0.jpg\nRGB/1.jpg\nRGB/0.jpg\nRGB/0.jpg\n")
    ((kind, text),) = problems(root)
    assert kind == "duplicate"
    assert "lists '0' 3 times" in text


def test_samples_in_both_splits_are_told(root):
    (root / "test.txt").write_text("RGB/4.jpg\nRGB/7.jpg\nRGB/4.jpg\n")
    found = find_overlap(survey(root), survey(root, "test.txt"))
    assert [p.kind for p in found] == ["overlap"]
    assert found[0].text.startswith(f"'4' is in {root}/train.txt and in {root}/test.txt")
