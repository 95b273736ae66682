"""Data modules for object detection: COCO, Pascal VOC, and rooms that are rendered."""

from __future__ import annotations

from segtasks.data.base import SplitName
from segtasks.data.detection.base import DetectionDataModule
from segtasks.data.detection.coco import read_coco
from segtasks.data.detection.listing import Category, Listing
from segtasks.data.detection.voc import VocSplit, read_voc
from segtasks.data.modules import RoomsDataModule
from segtasks.data.rooms import CLASS_NAMES
from segtasks.data.rooms.layout import PICTURE
from segtasks.data.samples import DataError
from segtasks.data.transforms.detection import DetectionAugmentation


class CocoDataModule(DetectionDataModule):
    """Images with boxes in COCO's layout: a folder of images and a json file per split.

    Labels are the ranks of the category ids, 0 to 79 for COCO's 80 ids from 1 to 90. Crowds are
    left out in training and kept for evaluation.

    Args:
        root: Folder of the data set.
        train_images: Folder in `root` with the training images; `.` for `root` itself.
        train_annotations: Json file in `root` with their objects.
        val_images: Folder with the images for validation, test and prediction.
        val_annotations: Json file with their objects.
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
    """

    def __init__(
        self,
        root: str,
        *,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
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
            size=size,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            augmentation=augmentation,
            stop_augmentation_epoch=stop_augmentation_epoch,
            check_files=check_files,
            max_skipped=max_skipped,
        )
        self._files = {
            "train": (train_annotations, train_images),
            "test": (val_annotations, val_images),
        }

    def _read(self, split: SplitName) -> Listing:
        return read_coco(self.root, *self._files[split])


class VocDataModule(DetectionDataModule):
    """Images with boxes in Pascal VOC's layout: JPEGImages, Annotations, ImageSets/Main.

    Difficult objects are left out in training and, for evaluation, are marked as crowds, which it
    ignores. Image ids are the positions in the split, category ids the labels, both from 1.

    Args:
        root: Folder of the data set, such as VOCdevkit/VOC2012.
        train_split: Name of a text file in ImageSets/Main, without `.txt`, with a line per image.
        val_split: The same for validation, test and prediction.
        class_names: Names of the classes, in the order of the labels; default: those that occur
            in the two splits, in alphabetical order.
        one_based: Coordinates number pixels from 1 and include the last, as VOC has it. False
            where they are corners in pixels, counted from 0.
        size: Height and width that every image is resized to.
        batch_size: Images per training step; incomplete batches are left out.
        val_batch_size: Images per batch of validation, test and prediction.
        num_workers: Processes that load data; 0 loads in the main process.
        augmentation: How training images are varied; default: as in the official recipe.
        stop_augmentation_epoch: First epoch, counted from 0, whose images are only mirrored and
            resized; default: none.
        check_files: Verify all images of both splits before training; reads every one of them.
        max_skipped: Training images that may fail and be replaced by others before that is an
            error, a number or a fraction; the training images are not checked then. 0: none.
    """

    def __init__(
        self,
        root: str,
        *,
        train_split: str = "train",
        val_split: str = "val",
        class_names: list[str] | None = None,
        one_based: bool = True,
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
            size=size,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            augmentation=augmentation,
            stop_augmentation_epoch=stop_augmentation_epoch,
            check_files=check_files,
            max_skipped=max_skipped,
        )
        if class_names is not None and (not class_names or len({*class_names}) < len(class_names)):
            raise DataError(f"class_names must be different names, at least one; got {class_names}")
        self._given_names = class_names
        self._one_based = one_based
        self._names: dict[SplitName, str] = {"train": train_split, "test": val_split}
        self._splits: dict[SplitName, VocSplit] = {}

    def _read(self, split: SplitName) -> Listing:
        names = self._given_names
        if names is None:
            names = sorted(set().union(*(self._split(s).names() for s in self._names)))
        return self._split(split).listing(names)

    def _split(self, split: SplitName) -> VocSplit:
        if split not in self._splits:
            self._splits[split] = read_voc(self.root, self._names[split], one_based=self._one_based)
        return self._splits[split]


class RoomsDetectionDataModule(CocoDataModule):
    """Rendered indoor scenes with boxes of the visible objects; nothing is downloaded.

    The scenes are those of `RoomsDataModule`, rendered on first use, some 0.1 s each, and kept for
    later runs. Classes: picture, rug, cabinet, column, ball.

    Args:
        train: Number of training scenes.
        val: Number of scenes for validation, test and prediction.
        scene_size: Height and width of a scene in pixels.
        seed: Which series of scenes; another seed gives other rooms.
        size: Height and width that every image is resized to.
        batch_size: Images per training step; incomplete batches are left out.
        val_batch_size: Images per batch of validation, test and prediction.
        num_workers: Processes that load data; 0 loads in the main process.
        augmentation: How training images are varied; default: as in RT-DETR's official recipe.
        stop_augmentation_epoch: First epoch, counted from 0, whose images are only mirrored and
            resized; default: none.
        cache_dir: Folder that keeps the rendered scenes; default: `$XDG_CACHE_HOME/segtasks`, or
            `~/.cache/segtasks`.
    """

    def __init__(
        self,
        *,
        train: int = 96,
        val: int = 24,
        scene_size: tuple[int, int] = (192, 256),
        seed: int = 0,
        size: tuple[int, int] = (256, 256),
        batch_size: int = 4,
        val_batch_size: int = 8,
        num_workers: int = 2,
        augmentation: DetectionAugmentation | None = None,
        stop_augmentation_epoch: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self._rooms = RoomsDataModule(
            train=train, val=val, size=scene_size, seed=seed, cache_dir=cache_dir
        )
        super().__init__(
            str(self._rooms.root),
            train_images=".",
            train_annotations="annotations/instances_train.json",
            val_images=".",
            val_annotations="annotations/instances_val.json",
            size=size,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            augmentation=augmentation,
            stop_augmentation_epoch=stop_augmentation_epoch,
        )

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, known before anything is rendered."""
        names = CLASS_NAMES[PICTURE - 1 :]
        return tuple(Category(number, name) for number, name in enumerate(names, PICTURE))

    def prepare_data(self) -> None:
        """Render the scenes unless an earlier run has; interrupted, it leaves nothing behind."""
        self._rooms.prepare_data()

    def setup(self, stage: str) -> None:
        """Find the scenes, after rendering them if need be."""
        self.prepare_data()
        super().setup(stage)
