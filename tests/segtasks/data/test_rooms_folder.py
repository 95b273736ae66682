from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.data.rooms import CLASS_NAMES, RoomsFolderError, render_scene, write_rooms
from segtasks.data.rooms.folder import VAL_START

SIZE = (48, 64)


def test_files_hold_the_scenes_in_the_layout_of_nyudepthv2(tmp_path: Path) -> None:
    out = tmp_path / "rooms"

    folder = write_rooms(out, train=3, val=2, size=SIZE, seed=7)

    assert folder.rendered
    lines = (out / "train.txt").read_text().splitlines()
    assert lines == [f"RGB/000{n}.png Label/000{n}.png" for n in (1, 2, 3)]
    lines = (out / "test.txt").read_text().splitlines()
    assert lines == [f"RGB/000{n}.png Label/000{n}.png" for n in (4, 5)]
    for name, index in (("0002", 1), ("0004", VAL_START)):
        scene = render_scene(7, index, SIZE)
        image = cv2.imread(str(out / "RGB" / f"{name}.png"), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image[..., ::-1], scene.image)
        for kind, expected in (("Depth", scene.depth), ("Label", scene.label)):
            found = cv2.imread(str(out / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(found, expected)


def test_coco_boxes_are_those_of_the_scenes(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms", train=2, val=1, size=SIZE)
    content = (tmp_path / "rooms" / "annotations" / "instances_train.json").read_text()
    coco = json.loads(content)

    assert [image["file_name"] for image in coco["images"]] == ["RGB/0001.png", "RGB/0002.png"]
    assert coco["images"][0]["height"] == 48
    assert coco["images"][0]["width"] == 64
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == dict(enumerate(CLASS_NAMES[3:], start=4))
    scene = render_scene(0, 1, SIZE)
    second = [a for a in coco["annotations"] if a["image_id"] == coco["images"][1]["id"]]
    boxes = np.array([annotation["bbox"] for annotation in second])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(boxes, scene.boxes_xyxy)
    assert [a["category_id"] for a in second] == scene.box_classes.tolist()
    assert [a["area"] for a in second] == scene.box_areas.tolist()
    numbers = [annotation["id"] for annotation in coco["annotations"]]
    assert len(set(numbers)) == len(numbers)


def test_class_shares_are_counted_per_split(tmp_path: Path) -> None:
    folder = write_rooms(tmp_path / "rooms", train=1, val=2, size=SIZE)

    label = render_scene(0, 0, SIZE).label
    expected = [(label == number).sum() / (label > 0).sum() for number in range(1, 9)]
    np.testing.assert_allclose(folder.class_shares["train"], expected, atol=1e-6)
    assert sum(folder.class_shares["val"]) == pytest.approx(1, abs=1e-5)


def test_validation_scenes_do_not_depend_on_the_number_of_training_scenes(tmp_path: Path) -> None:
    write_rooms(tmp_path / "few", train=1, val=1, size=SIZE)
    write_rooms(tmp_path / "more", train=2, val=1, size=SIZE)

    few, more = tmp_path / "few/RGB/0002.png", tmp_path / "more/RGB/0003.png"
    assert few.read_bytes() == more.read_bytes()
    assert few.read_bytes() != (tmp_path / "more/RGB/0002.png").read_bytes()


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "rooms"
    first = write_rooms(out, train=1, val=1, size=SIZE)
    before = (out / "RGB" / "0001.png").stat().st_mtime_ns
    done: list[int] = []

    second = write_rooms(out, 1, 1, SIZE, progress=lambda scenes, total: done.append(scenes))

    assert not second.rendered
    assert second.class_shares == first.class_shares
    assert done == []
    assert (out / "RGB" / "0001.png").stat().st_mtime_ns == before


def test_an_interrupted_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rooms(tmp_path / "rooms", 2, 1, SIZE, progress=interrupt)

    assert list(tmp_path.iterdir()) == []
    assert write_rooms(tmp_path / "rooms", 2, 1, SIZE).rendered


def test_a_killed_run_is_not_taken_for_complete(tmp_path: Path) -> None:
    seen: list[bool] = []

    write_rooms(
        tmp_path / "rooms", 2, 1, SIZE,
        progress=lambda done, total: seen.append((tmp_path / "rooms").exists()),
    )  # fmt: skip

    assert seen == [False, False, False]


def test_of_two_processes_that_render_the_same_both_are_served(tmp_path: Path) -> None:
    def overtake(done: int, total: int) -> None:
        if done == total:
            write_rooms(tmp_path / "rooms", 1, 1, SIZE)

    folder = write_rooms(tmp_path / "rooms", 1, 1, SIZE, progress=overtake)

    assert (folder.path / "train.txt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["rooms"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert write_rooms(tmp_path, train=1, val=1, size=SIZE).rendered
    assert (tmp_path / "train.txt").is_file()


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(RoomsFolderError, match=r"not empty.*nothing was written"):
        write_rooms(tmp_path, 1, 1, SIZE)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_other_scenes_in_the_folder_are_named(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms", 1, 1, SIZE, seed=1)

    with pytest.raises(RoomsFolderError, match=r"holds other scenes.*seed 1.*asked for.*seed 2"):
        write_rooms(tmp_path / "rooms", 1, 1, SIZE, seed=2)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_rooms(tmp_path / "rooms", 1, 1, SIZE)
    record = tmp_path / "rooms" / "rooms.json"
    record.write_text(record.read_text()[:20])

    with pytest.raises(RoomsFolderError, match=re.escape(str(record))):
        write_rooms(tmp_path / "rooms", 1, 1, SIZE)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "rooms").write_text("")

    with pytest.raises(RoomsFolderError, match="is a file"):
        write_rooms(tmp_path / "rooms", 1, 1, SIZE)
    with pytest.raises(RoomsFolderError, match=r"cannot write the scenes to .*below: "):
        write_rooms(tmp_path / "rooms" / "below", 1, 1, SIZE)


@pytest.mark.parametrize(
    ("train", "val", "size", "seed", "message"),
    [
        (0, 1, SIZE, 0, "train and val must be 1 or more, got 0 and 1"),
        (1, -1, SIZE, 0, "train and val must be 1 or more, got 1 and -1"),
        (2_000_000, 1, SIZE, 0, "train must be 1000000 at most, got 2000000"),
        (1, 1, (20, 64), 0, "at least 32x32, got 20x64"),
        (1, 1, SIZE, -1, "seed must be 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, train: int, val: int, size: tuple[int, int], seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_rooms(tmp_path / "rooms", train, val, size, seed)

    assert list(tmp_path.iterdir()) == []
