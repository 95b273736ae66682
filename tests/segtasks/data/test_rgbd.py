from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.data.rgbd import RGBDDataset
from segtasks.data.samples import DataError

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol"


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path):
    """Two samples of 6x8 pixels, three classes (1 to 3) and unlabelled pixels (0)."""
    generator = np.random.default_rng(0)
    for name in ("a", "b.1"):
        write(tmp_path / f"RGB/{name}.jpg", generator.integers(0, 256, (6, 8, 3), np.uint8))
        write(tmp_path / f"Depth/{name}.png", generator.integers(0, 256, (6, 8), np.uint8))
        write(tmp_path / f"Label/{name}.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 4)
    (tmp_path / "train.txt").write_text("RGB/a.jpg Label/a.png\n\nRGB/b.1.jpg Label/b.1.png\n")
    return tmp_path


def open_data(root, **changes):
    return RGBDDataset(root, "train.txt", **{"num_classes": 3, **changes})


def test_label_shift_equals_the_recorded_reference(root):
    with np.load(PROTOCOL / "protocol.npz") as recorded:
        raw, out = recorded["label_shift/raw"], recorded["label_shift/out"]
    write(root / "Label/a.png", np.resize(raw[raw != 255], (6, 8)))
    label = open_data(root, num_classes=254).read_label(0)
    assert (label == np.resize(out[raw != 255], (6, 8))).all()
    # The recorded shift makes raw 255 a class that no data set has; here that is an error.
    assert out[raw == 255].tolist() == [254] * int((raw == 255).sum())


def test_sample_holds_what_the_files_hold(root):
    sample = open_data(root)[1]
    assert sample.name == "b.1"
    assert (sample.image == cv2.imread(str(root / "RGB/b.1.jpg"))).all()
    depth = cv2.imread(str(root / "Depth/b.1.png"), cv2.IMREAD_GRAYSCALE)
    assert (sample.depth == depth[..., None]).all()
    assert sample.depth.shape == (6, 8, 3)
    assert sample.label.reshape(-1)[:5].tolist() == [255, 0, 1, 2, 255]


def test_rgb_order_swaps_the_channels_of_the_image(root):
    swapped = open_data(root, channel_order="rgb")[0].image
    assert (swapped == open_data(root)[0].image[..., ::-1]).all()


def test_orientation_tag_is_ignored(root):
    jpeg = (root / "RGB/a.jpg").read_bytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    (root / "RGB/a.jpg").write_bytes(jpeg[:2] + exif + jpeg[2:])
    assert cv2.imread(str(root / "RGB/a.jpg")).shape == (8, 6, 3)
    assert open_data(root)[0].image.shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("RGB/0.jpg", "0"),
        ("RGB/0001.png", "0001"),
        ("RGB/7.jpg Label/7.png", "7"),
        ("RGB/7.png Label/7.png", "7"),
        ("RGB/x.y.jpg\tLabel/x.y.png", "x.y"),
        ("RGB/scene/12.jpg", "scene/12"),
        ("RGB/plain", "plain"),
        ("\ufefffirst.jpg", "first"),
    ],
)
def test_split_line_names_the_sample(root, line, stem):
    write(root / f"RGB/{stem}.png", np.zeros((4, 4, 3), np.uint8))
    write(root / f"Depth/{stem}.png", np.zeros((4, 4), np.uint8))
    write(root / f"Label/{stem}.png", np.ones((4, 4), np.uint8))
    (root / "train.txt").write_text(line + "\r\n", encoding="utf-8")
    dataset = open_data(root)
    assert dataset.stems == [stem]
    assert dataset[0].image.max() == 0


def test_jpeg_is_taken_when_an_image_has_both_endings(root):
    write(root / "RGB/a.png", np.zeros((6, 8, 3), np.uint8))
    assert open_data(root)[0].image.max() > 0


def test_split_may_lie_elsewhere(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("splits") / "mine.txt"
    other.write_text("RGB/a.jpg\n")
    assert RGBDDataset(root, other, num_classes=3).stems == ["a"]


@pytest.mark.parametrize("channels", [3, 4])
def test_depth_with_equal_channels_is_read_as_grey(root, channels):
    grey = cv2.imread(str(root / "Depth/a.png"), cv2.IMREAD_GRAYSCALE)
    write(root / "Depth/a.png", np.dstack([grey] * channels))
    assert (open_data(root).read_depth(0) == grey).all()


def test_16bit_depth_is_scaled_by_depth_max(root):
    raw = np.full((6, 8), 500, np.uint16)
    raw[0] = [0, 1, 3, 1000, 1001, 65535, 999, 2]
    write(root / "Depth/a.png", raw)
    depth = open_data(root, depth_max=1000).read_depth(0)
    # 500 * 255 / 1000 = 127.5 rounds to the even 128.
    assert depth[1, 0] == 128
    assert depth[0].tolist() == [0, 0, 1, 255, 255, 255, 255, 1]


def test_8bit_depth_is_taken_as_it_is_with_depth_max_set(root):
    assert (open_data(root, depth_max=65535)[0].depth == open_data(root)[0].depth).all()


def test_16bit_depth_without_depth_max_names_file_and_remedy(root):
    write(root / "Depth/a.png", np.full((6, 8), 4321, np.uint16))
    with pytest.raises(DataError, match=r"Depth/a\.png.*4321.*needs depth_max"):
        open_data(root)[0]


def test_labels_without_shift_are_classes_from_zero(root):
    raw = np.full((6, 8), 2, np.uint8)
    raw[0, :3] = [0, 1, 255]
    write(root / "Label/a.png", raw)
    assert (open_data(root, label_shift=False).read_label(0) == raw).all()


@pytest.mark.parametrize(
    ("shift", "value", "text"),
    [
        (True, 4, r"label 4 is out of range: num_classes is 3.*1 to 3.*at least 4"),
        (True, 255, r"label 255.*class 254.*label_shift to false"),
        (False, 3, r"label 3 is out of range: num_classes is 3.*0 to 2.*at least 4.*label_shift"),
        (False, 254, r"label 254 is out of range"),
    ],
)
def test_label_out_of_range_names_file_value_and_remedy(root, shift, value, text):
    label = np.ones((6, 8), np.uint8)
    label[2, 2] = value
    write(root / "Label/a.png", label)
    with pytest.raises(DataError, match=r"Label/a\.png: " + text):
        open_data(root, label_shift=shift)[0]


def test_coloured_label_is_refused(root):
    write(root / "Label/a.png", np.random.default_rng(0).integers(0, 3, (6, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"Label/a\.png: the label is coloured"):
        open_data(root)[0]


def test_label_with_equal_channels_is_read(root):
    before = open_data(root).read_label(0)
    write(root / "Label/a.png", np.dstack([before + 1] * 3))
    assert (open_data(root).read_label(0) == before).all()


def test_16bit_label_is_refused(root):
    write(root / "Label/a.png", np.ones((6, 8), np.uint16))
    with pytest.raises(DataError, match=r"Label/a\.png: the label has uint16 values"):
        open_data(root)[0]


@pytest.mark.parametrize("file", ["RGB/a.jpg", "Depth/a.png", "Label/a.png"])
def test_sizes_that_differ_are_named(root, file):
    write(root / file, np.ones((5, 8), np.uint8))
    with pytest.raises(DataError, match=rf"sample 'a' differ in size.*{file} is 5x8.*resize"):
        open_data(root)[0]


@pytest.mark.parametrize("file", ["RGB/a.jpg", "Depth/a.png", "Label/a.png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_truncated_file_is_named_whatever_is_missing(root, file, share):
    data = (root / file).read_bytes()
    (root / file).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"{file}: the .*(cut short|empty|neither).* again"):
        open_data(root)[0]


def test_truncated_jpeg_is_found_behind_an_embedded_preview(root):
    data = (root / "RGB/a.jpg").read_bytes()
    preview = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    whole = data[:2] + preview + data[2:]
    (root / "RGB/a.jpg").write_bytes(whole)
    assert open_data(root)[0].size == (6, 8)
    (root / "RGB/a.jpg").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="cut short"):
        open_data(root)[0]


def test_png_with_one_changed_byte_is_damaged(root):
    data = bytearray((root / "Depth/a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (root / "Depth/a.png").write_bytes(data)
    with pytest.raises(DataError, match=r"Depth/a\.png: the PNG file is damaged at byte \d+"):
        open_data(root)[0]


def test_png_that_is_whole_but_holds_no_picture_cannot_be_decoded(root):
    end = b"\0\0\0\0IEND\xaeB`\x82"
    (root / "Label/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + end)
    with pytest.raises(DataError, match=r"Label/a\.png: the picture cannot be decoded"):
        open_data(root)[0]


def test_file_lost_after_the_check_is_named(root):
    dataset = open_data(root)
    (root / "Depth/b.1.png").unlink()
    assert dataset[0].name == "a"
    with pytest.raises(DataError, match=r"Depth/b\.1\.png: the file is missing"):
        dataset[1]


@pytest.mark.parametrize(
    ("file", "folder"), [("RGB/a.jpg", "RGB"), ("Depth/a.png", "Depth"), ("Label/a.png", "Label")]
)
def test_missing_files_are_found_before_reading(root, file, folder):
    (root / file).unlink()
    with pytest.raises(DataError, match=rf"1 of 2 samples have no file in '{folder}'.*{folder}/a;"):
        open_data(root)


def test_many_missing_files_are_counted_not_listed(root):
    (root / "train.txt").write_text("".join(f"RGB/{i}.jpg\n" for i in range(50)))
    with pytest.raises(DataError, match=r"50 of 50 samples .*RGB/4, \.\.\.;"):
        open_data(root)


def test_missing_folder_of_samples_counts_as_missing_files(root):
    (root / "train.txt").write_text("RGB/kitchen/1.jpg\n")
    with pytest.raises(DataError, match=r"RGB/kitchen/1"):
        open_data(root)


def test_missing_label_folder_suggests_the_one_there(root):
    (root / "Label").rename(root / "labels")
    with pytest.raises(
        DataError, match=r"no folder 'Label' \(did you mean 'labels'\?\).*Depth, RGB"
    ):
        open_data(root)
    assert len(open_data(root, label_folder="labels")) == 2


def test_missing_root_and_missing_split_are_named(root):
    with pytest.raises(DataError, match=r"nowhere: the folder of the data set does not exist"):
        open_data(root / "nowhere")
    with pytest.raises(DataError, match=r"the folder of the data set is a file"):
        open_data(root / "train.txt")
    with pytest.raises(DataError, match=r"val\.txt: the split file is missing; .* has train\.txt"):
        RGBDDataset(root, "val.txt", num_classes=3)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"\n  \n", "empty"),
        (b"RGB/.jpg\n", "line 1: no file"),
        (b"\xff\xfe", "text"),
    ],
)
def test_unusable_split_is_named(root, content, text):
    (root / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"train\.txt.*{text}"):
        open_data(root)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_classes": 0}, "num_classes must be 1 to 254.*got 0"),
        ({"num_classes": 255}, "got 255"),
        ({"channel_order": "gbr"}, "'bgr' or 'rgb', got 'gbr'"),
        ({"depth_max": 0}, "depth_max must be above 0"),
    ],
)
def test_impossible_arguments_are_refused(root, change, text):
    with pytest.raises(DataError, match=text):
        open_data(root, **change)


@pytest.mark.parametrize("lines", ["{}_rgb.png", "{}"])
def test_names_may_stand_between_a_prefix_and_a_suffix(root, lines):
    for name in ("a", "day/b"):
        write(root / f"images/{name}_rgb.png", np.zeros((4, 4, 3), np.uint8))
        parent, last = root.joinpath(name).parent.relative_to(root), name.rpartition("/")[2]
        write(root / "depth" / parent / f"d_{last}.png", np.full((4, 4), 9, np.uint8))
        write(root / f"masks/{name}_mask.png", np.ones((4, 4), np.uint8))
    (root / "train.txt").write_text("".join(f"images/{lines.format(n)}\n" for n in ("a", "day/b")))
    folders = {"rgb_folder": "images/*_rgb", "depth_folder": "depth/d_*"}
    dataset = open_data(root, **folders, label_folder="masks/*_mask")
    assert dataset.stems == ["a", "day/b"]
    assert dataset.describe(1).endswith(
        "images/day/b_rgb.png, depth/day/d_b.png, masks/day/b_mask.png"
    )
    assert dataset[1].depth.max() == 9
    (root / "depth/day/d_b.png").unlink()
    with pytest.raises(DataError, match=r"no file in 'depth' .*: depth/day/d_b;"):
        open_data(root, **folders, label_folder="masks/*_mask")


def test_files_may_lie_beside_the_split(root):
    for name, value in (("1_rgb", 0), ("1_depth", 5), ("1_label", 1)):
        write(root / f"{name}.png", np.full((4, 4), value, np.uint8))
    (root / "train.txt").write_text("1_rgb.png\n")
    dataset = open_data(root, rgb_folder="*_rgb", depth_folder="*_depth", label_folder="*_label")
    assert dataset[0].name == "1"
    assert dataset[0].depth.max() == 5


@pytest.mark.parametrize("folder", ["*/Depth", "a*/b", "Depth/*_*"])
def test_impossible_patterns_are_refused(root, folder):
    with pytest.raises(DataError, match=r"one \* in the file's name"):
        open_data(root, depth_folder=folder)


def test_samples_without_all_files_are_left_out_where_that_is_asked_for(root):
    (root / "Depth/a.png").unlink()
    dataset = open_data(root, skip_missing=True)
    assert (dataset.stems, dataset.listed) == (["b.1"], ["a", "b.1"])
    assert dataset.missing == {"a": ["Depth/a"]}
    assert dataset[0].name == "b.1"


def test_describe_names_the_files_of_a_sample(root):
    assert open_data(root).describe(1) == f"{root}: RGB/b.1.jpg, Depth/b.1.png, Label/b.1.png"


def test_recorded_data_set_reads_as_recorded():
    with np.load(PROTOCOL / "protocol.npz") as recorded:
        meta = json.loads(recorded["meta"].tobytes())
    dataset = RGBDDataset(PROTOCOL / "mini", "test.txt", num_classes=13)
    files = [f"{stem}.png" for stem in dataset.stems]
    assert files == [item["file"] for item in meta["val"]["NYUDepthv2/DFormer-Tiny"]["items"]]
