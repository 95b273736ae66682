from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.data.detection.dataset import DetectionDataset
from segtasks.data.detection.voc import VocSplit, parse_xml, read_voc
from segtasks.data.samples import DataError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><part><bndbox>
<xmin>1</xmin></bndbox></part><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_xml(root: Path, stem: str, *objects: str, size: str = "") -> Path:
    size = size or "<size><width>60</width><height>40</height><depth>3</depth></size>"
    path = root / f"Annotations/{stem}.xml"
    path.write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    return path


def thing(name: str, *box: object, difficult: object = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a and b, 40x60, with a cat and two dogs, one of them difficult; c without objects."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a.jpg", "b.png", "c.jpg"):
        assert cv2.imwrite(str(tmp_path / "JPEGImages" / name), np.zeros((40, 60, 3), np.uint8))
    write_xml(tmp_path, "a", thing("dog", 1, 1, 60, 40), thing("cat", 11, 6, 20, 15))
    write_xml(tmp_path, "b", thing("dog", 2.5, 3, 10, 10, difficult=1))
    write_xml(tmp_path, "c")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n\nc\n")
    return tmp_path


def problems(split: VocSplit, root: Path) -> list[tuple[str, str]]:
    return [(p.kind, p.text.replace(f"{root}/", "")) for p in split.problems]


def test_boxes_count_pixels_from_1_and_include_the_last(root: Path) -> None:
    split = read_voc(root, "train")
    assert split.names() == {"cat", "dog"}
    listing = split.listing(["cat", "dog"])
    dataset = DetectionDataset(listing, crowd=False)
    assert [len(dataset[index].objects) for index in range(3)] == [2, 0, 0]
    objects = dataset[0].objects
    assert objects.boxes_xyxy.tolist() == [[0, 0, 60, 40], [10, 5, 20, 15]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.area.tolist() == [2400, 100]
    assert [i.file for i in listing.images] == [
        f"JPEGImages/{n}" for n in ("a.jpg", "b.png", "c.jpg")
    ]
    assert [i.id for i in listing.images] == [1, 2, 3]
    difficult = DetectionDataset(listing, crowd=True)[1].objects
    assert difficult.boxes_xyxy.tolist() == [[1.5, 2, 10, 10]]
    assert difficult.crowd.tolist() == [True]


def test_boxes_may_be_corners_counted_from_0(root: Path) -> None:
    listing = read_voc(root, "train", one_based=False).listing(["cat", "dog"])
    boxes = DetectionDataset(listing, crowd=False)[0].objects.boxes_xyxy
    assert boxes.tolist() == [[1, 1, 60, 40], [11, 6, 20, 15]]


def test_ground_truth_counts_categories_from_1_and_marks_difficult_ones(root: Path) -> None:
    truth = read_voc(root, "train").listing(["cat", "dog"]).ground_truth()
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(a["image_id"], a["category_id"], a["iscrowd"]) for a in truth["annotations"]] == [
        (1, 2, 0),
        (1, 1, 0),
        (2, 2, 1),
    ]


def test_a_class_that_is_not_among_the_names_is_told(root: Path) -> None:
    (problem,) = read_voc(root, "train").listing(["dog"]).problems
    assert problem.kind == "label"
    assert problem.text == (
        f"{root}/Annotations/a.xml: object[1].name is 'cat', which is not among class_names (dog); "
        "add it there"
    )


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ([thing("dog", 1, "x", 3, 4)], "object[0].bndbox.ymin is 'x'; it must be a finite number"),
        ([thing("dog", 1, 2, "nan", 4)], "object[0].bndbox.xmax is 'nan'; it must be a finite"),
        ([thing("dog", 1, 2, 3, "inf")], "object[0].bndbox.ymax is 'inf'"),
        ([thing("dog", 1, 2, 3, "")], "object[0].bndbox.ymax is ''"),
        (["<object><name>dog</name></object>"], "object[0].bndbox.xmin is missing"),
        ([thing("", 1, 2, 3, 4)], "object[0].name is ''; it must be the name of a class"),
        ([thing("dog", 1, 1, 2, 2), "<object/>"], "object[1].name is missing"),
        ([thing("dog", 1, 2, 3, 4, difficult="no")], "object[0].difficult is 'no'"),
    ],
)
def test_a_wrong_object_is_named_with_file_and_index(
    root: Path, objects: list[str], text: str
) -> None:
    write_xml(root, "b", *objects)
    kind, found = problems(read_voc(root, "train"), root)[0]
    assert kind == "annotation"
    assert found.startswith(f"Annotations/b.xml: {text}")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ("<size><height>40</height></size>", "size.width is missing; it must be the picture's"),
        ("<size><width>60</width><height>0</height></size>", "size.height is '0'"),
        ("<size><width>6.5</width><height>4</height></size>", "size.width is '6.5'"),
    ],
)
def test_a_wrong_size_is_named(root: Path, size: str, text: str) -> None:
    write_xml(root, "a", size=size)
    ((kind, found),) = problems(read_voc(root, "train"), root)
    assert kind == "annotation"
    assert found.startswith(f"Annotations/a.xml: {text}")


def test_a_declared_entity_is_refused_before_it_grows(root: Path) -> None:
    path = root / "Annotations/a.xml"
    levels = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 50}">' for n in range(1, 20))
    text = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{levels}]><x>&a19;</x>'
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match="declares the entity 'a0'; annotations need none"):
            parse_xml(path)
    assert problems(read_voc(root, "train"), root)[0][0] == "unreadable"


@pytest.mark.parametrize(
    "data",
    [b"", b"<annotation>", b"<a></b>", b"\x80\x81", b'<?xml version="1.0" encoding="gbk"?><a/>'],
)
def test_a_file_that_is_no_xml_is_named(root: Path, data: bytes) -> None:
    (root / "Annotations/b.xml").write_bytes(data)
    ((kind, text),) = problems(read_voc(root, "train"), root)
    assert kind == "unreadable"
    assert text.startswith("Annotations/b.xml: is no xml (")
    assert text.endswith("export or copy it again")


def test_missing_files_are_told_and_the_rest_is_read(root: Path) -> None:
    (root / "Annotations/a.xml").unlink()
    (root / "JPEGImages/b.png").unlink()
    split = read_voc(root, "train")
    assert problems(split, root) == [
        (
            "missing",
            "Annotations/a.xml: there is no such file; annotate 'a', or take it out of "
            "ImageSets/Main/train.txt",
        ),
        (
            "missing",
            "ImageSets/Main/train.txt lists 'b': there is no JPEGImages/b (.jpg or .jpeg or .png); "
            "add it or take the line out",
        ),
    ]
    assert split.missing == {0}
    assert [image.id for image in split.images] == [2, 3]
    with pytest.raises(DataError, match=r"train\.txt: 2 problems \(missing: 2\)"):
        DetectionDataset(split.listing(["cat", "dog"]), crowd=False)


def test_an_image_listed_twice_is_told_and_read_once(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("a\nb\na\n")
    split = read_voc(root, "train")
    assert problems(split, root)[0][0] == "duplicate"
    assert len(split.images) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "the split is empty"),
        ("a  1\nb -1\n", r"is the list of one class \('a  1'\); use that of all classes"),
        (None, r"train\.txt: the split is missing; .*Main has val"),
    ],
)
def test_an_impossible_list_is_one_clear_error(
    root: Path, content: str | None, message: str
) -> None:
    path = root / "ImageSets/Main/train.txt"
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_voc(root, "train")


def test_a_list_that_is_no_text_is_one_clear_error(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match="cannot be read as a text file"):
        read_voc(root, "train")


def test_a_missing_folder_is_named_with_what_is_there(root: Path) -> None:
    (root / "Annotations").rename(root / "Annotation")
    with pytest.raises(DataError, match="no folder Annotations; there are Annotation, ImageSets"):
        read_voc(root, "train")


@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 130, 1789), ("val", 50, 673)])
def test_real_voc_files_say_what_their_coco_conversion_says(
    test_data: Path, split: str, images: int, boxes: int
) -> None:
    root = test_data / "bccd_voc"
    listing = read_voc(root, split).listing(["RBC", "WBC", "Platelets"])
    assert listing.problems == []
    assert len(listing.images) == images
    converted = json.loads((root / f"annotations/instances_{split}.json").read_text())
    found = listing.ground_truth()["annotations"]
    assert len(found) == boxes
    keys = ("image_id", "category_id", "bbox", "area")
    assert [[a[k] for k in keys] for a in found] == [
        [a[k] for k in keys] for a in converted["annotations"]
    ]
