"""What the data modules for object detection have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jtlightning.data.loader import Loader
from segtasks.data.base import SplitDataModule, SplitName, terminal_bar
from segtasks.data.checks import find_faults
from segtasks.data.detection.dataset import DetectionDataset
from segtasks.data.detection.listing import Category, Listing
from segtasks.data.detection.samples import collate
from segtasks.data.detection.stages import StagedLoader
from segtasks.data.detection.survey import DetectionSurvey, survey_listing
from segtasks.data.problems import Problem, refuse
from segtasks.data.samples import DataError
from segtasks.data.transforms.detection import DetectionAugmentation, validation_transform


class DetectionDataModule(SplitDataModule):
    """What the detection data modules have in common; `_read` is theirs.

    Training images are varied as in RT-DETR's official recipe; validation, test and prediction
    read the validation split. All images are resized to `size` and stay 8-bit.

    Args:
        root: Folder of the data set.
        size: Height and width that every image is resized to.
        batch_size: Images per training step; incomplete batches are left out.
        val_batch_size: Images per batch of validation, test and prediction.
        num_workers: Processes that load data; 0 loads in the main process.
        augmentation: How training images are varied; default: as in the official recipe.
        stop_augmentation_epoch: First epoch, counted from 0, whose images are only mirrored and
            resized, as in version 2 of the recipe (71 of 72 for R50); default: none.
        check_files: Verify all images of both splits before training; reads every one of them.
        max_skipped: Training images that may fail and be replaced by others before that is an
            error, a number or a fraction; the training images are not checked then. 0: none.

    Raises:
        DataError: A number is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: tuple[int, int] = (640, 640),
        batch_size: int = 4,
        val_batch_size: int = 8,
        num_workers: int = 4,
        augmentation: DetectionAugmentation | None = None,
        stop_augmentation_epoch: int | None = None,
        check_files: bool = True,
        max_skipped: int | float = 0,
    ) -> None:
        super().__init__(
            root,
            collate,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            check_files=check_files,
            max_skipped=max_skipped,
        )
        if stop_augmentation_epoch is not None and stop_augmentation_epoch < 0:
            raise DataError(
                f"stop_augmentation_epoch must be 0 or more, or null for none, got "
                f"{stop_augmentation_epoch}"
            )
        self.size = (size[0], size[1])
        self.augmentation = augmentation or DetectionAugmentation()
        self.stop_augmentation_epoch = stop_augmentation_epoch
        self._transforms = tuple(
            self.augmentation.transform(self.size, strong=strong) for strong in (True, False)
        )
        self._val_transform = validation_transform(self.size)
        self._val_listing: Listing | None = None
        self._datasets: dict[SplitName, DetectionDataset] = {}

    def _read(self, split: SplitName) -> Listing:
        """Read the annotations of a split; `test` is the one for validation."""
        raise NotImplementedError

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, in the order of the labels; reads annotations when asked first."""
        return self._validation().categories

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own numbers of the classes, in the order of the labels."""
        return tuple(category.id for category in self.categories)

    @property
    def input_shapes(self) -> tuple[tuple[int, int, int, int]]:
        """Shape of the images of a training batch, (B, 3, H, W)."""
        return ((self.batch_size, 3, *self.size),)

    def val_annotations(self) -> dict[str, Any]:
        """Annotations of the validation split as a COCO instances dictionary, for evaluation.

        Image and category ids are those of the data set, boxes are as annotated, in pixels of the
        images as they are on disk, and crowds are included.
        """
        listing = self._validation()
        refuse(listing.problems, str(listing.path))
        return listing.ground_truth()

    def check_batches(self, split: SplitName) -> None:
        """Read the annotations of a split and see whether it can be trained with.

        Raises:
            DataError: An annotation is wrong or an image is missing; the training split has other
                classes, no object, or fewer images than a batch needs.
        """
        dataset = self._dataset(split)
        if split == "test":
            return
        if len(dataset) < self.batch_size:
            raise DataError(
                f"{self.root}: the training split has {len(dataset)} images, fewer than one batch "
                f"of {self.batch_size}; set batch_size to {len(dataset)} or less"
            )
        if not len(dataset.objects):
            raise DataError(
                f"{self.root}: no image of the training split has an object to train with; give "
                "the annotations of the split"
            )

    def survey(
        self, split: SplitName, progress: Callable[[int, int], None] | None = None
    ) -> DetectionSurvey:
        """Look at every image of a split and count its objects, whatever is wrong with some.

        Args:
            split: Which; `test` is the one for validation.
            progress: Called with the number of images looked at, and of all.

        Raises:
            DataError: The annotation file, or a folder that it needs, is missing, or the splits
                have different classes, so that nothing could be compared.
        """
        listing = self._validation()
        if split == "train":
            listing = self._read(split)
            _compare_classes(listing, self._validation())
        return survey_listing(listing, progress)

    def train_dataloader(self) -> Loader | StagedLoader:
        """Shuffled, varied training batches."""
        dataset = self._dataset("train")
        strong, weak = self._transforms
        before = self._loader(dataset, strong, training=True)
        if self.stop_augmentation_epoch is None:
            return before
        after = self._loader(dataset, weak, training=True)
        return StagedLoader(before, after, self.stop_augmentation_epoch)

    def val_dataloader(self) -> Loader:
        """Batches of the validation split, in its order."""
        return self._loader(self._dataset("test"), self._val_transform, training=False)

    def _validation(self) -> Listing:
        if self._val_listing is None:
            self._val_listing = self._read("test")
        return self._val_listing

    def _dataset(self, split: SplitName) -> DetectionDataset:
        if split not in self._datasets:
            training = split == "train"
            listing = self._read(split) if training else self._validation()
            if training:
                _compare_classes(listing, self._validation())
            self._datasets[split] = DetectionDataset(listing, crowd=not training)
        return self._datasets[split]

    def _check_files(self) -> None:
        splits: tuple[SplitName, ...] = ("test",) if self.max_skipped else ("train", "test")
        with terminal_bar() as bar:
            for split in splits:
                dataset = self._dataset(split)
                faults = find_faults(dataset)
                steps = bar.track(faults, len(dataset), description=f"Checking {self.root}")
                texts = [fault for fault in steps if fault is not None]
                refuse([Problem("unreadable", text) for text in texts], str(self.root))


def _compare_classes(train: Listing, val: Listing) -> None:
    if train.categories != val.categories:
        other = sorted({*train.categories} ^ {*val.categories})
        shown = ", ".join(f"{name!r} (id {number})" for number, name in other[:5])
        raise DataError(
            f"{train.path} and {val.path} have different categories, so that a label would mean "
            f"two things: {shown} stand{'s' if len(other) == 1 else ''} in one of them only; make "
            "the lists the same"
        )
