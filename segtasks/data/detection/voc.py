"""Read annotations in Pascal VOC's format: one xml file per image, text files that list splits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from segtasks.data.detection.listing import Annotation, Category, ImageRecord, Listing
from segtasks.data.problems import Kind, Problem
from segtasks.data.samples import DataError
from segtasks.data.splits import check_root, find_pictures

Box = tuple[float, float, float, float]

_ENDINGS = (".jpg", ".jpeg", ".png")
_FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
# A line of the list of one class: a name, and whether the class is in the image.
_CLASS_LINE = re.compile(r"\S+\s+(-1|0|1)")


@dataclass(frozen=True)
class VocObject:
    """One object as a file describes it.

    Attributes:
        image: position of its image in the split.
        key: its place in the file, such as `object[2]`.
        name: its class.
        box_xywh: left, top, width and height in pixels.
        difficult: whether it is hard to recognise; evaluation ignores it.
    """

    image: int
    key: str
    name: str
    box_xywh: Box
    difficult: bool


@dataclass
class VocSplit:
    """The files of a split, before names of classes become labels.

    Attributes:
        path: the text file that lists the split.
        root: folder of the data set.
        images: those whose annotation is sound, in the order of the split.
        annotations: the xml file of each.
        objects: sound objects of all images.
        problems: what is wrong.
        missing: positions of the images without a picture.
    """

    path: Path
    root: Path
    images: list[ImageRecord] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    objects: list[VocObject] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)

    def names(self) -> set[str]:
        """Names of the classes that occur."""
        return {found.name for found in self.objects}

    def listing(self, class_names: Sequence[str]) -> Listing:
        """Turn names into labels: positions in `class_names`; category ids count from 1."""
        categories = tuple(Category(number, name) for number, name in enumerate(class_names, 1))
        listing = Listing(self.path, self.root, categories, self.images)
        listing.missing, listing.problems = self.missing, [*self.problems]
        label_of = {name: label for label, name in enumerate(class_names)}
        for found in self.objects:
            if found.name not in label_of:
                text = (
                    f"{self.annotations[found.image]}: {found.key}.name is {found.name!r}, which "
                    f"is not among class_names ({', '.join(class_names)}); add it there"
                )
                listing.problems.append(Problem("label", text))
                continue
            area = found.box_xywh[2] * found.box_xywh[3]
            label = label_of[found.name]
            annotation = Annotation(found.image, found.box_xywh, label, area, found.difficult)
            listing.annotations.append(annotation)
        return listing


def read_voc(root: Path, split: str, *, one_based: bool = True) -> VocSplit:
    """Read the annotations of a split, and look for its pictures.

    What is wrong with a file becomes a problem of the split.

    Args:
        root: folder with JPEGImages, Annotations and ImageSets/Main.
        split: name of a text file in ImageSets/Main, without its ending.
        one_based: coordinates number pixels from 1 and include the last, as VOC has it: a box of
            1 to 640 is 640 wide. False: they are corners in pixels, counted from 0.

    Raises:
        DataError: a folder or the list is missing, or the list is empty.
    """
    check_root(root)
    for folder in _FOLDERS:
        if not (root / folder).is_dir():
            there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folders"
            raise DataError(
                f"{root}: no folder {folder}; there are {there}; set root to the folder that holds "
                f"{', '.join(_FOLDERS)}, such as VOCdevkit/VOC2012"
            )
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    stems = _read_stems(path)
    pictures = find_pictures(root, "JPEGImages", stems, _ENDINGS)
    result = VocSplit(path, root)
    seen: set[str] = set()
    for number, (stem, picture) in enumerate(zip(stems, pictures, strict=True), 1):
        if stem in seen:
            text = f"{path} lists {stem!r} more than once; leave one of the lines"
            result.problems.append(Problem("duplicate", text))
            continue
        seen.add(stem)
        _File(root / "Annotations" / f"{stem}.xml", result, one_based).read(number, stem, picture)
    return result


@dataclass
class _File:
    """One xml file, whose contents go to a split."""

    path: Path
    split: VocSplit
    one_based: bool

    def read(self, number: int, stem: str, picture: str | None) -> None:
        position = len(self.split.images)
        try:
            root = parse_xml(self.path)
        except FileNotFoundError:
            text = f"there is no such file; annotate {stem!r}, or take it out of {self.split.path}"
            self._tell("missing", text)
            return
        except DataError as error:
            self.split.problems.append(Problem("unreadable", str(error)))
            return
        width, height = (self._side(root, name) for name in ("width", "height"))
        if width is None or height is None:
            return
        if picture is None:
            self.split.missing.add(position)
            text = (
                f"{self.split.path} lists {stem!r}: there is no JPEGImages/{stem} "
                f"({' or '.join(_ENDINGS)}); add it or take the line out"
            )
            self.split.problems.append(Problem("missing", text))
        record = ImageRecord(picture or f"JPEGImages/{stem}", number, width, height)
        self.split.images.append(record)
        self.split.annotations.append(self.path)
        for index, entry in enumerate(root.findall("object")):
            found = self._object(entry, position, f"object[{index}]")
            if found is not None:
                self.split.objects.append(found)

    def _side(self, root: Element, name: str) -> int | None:
        value = _text(root, f"size/{name}")
        if value is not None and value.isdecimal() and int(value) > 0:
            return int(value)
        self._tell_value(f"size.{name}", value, "the picture's, in pixels")
        return None

    def _object(self, entry: Element, image: int, key: str) -> VocObject | None:
        name = _text(entry, "name")
        if not name:
            self._tell_value(f"{key}.name", name, "the name of a class")
        box = self._box(entry, key)
        difficult = _text(entry, "difficult") or "0"
        if difficult not in ("0", "1"):
            self._tell_value(f"{key}.difficult", difficult, "0 or 1")
            return None
        if not name or box is None:
            return None
        return VocObject(image, key, name, box, difficult == "1")

    def _box(self, entry: Element, key: str) -> Box | None:
        corners = []
        for side in ("xmin", "ymin", "xmax", "ymax"):
            value = _text(entry, f"bndbox/{side}")
            number = _number(value)
            if number is None:
                self._tell_value(f"{key}.bndbox.{side}", value, "a finite number of pixels")
                return None
            corners.append(number)
        left, top, right, bottom = corners
        first = 1.0 if self.one_based else 0.0
        return left - first, top - first, right - left + first, bottom - top + first

    def _tell_value(self, key: str, value: str | None, wanted: str) -> None:
        what = "is missing" if value is None else f"is {shortened(value)}"
        self._tell("annotation", f"{key} {what}; it must be {wanted}")

    def _tell(self, kind: Kind, text: str) -> None:
        self.split.problems.append(Problem(kind, f"{self.path}: {text}"))


def parse_xml(path: Path) -> Element:
    """Read an xml file; one that declares entities is refused, as it could grow without bounds.

    Raises:
        DataError: it is no xml, or declares entities.
        FileNotFoundError: there is no such file.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(name: str, *_: Any) -> NoReturn:
        raise DataError(f"{path}: declares the entity {name!r}; annotations need none, remove it")

    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        # The other two are encodings that the parser does not know.
        raise DataError(f"{path}: is no xml ({error}); export or copy it again") from error
    return builder.close()


def _text(entry: Element, path: str) -> str | None:
    found = entry.find(path)
    return None if found is None else (found.text or "").strip()


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_stems(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))[:8]) or "none"
        raise DataError(f"{path}: the split is missing; {path.parent} has {there}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a text file ({error})") from error
    stems = [line.strip() for line in lines if line.strip()]
    if not stems:
        raise DataError(f"{path}: the split is empty; write the name of an image per line")
    if all(_CLASS_LINE.fullmatch(stem) for stem in stems):
        raise DataError(f"{path}: is the list of one class ({stems[0]!r}); use that of all classes")
    return stems
