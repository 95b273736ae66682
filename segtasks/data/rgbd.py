"""RGB-D data sets in the layout of NYUDepthv2 and SUNRGBD: folders of pictures and split files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from segtasks.data.images import (
    ChannelOrder,
    read_classes,
    read_colour,
    read_grey,
    read_png_size,
    verify_picture,
)
from segtasks.data.samples import IGNORE_INDEX, DataError, SegmentationSample
from segtasks.data.splits import (
    NamePattern,
    check_root,
    find_pictures,
    read_stems,
    refuse_missing,
)


class RGBDDataset:
    """RGB images, depth and labels of one split, read as DFormer's official code reads them.

    A sample `0` consists of the files `RGB/0.jpg`, `Depth/0.png` and `Label/0.png`. That all files
    of the split exist is checked here; their contents by `check`, and when they are read.

    Attributes:
        stems: names of the samples, in the order of the split.
        listed: the same with those that `skip_missing` leaves out.
        missing: those left out, each with the files that it lacks, such as `Depth/3`.

    Args:
        root: folder of the data set.
        split_file: text file with a line `RGB/0.jpg` per sample, relative to `root` or absolute.
        num_classes: number of classes, 1 to 254.
        rgb_folder: folder in `root` with the images. Here and below also a pattern such as
            `RGB/*_rgb`, where the image of the sample `0` is `RGB/0_rgb.png`; the lines of the
            split then hold `0_rgb` or `0`.
        depth_folder: folder in `root` with the depth: 8-bit grey, or 16-bit with `depth_max`.
        label_folder: folder in `root` with the labels (`labels` in SUNRGBD), 8-bit grey.
        label_shift: True where 0 is unlabelled and classes count from 1; False where classes count
            from 0 and 255 is unlabelled.
        depth_max: raw value of 16-bit depth that becomes 255, larger ones too; 8-bit depth is
            taken as it is.
        channel_order: `bgr`, which official weights expect, or `rgb`, which the official
            DFormerv2 weights for SUNRGBD expect.
        skip_missing: leave out samples that lack a file.

    Raises:
        DataError: a file or folder is missing, the split is empty, or an argument is impossible.
    """

    def __init__(
        self,
        root: str | Path,
        split_file: str | Path,
        *,
        num_classes: int,
        rgb_folder: str = "RGB",
        depth_folder: str = "Depth",
        label_folder: str = "Label",
        label_shift: bool = True,
        depth_max: float | None = None,
        channel_order: ChannelOrder = "bgr",
        skip_missing: bool = False,
    ) -> None:
        check_num_classes(num_classes)
        if channel_order not in get_args(ChannelOrder):
            raise DataError(f"channel_order must be 'bgr' or 'rgb', got {channel_order!r}")
        self.root = Path(root)
        self.num_classes = num_classes
        self.label_shift = label_shift
        self.channel_order = channel_order
        self._grey_of_raw = None if depth_max is None else grey_table(depth_max)
        check_root(self.root)
        image_place = NamePattern.of(rgb_folder)
        self.listed = [image_place.sample(name) for name in read_stems(self.root / split_file)]
        columns = [
            self._find(pattern, endings, skip_missing)
            for pattern, endings in (
                (image_place, (".jpg", ".jpeg", ".png")),
                (NamePattern.of(depth_folder), (".png", ".jpg", ".jpeg")),
                (NamePattern.of(label_folder), (".png",)),
            )
        ]
        rows = list(zip(self.listed, zip(*columns, strict=True), strict=True))
        self.missing = {
            stem: [path for path, there in files if not there]
            for stem, files in rows
            if not all(there for _, there in files)
        }
        self.stems = [stem for stem, _ in rows if stem not in self.missing]
        self._files = [
            tuple(path for path, _ in files) for stem, files in rows if stem not in self.missing
        ]

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> SegmentationSample:
        """Read one sample, uint8 throughout.

        Raises:
            DataError: a file is damaged, the three differ in size, or a label is no class.
        """
        image = read_colour(self.files(index)[0], self.channel_order)
        depth = self.read_depth(index)
        label = self.read_label(index)
        self.compare_sizes(index, image.shape[:2], depth.shape, label.shape)
        # Both model families read channel 0 only; official weights saw three equal channels.
        return SegmentationSample(image, np.dstack([depth] * 3), label, self.stems[index])

    def check(self, index: int) -> None:
        """Find what is wrong with a sample; image and depth are verified but not decoded.

        Raises:
            DataError: as reading it would.
        """
        image, depth = (verify_picture(path) for path in self.files(index)[:2])
        if depth.bits > 8 and self._grey_of_raw is None:
            self.read_depth(index)  # the message needs the values
        label = self.read_label(index)
        self.compare_sizes(index, image.size, depth.size, label.shape)

    def describe(self, index: int) -> str:
        """Name the files of a sample, for error messages."""
        return f"{self.root}: {', '.join(self._files[index])}"

    def files(self, index: int) -> tuple[Path, Path, Path]:
        """Image, depth and label of a sample."""
        image, depth, label = (self.root / name for name in self._files[index])
        return image, depth, label

    def read_depth(self, index: int) -> npt.NDArray[np.uint8]:
        """Read the depth of a sample as (H, W) uint8."""
        path = self.files(index)[1]
        return self.scale_depth(read_grey(path), path)

    def read_label(self, index: int) -> npt.NDArray[np.uint8]:
        """Read the label of a sample as (H, W) uint8: classes from 0, 255 to ignore."""
        path = self.files(index)[2]
        return self.shift_label(read_classes(path), path)

    def scale_depth(self, raw: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
        """Turn the depth of a file, (H, W) uint8 or uint16, into grey values.

        Raises:
            DataError: it is 16-bit and `depth_max` is not given.
        """
        if raw.dtype == np.uint8:
            return raw
        if self._grey_of_raw is None:
            raise DataError(
                f"{path}: 16-bit depth (largest value {raw.max()}) needs depth_max, the raw "
                "value that becomes 255; set it to the largest value of the whole data set"
            )
        return self._grey_of_raw[raw]

    def shift_label(self, raw: npt.NDArray[np.uint8], path: Path) -> npt.NDArray[np.uint8]:
        """Turn the label of a file, (H, W), into classes from 0 and 255 to ignore.

        Raises:
            DataError: a value is no class.
        """
        # In uint8, 0 - 1 is 255: unlabelled pixels become ignored ones.
        label = raw - np.uint8(1) if self.label_shift else raw
        # 255 wraps to 0 here, so one maximum finds every class that is too large.
        if (label + np.uint8(1)).max() > self.num_classes:
            worst = int(raw[(label >= self.num_classes) & (label != IGNORE_INDEX)].max())
            raise DataError(self._wrong_label(path, worst))
        return label

    def label_size(self, index: int) -> tuple[int, int]:
        """Height and width of a sample, from the header of its label alone."""
        return read_png_size(self.files(index)[2])

    def compare_sizes(self, index: int, *sizes: tuple[int, ...]) -> None:
        """Raise DataError unless image, depth and label of a sample have one (height, width)."""
        if len(set(sizes)) == 1:
            return
        files = zip(self._files[index], sizes, strict=True)
        found = ", ".join(f"{name} is {size[0]}x{size[1]}" for name, size in files)
        raise DataError(
            f"{self.root}: the files of sample {self.stems[index]!r} differ in size "
            f"(height x width): {found}; resize them to one size or take the sample out"
        )

    def _find(
        self, pattern: NamePattern, endings: tuple[str, ...], skip_missing: bool
    ) -> list[tuple[str, bool]]:
        """The file of each sample, and whether it is there."""
        names = [pattern.name(stem) for stem in self.listed]
        found = find_pictures(self.root, pattern.folder, names, endings)
        pairs = list(zip(names, found, strict=True))
        if not skip_missing:
            absent = [name for name, path in pairs if path is None]
            refuse_missing(self.root, pattern.folder, absent, endings, len(names))
        return [(path or f"{pattern.folder}/{name}", path is not None) for name, path in pairs]

    def _wrong_label(self, path: Path, raw: int) -> str:
        if not self.label_shift:
            return (
                f"{path}: label {raw} is out of range: num_classes is {self.num_classes}, so "
                f"labels are 0 to {self.num_classes - 1} and 255 (ignored); set num_classes to at "
                f"least {raw + 1}, or label_shift to true where labels count from 1"
            )
        if raw == IGNORE_INDEX:
            return (
                f"{path}: label 255 is out of range: the label shift makes it class 254, and "
                f"num_classes is {self.num_classes}; write unlabelled pixels as 0, or set "
                "label_shift to false where labels count from 0 and 255 is unlabelled"
            )
        return (
            f"{path}: label {raw} is out of range: num_classes is {self.num_classes}, so labels "
            f"are 1 to {self.num_classes} and 0 (ignored); set num_classes to at least {raw}, or "
            "label_folder to the folder with this number of classes"
        )


def check_num_classes(num_classes: int) -> None:
    """Raise DataError unless 8-bit labels can hold this number of classes."""
    if not 1 <= num_classes <= 254:
        raise DataError(
            f"num_classes must be 1 to 254 (labels are 8-bit, 255 is ignored), got {num_classes}"
        )


def grey_table(depth_max: float) -> npt.NDArray[np.uint8]:
    """Grey values 0 to 255 of all 16-bit raw values of depth, of which `depth_max` becomes 255.

    Raises:
        DataError: `depth_max` is not above 0.
    """
    if not depth_max > 0:
        raise DataError(f"depth_max must be above 0, got {depth_max}")
    return np.rint(np.arange(65536) * (255.0 / depth_max)).clip(0, 255).astype(np.uint8)
