"""Read annotations in COCO's format: one json file per split."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from segtasks.data.detection.listing import Annotation, Category, ImageRecord, Listing
from segtasks.data.problems import Kind, Problem
from segtasks.data.samples import DataError
from segtasks.data.splits import check_root, missing_file, missing_folder

Box = tuple[float, float, float, float]
_LISTS = ("images", "annotations", "categories")


def read_coco(root: Path, file: str, folder: str) -> Listing:
    """Read the annotations of a split, and look for the files of its images.

    Labels are the ranks of the category ids, so ids may have gaps. What is wrong with an entry
    becomes a problem of the listing.

    Args:
        root: folder of the data set.
        file: the json file, relative to `root` or absolute.
        folder: folder of the images, relative to `root` or absolute; `.` for `root` itself.

    Raises:
        DataError: there is no such file or folder, it is no COCO json, or has no images.
    """
    check_root(root)
    path = root / file
    content = _load(path)
    if not (root / folder).is_dir():
        remedy = "set train_images and val_images to the folders of the images"
        raise DataError(missing_folder(root, folder, remedy))
    reader = _Reader(path, root, content)
    reader.read_images(content["images"], folder)
    reader.read_annotations(content["annotations"])
    return reader.listing


class _Reader:
    def __init__(self, path: Path, root: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.listing = Listing(path, root, _categories(path, content["categories"]))
        self._label_of = {c.id: label for label, c in enumerate(self.listing.categories)}
        # Position of each image by its number; None where its entry is not sound.
        self._position_of: dict[int, int | None] = {}

    def read_images(self, entries: list[Any], folder: str) -> None:
        """Check the list of images, and that each has a file."""
        folders: dict[str, set[str]] = {}
        files: set[str] = set()
        for index, entry in enumerate(entries):
            key = f"images[{index}]"
            number = self._integer(entry, key, "id")
            if number is None:
                continue
            if number in self._position_of:
                text = f"{key}.id is {number}, which another image has; give each its own"
                self._tell("duplicate", text)
                continue
            self._position_of[number] = None
            record = self._image(entry, key, number, folder)
            if record is None:
                continue
            position = len(self.listing.images)
            self._position_of[number] = position
            self.listing.images.append(record)
            if record.file in files:
                text = f"{key}.file_name is {record.file!r}, which another image has; merge the two"
                self._tell("duplicate", text)
            files.add(record.file)
            if not _exists(self.listing.root, record.file, folders):
                self.listing.missing.add(position)
                text = f"{key}: there is no file {record.file}; add it or take the image out"
                self._tell("missing", text)

    def _image(self, entry: Any, key: str, number: int, folder: str) -> ImageRecord | None:
        width, height = (self._integer(entry, key, name, least=1) for name in ("width", "height"))
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            self._tell_value(entry, key, "file_name", "a path relative to the folder of images")
            return None
        if width is None or height is None:
            return None
        file = os.path.normpath(f"{folder}/{name}")
        return ImageRecord(file, number, width, height)

    def read_annotations(self, entries: list[Any]) -> None:
        """Check the annotations."""
        for index, entry in enumerate(entries):
            annotation = self._annotation(entry, f"annotations[{index}]")
            if annotation is not None:
                self.listing.annotations.append(annotation)

    def _annotation(self, entry: Any, key: str) -> Annotation | None:
        if not isinstance(entry, dict):
            self._tell("annotation", f"{key} is {shortened(entry)}; it must be an object with keys")
            return None
        # All of them first: a user would rather mend an entry once.
        image, label = self._image_position(entry, key), self._label(entry, key)
        box, crowd = self._box(entry, key), self._crowd(entry, key)
        area = self._area(entry, key, box)
        if image is None or label is None or box is None or area is None or crowd is None:
            return None
        return Annotation(image, box, label, area, crowd)

    def _image_position(self, entry: dict[str, Any], key: str) -> int | None:
        number = self._integer(entry, key, "image_id")
        if number is None:
            return None
        if number not in self._position_of:
            text = "no image has this id; add the image or take the annotation out"
            self._tell("annotation", f"{key}.image_id is {number}, but {text}")
            return None
        return self._position_of[number]

    def _label(self, entry: dict[str, Any], key: str) -> int | None:
        number = self._integer(entry, key, "category_id")
        if number is None or number in self._label_of:
            return None if number is None else self._label_of[number]
        ids = shortened([*self._label_of])
        text = f"{key}.category_id is {number}, which is not among the ids of categories, {ids}"
        self._tell("label", f"{text}; add the category or correct the id")
        return None

    def _box(self, entry: dict[str, Any], key: str) -> Box | None:
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            numbers = [_finite(value) for value in box]
            left, top, width, height = numbers
            if left is not None and top is not None and width is not None and height is not None:
                return left, top, width, height
        self._tell_value(entry, key, "bbox", "four finite numbers: left, top, width, height")
        return None

    def _area(self, entry: dict[str, Any], key: str, box: Box | None) -> float | None:
        if entry.get("area") is None:  # exporters leave it out where it is that of the box
            return None if box is None else box[2] * box[3]
        area = _finite(entry["area"])
        if area is None or area < 0:
            self._tell_value(entry, key, "area", "a finite number, 0 or more")
            return None
        return area

    def _crowd(self, entry: dict[str, Any], key: str) -> bool | None:
        if entry.get("iscrowd", 0) in (0, 1):
            return bool(entry.get("iscrowd", 0))
        self._tell_value(entry, key, "iscrowd", "0 or 1")
        return None

    def _integer(self, entry: Any, key: str, name: str, least: int | None = None) -> int | None:
        if not isinstance(entry, dict):
            self._tell("annotation", f"{key} is {shortened(entry)}; it must be an object with keys")
            return None
        value = entry.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, int) and whole and (least is None or value >= least):
            return value
        self._tell_value(entry, key, name, "an integer" if least is None else "an integer above 0")
        return None

    def _tell_value(self, entry: dict[str, Any], key: str, name: str, wanted: str) -> None:
        what = f"is {shortened(entry[name])}" if name in entry else "is missing"
        self._tell("annotation", f"{key}.{name} {what}; it must be {wanted}")

    def _tell(self, kind: Kind, text: str) -> None:
        self.listing.problems.append(Problem(kind, f"{self.path}: {text}"))


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = json.load(stream)
    except FileNotFoundError as error:
        raise DataError(missing_file(path, "annotation", ".json")) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:  # also where the bytes are no text
        raise DataError(
            f"{path}: the file is no json ({error}); export or copy it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds a {type(content).__name__}, not a COCO dictionary with "
            f"{', '.join(_LISTS)}; detections cannot serve as annotations"
        )
    for name in _LISTS:
        if not isinstance(content.get(name), list):
            there = ", ".join(content) or "nothing"
            raise DataError(
                f"{path}: no list {name!r} (there are {there}); give a COCO file with "
                f"{', '.join(_LISTS)}, such as instances_train2017.json"
            )
    for name in ("images", "categories"):
        if not content[name]:
            raise DataError(f"{path}: {name!r} is empty; give a split with images and categories")
    return content


def _categories(path: Path, entries: list[Any]) -> tuple[Category, ...]:
    found: dict[int, Category] = {}
    for index, entry in enumerate(entries):
        values = entry if isinstance(entry, dict) else {}
        number, name = values.get("id"), values.get("name")
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(name, str):
            raise DataError(
                f"{path}: categories[{index}] is {shortened(entry)}; it needs an integer id and a "
                "name"
            )
        if number in found:
            raise DataError(
                f"{path}: categories[{index}] has id {number}, as has {found[number].name!r}; give "
                "each category its own"
            )
        found[number] = Category(number, name)
    return tuple(found[number] for number in sorted(found))


def _exists(root: Path, file: str, listings: dict[str, set[str]]) -> bool:
    """One listing of a folder is far faster than a look-up per file on network disks."""
    folder, name = os.path.split(file)
    if folder not in listings:
        there = root / folder
        listings[folder] = set(os.listdir(there)) if there.is_dir() else set()  # noqa: PTH208
    return name in listings[folder]
