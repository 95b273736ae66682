"""Data modules for RGB-D segmentation: data sets on disk, and rooms that are rendered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.progress import TaskID

from jtlightning.data.loader import Loader
from segtasks.data.base import SplitDataModule, SplitName, terminal_bar
from segtasks.data.baseline import MajorityMap
from segtasks.data.checks import check_samples
from segtasks.data.classes import ClassNames, resolve_class_names
from segtasks.data.epochs import OfficialEpoch
from segtasks.data.images import ChannelOrder
from segtasks.data.rgbd import RGBDDataset, check_num_classes
from segtasks.data.rooms import CLASS_NAMES, write_rooms
from segtasks.data.rooms.folder import FORMAT
from segtasks.data.samples import IGNORE_INDEX, DataError, collate
from segtasks.data.survey import SplitSurvey, survey_split
from segtasks.data.transforms.segmentation import (
    OFFICIAL_SCALES,
    training_transform,
    validation_transform,
)


class RGBDDataModule(SplitDataModule):
    """RGB-D images with pixel labels in the layout of NYUDepthv2 or SUNRGBD.

    Training samples are mirrored, scaled and cropped as in DFormer's official code; validation,
    test and prediction read the test split at its native size.

    Attributes:
        num_classes: number of classes.
        class_names: their names, in the order of the class indices.
        ignore_index: label value of pixels that do not count, 255.

    Args:
        root: Folder of the data set.
        num_classes: Number of classes, 1 to 254; a label beyond them is an error.
        class_names: Names for tables and pictures: a list, or `nyu40`, `nyu13`, `sun37`
            or `mfnet9`; default: class 0, class 1, ...
        crop_size: Height and width of a training crop in pixels (480 480 for SUNRGBD).
        batch_size: Samples per training step; incomplete batches are left out.
        val_batch_size: Samples per batch of validation, test and prediction; above 1 only where
            all images have one size or `pad_validation` gives them one.
        num_workers: Processes that load data; 0 loads in the main process.
        scales: Factors by which training images are resized at random; `[1.0]` switches it off.
        mirror_probability: Probability of swapping left and right in training, 0 to 1.
        rgb_folder: Folder with the images, .jpg or .png. Here and below also a pattern such as
            `RGB/*_rgb`, where the image of the sample 0 is `RGB/0_rgb.png`.
        depth_folder: Folder with the depth or another second modality, 8-bit grey, or 16-bit with
            `depth_max`.
        label_folder: Folder with the labels, 8-bit grey PNG (`labels` for SUNRGBD).
        label_shift: True where 0 is unlabelled and classes count from 1; False where they count
            from 0 and 255 is unlabelled.
        depth_max: Raw value of 16-bit depth that becomes 255; needed for 16-bit depth only.
        channel_order: `bgr`, or `rgb` for the official DFormerv2 weights for SUNRGBD.
        train_split: Text file in `root` with a line `RGB/0.jpg` per training sample.
        test_split: The same for validation, test and prediction.
        pad_validation: Height and width to pad validation images to (531 730 for DFormerv2 on
            SUNRGBD); default: not padded.
        epoch_length: `plain`: every image at most once per epoch; `official`: one batch more, its
            rest filled with random images.
        check_files: Verify all files of both splits before training; reads every one of them.
        max_skipped: Training samples that may fail and be replaced by others before that is an
            error, a number or a fraction; the training files are not checked then. 0: none.
    """

    ignore_index = IGNORE_INDEX

    def __init__(  # noqa: PLR0913 - a data set has that many properties
        self,
        root: str,
        num_classes: int,
        *,
        class_names: ClassNames | list[str] | None = None,
        crop_size: tuple[int, int] = (480, 640),
        batch_size: int = 8,
        val_batch_size: int = 1,
        num_workers: int = 2,
        scales: list[float] | tuple[float, ...] = OFFICIAL_SCALES,
        mirror_probability: float = 0.5,
        rgb_folder: str = "RGB",
        depth_folder: str = "Depth",
        label_folder: str = "Label",
        label_shift: bool = True,
        depth_max: float | None = None,
        channel_order: ChannelOrder = "bgr",
        train_split: str = "train.txt",
        test_split: str = "test.txt",
        pad_validation: tuple[int, int] | None = None,
        epoch_length: Literal["plain", "official"] = "plain",
        check_files: bool = True,
        max_skipped: int | float = 0,
    ) -> None:
        check_num_classes(num_classes)
        if epoch_length not in ("plain", "official"):
            raise DataError(f"epoch_length must be 'plain' or 'official', got {epoch_length!r}")
        super().__init__(
            root,
            collate,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            check_files=check_files,
            max_skipped=max_skipped,
        )
        self.num_classes = num_classes
        self.class_names = resolve_class_names(class_names, num_classes)
        self.crop_size = (crop_size[0], crop_size[1])
        self.channel_order = channel_order
        self.train_split = train_split
        self.test_split = test_split
        self.epoch_length = epoch_length
        self.pad_validation = pad_validation
        self._train_transform = training_transform(self.crop_size, scales, mirror_probability)
        self._val_transform = validation_transform(pad_validation)
        self._open_split = partial(
            RGBDDataset,
            self.root,
            num_classes=num_classes,
            rgb_folder=rgb_folder,
            depth_folder=depth_folder,
            label_folder=label_folder,
            label_shift=label_shift,
            depth_max=depth_max,
            channel_order=channel_order,
        )
        self._datasets: dict[str, RGBDDataset] = {}
        self._majority: MajorityMap | None = None

    @property
    def input_shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Shapes of image and depth in a training batch, each (B, 3, H, W)."""
        shape = (self.batch_size, 3, *self.crop_size)
        return shape, shape

    def check_batches(self, split: SplitName) -> None:
        """Find the files of a split and see whether its samples can form batches.

        Raises:
            DataError: a file is missing, there are fewer training samples than a batch needs, or
                images of several sizes would have to share a validation batch.
        """
        if split == "test":
            self._check_validation_sizes(self._dataset(self.test_split))
            return
        samples = len(self._dataset(self.train_split))
        if self.epoch_length == "plain" and samples < self.batch_size:
            raise DataError(
                f"{self.root / self.train_split} lists {samples} samples, fewer than one batch of "
                f"{self.batch_size}; set batch_size to {samples} or less"
            )

    def survey(
        self, split: SplitName, progress: Callable[[int, int], None] | None = None
    ) -> SplitSurvey:
        """Look at every file of a split and count its labels, whatever is wrong with some.

        Args:
            split: Which.
            progress: Called with the number of samples looked at, and of all.

        Raises:
            DataError: the split file, or a folder that it needs, is missing.
        """
        file = self.train_split if split == "train" else self.test_split
        dataset = self._open_split(file, skip_missing=True)
        return survey_split(dataset, self.root / file, progress)

    def train_dataloader(self) -> Loader:
        """Shuffled, transformed training batches."""
        dataset = self._dataset(self.train_split)
        if self.epoch_length == "official":
            epoch = OfficialEpoch(dataset, self._train_transform, self.batch_size)
            return self._loader(epoch, epoch, training=True)
        return self._loader(dataset, self._train_transform, training=True)

    def val_dataloader(self) -> Loader:
        """Batches of the test split, in its order."""
        dataset = self._dataset(self.test_split)
        return self._loader(dataset, self._val_transform, training=False)

    def majority_label(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Predict an image without looking: the commonest training class at each position.

        The first call reads all training labels.

        Args:
            size: (height, width) of the image.

        Returns:
            Class indices of shape `size`.
        """
        if self._majority is None:
            dataset = self._dataset(self.train_split)
            height, width = dataset.read_label(0).shape
            majority = MajorityMap(self.num_classes, (height, width))
            for index in range(len(dataset)):
                majority.update(dataset.read_label(index))
            self._majority = majority
        return self._majority.predict(size)

    def _dataset(self, split: str) -> RGBDDataset:
        if split not in self._datasets:
            self._datasets[split] = self._open_split(split)
        return self._datasets[split]

    def _check_files(self) -> None:
        with terminal_bar() as bar:
            checked = (
                (self.test_split,) if self.max_skipped else (self.train_split, self.test_split)
            )
            for split in dict.fromkeys(checked):
                path = str(self.root / split)
                task = bar.add_task(f"Checking the files of {path}")

                def show(done: int, total: int, task: TaskID = task) -> None:
                    bar.update(task, completed=done, total=total)

                check_samples(self._dataset(split), path, show)

    def _check_validation_sizes(self, dataset: RGBDDataset) -> None:
        if self.val_batch_size == 1 and self.pad_validation is None:
            return
        sizes = {dataset.label_size(index): index for index in range(len(dataset))}
        if self.pad_validation is not None:
            for size, index in sizes.items():
                if size[0] > self.pad_validation[0] or size[1] > self.pad_validation[1]:
                    raise DataError(
                        f"{dataset.describe(index)}: {size[0]}x{size[1]} is larger than "
                        f"pad_validation {self.pad_validation}; set it to the largest size"
                    )
        elif len(sizes) > 1:
            found = "; ".join(
                f"{h}x{w} ({dataset.describe(i)})" for (h, w), i in [*sizes.items()][:2]
            )
            raise DataError(
                f"validation images have {len(sizes)} sizes and cannot share batches of "
                f"{self.val_batch_size}: {found}; set val_batch_size to 1, or pad_validation"
            )


class RoomsDataModule(RGBDDataModule):
    """Rendered indoor scenes with colour, depth and labels; nothing is downloaded.

    The scenes are rendered on first use, some 0.1 s each, and kept for later runs. Some classes
    can only be told apart by depth.

    Args:
        train: Number of training scenes.
        val: Number of scenes for validation, test and prediction.
        size: Height and width of a scene in pixels.
        seed: Which series of scenes; another seed gives other rooms.
        crop_size: Height and width of a training crop in pixels.
        batch_size: Samples per training step; incomplete batches are left out.
        val_batch_size: Samples per batch of validation, test and prediction.
        num_workers: Processes that load data; 0 loads in the main process.
        scales: Factors by which training images are resized at random; `[1.0]` switches it off.
        mirror_probability: Probability of swapping left and right in training, 0 to 1.
        cache_dir: Folder that keeps the rendered scenes; default: `$XDG_CACHE_HOME/segtasks`, or
            `~/.cache/segtasks`.
    """

    def __init__(
        self,
        *,
        train: int = 96,
        val: int = 24,
        size: tuple[int, int] = (192, 256),
        seed: int = 0,
        crop_size: tuple[int, int] = (96, 128),
        batch_size: int = 8,
        val_batch_size: int = 8,
        num_workers: int = 2,
        scales: list[float] | tuple[float, ...] = OFFICIAL_SCALES,
        mirror_probability: float = 0.5,
        cache_dir: str | None = None,
    ) -> None:
        self._render = partial(
            write_rooms, train=train, val=val, size=(size[0], size[1]), seed=seed
        )
        super().__init__(
            str(_cache_folder(cache_dir) / f"rooms-{_fingerprint(self._render.keywords)}"),
            len(CLASS_NAMES),
            class_names=list(CLASS_NAMES),
            crop_size=crop_size,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            scales=scales,
            mirror_probability=mirror_probability,
        )

    def prepare_data(self) -> None:
        """Render the scenes unless an earlier run has; interrupted, it leaves nothing behind."""
        with terminal_bar() as bar:
            task = bar.add_task("Rendering rooms", visible=False)

            def show(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, visible=True)

            self._render(self.root, progress=show)

    def setup(self, stage: str) -> None:
        """Find the scenes, after rendering them if need be."""
        self.prepare_data()
        super().setup(stage)


def _cache_folder(cache_dir: str | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "segtasks"


def _fingerprint(scenes: dict[str, Any]) -> str:
    """Name what is rendered, so that other scenes, or a changed renderer, get another folder."""
    text = json.dumps({**scenes, "format": FORMAT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
