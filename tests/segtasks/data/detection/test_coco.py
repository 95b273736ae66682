from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segtasks.data.detection.coco import read_coco
from segtasks.data.detection.dataset import DetectionDataset
from segtasks.data.detection.listing import Listing, pack
from segtasks.data.samples import DataError


def write_image(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Blue in the file, so that the order of channels shows.
    assert cv2.imwrite(str(path), np.full((height, width, 3), (255, 0, 0), np.uint8))


def contents() -> dict[str, Any]:
    """Three images, 40x60, the last without objects; category ids 3, 7 and 90."""
    return {
        "images": [
            {"id": 10 * n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (1, 2, 3)
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 7, "name": "train"},
        ],
        "annotations": [
            annotation(1, 20, 90, [1, 2, 10, 20]),
            annotation(2, 10, 3, [5.5, 6, 7, 8], area=33.5),
            annotation(3, 10, 7, [0, 0, 60, 40], iscrowd=1),
            annotation(4, 20, 7, [50, 30, 10, 10]),
        ],
    }


def annotation(number: int, image: int, category: int, box: list[Any], **more: Any) -> Any:
    base = {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
    return {**base, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        write_image(tmp_path / f"train/{number}.png", 40, 60)
    return tmp_path


def read(root: Path, content: Any, folder: str = "train") -> Listing:
    (root / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(root, "a.json", folder)


def problems(root: Path, content: Any) -> list[tuple[str, str]]:
    return [(p.kind, p.text.removeprefix(f"{root}/a.json: ")) for p in read(root, content).problems]


def test_labels_are_ranks_of_the_category_ids_and_boxes_become_corners(root: Path) -> None:
    listing = read(root, contents())
    assert [tuple(c) for c in listing.categories] == [(3, "car"), (7, "train"), (90, "toothbrush")]
    dataset = DetectionDataset(listing, crowd=False)
    assert len(dataset) == 3
    first, second, third = (dataset[index] for index in range(3))
    assert first.objects.boxes_xyxy.tolist() == [[5.5, 6, 12.5, 14]]
    assert first.objects.labels.tolist() == [0]
    assert first.objects.area.tolist() == [33.5]
    assert second.objects.boxes_xyxy.tolist() == [[1, 2, 11, 22], [50, 30, 60, 40]]
    assert second.objects.labels.tolist() == [2, 1]
    assert second.objects.area.tolist() == [200, 100]
    assert len(third.objects) == 0
    assert third.objects.boxes_xyxy.shape == (0, 4)
    assert (first.image_id, second.image_id, third.image_id) == (10, 20, 30)
    assert first.original_size == (60, 40)
    assert first.name == "train/1.png"
    assert first.image[0, 0].tolist() == [0, 0, 255]


def test_objects_of_an_image_stay_in_the_order_of_the_file(root: Path) -> None:
    content = contents()
    content["annotations"] = [
        annotation(n, (30, 10, 20)[n % 3], 3, [n / 10, 0, 5, 5]) for n in range(300)
    ]
    dataset = DetectionDataset(read(root, content), crowd=False)
    for index, first in enumerate((1, 2, 0)):
        left = dataset[index].objects.boxes_xyxy[:, 0]
        assert left.tolist() == np.array([n / 10 for n in range(first, 300, 3)], "f4").tolist()


def test_crowds_are_kept_where_asked_for_and_flagged(root: Path) -> None:
    objects = DetectionDataset(read(root, contents()), crowd=True)[0].objects
    assert objects.crowd.tolist() == [False, True]
    assert objects.labels.tolist() == [0, 1]


def test_ground_truth_has_original_ids_all_objects_and_numbers_from_1(root: Path) -> None:
    content = contents()
    content["annotations"][0] |= {"id": 0, "bbox": [-3, 2, 10, 0]}
    content["annotations"][1]["id"] = 3
    truth = read(root, content).ground_truth()
    assert truth["annotations"] == [
        {
            "id": number,
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": entry["bbox"],
            "area": entry.get("area", entry["bbox"][2] * entry["bbox"][3]),
            "iscrowd": entry["iscrowd"],
        }
        for number, entry in enumerate(content["annotations"], 1)
    ]
    assert [image["id"] for image in truth["images"]] == [10, 20, 30]
    assert truth["categories"][2] == {"id": 90, "name": "toothbrush"}


def test_boxes_are_clipped_or_dropped_and_one_line_tells_it(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = contents()
    boxes = [
        [-5, -5, 10, 10],  # clipped
        [55, 35, 10, 10],  # clipped
        [50, 30, 10.4, 10.4],  # clipped by too little to be worth a word
        [5, 5, 0, 5],  # no width
        [5, 5, 5, -2],  # negative
        [70, 5, 10, 10],  # outside
        [10, 10, 5, 5],
    ]
    content["annotations"] = [annotation(n, 20, 3, box) for n, box in enumerate(boxes)] * 3
    with caplog.at_level(logging.WARNING):
        dataset = DetectionDataset(read(root, content), crowd=False)
    assert (
        dataset[1].objects.boxes_xyxy.tolist()
        == [
            [0, 0, 5, 5],
            [55, 35, 60, 40],
            [50, 30, 60, 40],
            [10, 10, 15, 15],
        ]
        * 3
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{root}/a.json: 6 of 21 boxes clipped to their image, 9 of 21 boxes without an area "
        "dropped; are boxes in the format that is expected?"
    )


def test_sound_boxes_are_not_mentioned(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        DetectionDataset(read(root, contents()), crowd=False)
    assert not caplog.records


def test_few_repairs_raise_no_doubt_about_the_format(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = contents()
    content["annotations"] += [annotation(9, 10, 3, [5, 5, 9, 9])] * 9
    content["annotations"].append(annotation(9, 10, 3, [58, 5, 9, 9]))
    DetectionDataset(read(root, content), crowd=False)
    assert caplog.messages == [f"{root}/a.json: 1 of 13 boxes clipped to their image"]


def test_a_split_without_any_object_can_be_packed(root: Path) -> None:
    packed = pack(read(root, {**contents(), "annotations": []}), crowd=True)
    assert [len(packed.of_image(position)) for position in range(3)] == [0, 0, 0]


BOX = "bbox is {}; it must be four finite numbers: left, top, width, height"


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"bbox": [1, 2, 3]}, "annotation", BOX.format("[1, 2, 3]")),
        ({"bbox": [1, 2, float("nan"), 4]}, "annotation", BOX.format("[1, 2, nan, 4]")),
        ({"bbox": [1, float("inf"), 3, 4]}, "annotation", BOX.format("[1, inf, 3, 4]")),
        ({"bbox": [1, "2", 3, 4]}, "annotation", BOX.format("[1, '2', 3, 4]")),
        ({"bbox": [1, True, 3, 4]}, "annotation", BOX.format("[1, True, 3, 4]")),
        ({"bbox": "1 2 3 4"}, "annotation", BOX.format("'1 2 3 4'")),
        ({"bbox": None}, "annotation", BOX.format("None")),
        ({"image_id": "20"}, "annotation", "image_id is '20'; it must be an integer"),
        ({"image_id": 99}, "annotation", "image_id is 99, but no image has this id"),
        ({"category_id": 1.5}, "annotation", "category_id is 1.5; it must be an integer"),
        ({"category_id": 4}, "label", "category_id is 4, which is not among the ids of categories"),
        ({"area": -1}, "annotation", "area is -1; it must be a finite number, 0 or more"),
        ({"area": "big"}, "annotation", "area is 'big'"),
        ({"iscrowd": 2}, "annotation", "iscrowd is 2; it must be 0 or 1"),
    ],
)
def test_a_wrong_annotation_is_named_with_its_index_and_the_remedy(
    root: Path, changes: dict[str, Any], kind: str, text: str
) -> None:
    content = contents()
    content["annotations"][2] |= changes
    ((found_kind, found_text),) = problems(root, content)
    assert found_kind == kind
    assert found_text.startswith(f"annotations[2].{text}")


@pytest.mark.parametrize("key", ["bbox", "image_id", "category_id"])
def test_a_missing_key_of_an_annotation_is_named(root: Path, key: str) -> None:
    content = contents()
    del content["annotations"][1][key]
    ((kind, text),) = problems(root, content)
    assert kind == "annotation"
    assert text.startswith(f"annotations[1].{key} is missing; it must be")


def test_an_entry_that_is_no_dictionary_is_named(root: Path) -> None:
    content = contents()
    content["annotations"][1] = 5
    content["images"].append("x.png")
    texts = [text for _, text in problems(root, content)]
    assert texts == [
        "images[3] is 'x.png'; it must be an object with keys",
        "annotations[1] is 5; it must be an object with keys",
    ]


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"id": None}, "annotation", "images[2].id is None; it must be an integer"),
        ({"id": 10}, "duplicate", "images[2].id is 10, which another image has"),
        ({"file_name": ""}, "annotation", "images[2].file_name is ''; it must be a path"),
        (
            {"file_name": "1.png"},
            "duplicate",
            "images[2].file_name is 'train/1.png', which another image has",
        ),
        ({"width": 0}, "annotation", "images[2].width is 0; it must be an integer above 0"),
        ({"height": "40"}, "annotation", "images[2].height is '40'; it must be an integer"),
        ({"file_name": "9.png"}, "missing", "images[2]: there is no file train/9.png"),
        ({"file_name": "sub/9.png"}, "missing", "images[2]: there is no file train/sub/9.png"),
    ],
)
def test_a_wrong_image_is_named_with_its_index(
    root: Path, changes: dict[str, Any], kind: str, text: str
) -> None:
    content = contents()
    content["images"][2] |= changes
    ((found_kind, found_text),) = problems(root, content)
    assert found_kind == kind
    assert found_text.startswith(text)


def test_objects_of_a_wrong_image_are_not_blamed(root: Path) -> None:
    content = contents()
    content["images"][0]["width"] = -1
    assert len(problems(root, content)) == 1


def test_all_that_is_wrong_is_one_error_that_counts_and_names_the_first(root: Path) -> None:
    content = contents()
    content["annotations"] += [annotation(9, 10, 5, [1, 1, 5, 5]) for _ in range(6)]
    (root / "train/2.png").unlink()
    (root / "train/3.png").unlink()
    with pytest.raises(DataError) as caught:
        DetectionDataset(read(root, content), crowd=False)
    first, *told, last = str(caught.value).splitlines()
    assert first == f"{root}/a.json: 8 problems (missing: 2, label: 6)"
    assert "there is no file train/2.png; add it or take the image out" in told[0]
    assert len(told) == 5
    assert last == "  and 3 more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a\.json: the file is no json"),
        ("\x80", r"a\.json: the file is no json"),
        ([], r"a\.json: holds a list, not a COCO dictionary"),
        ({"images": []}, r"no list 'annotations' \(there are images\)"),
        ({"images": {}, "annotations": [], "categories": []}, "no list 'images'"),
        ({"images": [], "annotations": [], "categories": [1]}, "'images' is empty"),
        ({**contents(), "categories": []}, "'categories' is empty"),
        ({**contents(), "categories": [{"id": "1", "name": "a"}]}, r"categories\[0\] is .* needs"),
        ({**contents(), "categories": [{"id": 1}]}, r"categories\[0\] is \{'id': 1\}; it needs"),
        (
            {**contents(), "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            r"categories\[1\] has id 1, as has 'a'",
        ),
    ],
)
def test_a_file_that_is_no_coco_json_is_one_clear_error(
    root: Path, content: Any, message: str
) -> None:
    if content == "\x80":
        (root / "a.json").write_bytes(b"\x80\x81")
        content = None
    with pytest.raises(DataError, match=message):
        read_coco(root, "a.json", "train") if content is None else read(root, content)


def test_missing_files_and_folders_are_named_with_what_is_there(root: Path) -> None:
    with pytest.raises(DataError, match=r"b\.json: the annotation file is missing; .* no \.json"):
        read_coco(root, "b.json", "train")
    with pytest.raises(DataError, match=r"no folder 'trian' \(did you mean 'train'\?\)"):
        read(root, contents(), "trian")
    with pytest.raises(DataError, match=r"no folder 'TRAINS' \(did you mean 'train'\?\)"):
        read(root, contents(), "TRAINS")
    with pytest.raises(DataError, match=r"b\.json: .* has a\.json"):
        read_coco(root, "b.json", "train")
    with pytest.raises(DataError, match="the folder of the data set does not exist"):
        read_coco(root / "no", "a.json", "train")


def test_a_picture_of_another_size_than_annotated_is_refused(root: Path) -> None:
    dataset = DetectionDataset(read(root, contents()), crowd=False)
    write_image(root / "train/2.png", 60, 40)
    message = r"train/2\.png: the picture is 60x40 .* annotations say 40x60"
    with pytest.raises(DataError, match=message):
        dataset[1]
    with pytest.raises(DataError, match=message):
        dataset.check(1)
    dataset.check(0)
    assert dataset.describe(1) == f"{root}/train/2.png"


@pytest.mark.parametrize(
    ("split", "images", "objects", "crowds"), [("train", 25, 168, 2), ("val", 8, 78, 1)]
)
def test_real_coco_annotations_are_read_whole(
    test_data: Path, split: str, images: int, objects: int, crowds: int
) -> None:
    listing = read_coco(test_data / "coco_mini", f"annotations/instances_{split}.json", split)
    assert listing.problems == []
    assert len(listing.categories) == 80
    assert listing.categories[79] == (90, "toothbrush")
    packed = pack(listing, crowd=True)
    assert (len(listing.images), len(packed.objects)) == (images, objects)
    assert packed.objects.crowd.sum() == crowds
    assert not packed.repairs
    dataset = DetectionDataset(listing, crowd=False)
    assert len(dataset.objects) == objects - crowds
    for index in range(len(dataset)):
        assert dataset[index].size == (listing.images[index].height, listing.images[index].width)
