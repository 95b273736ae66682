"""Write rendered scenes as a data set: NYUDepthv2 layout and COCO json side by side.

RGB/0001.png  Depth/0001.png  Label/0001.png     colour, 8-bit grey depth, raw labels 0 to K
train.txt  test.txt                              lines `RGB/0001.png Label/0001.png`
annotations/instances_{train,val}.json           boxes of the visible objects
rooms.json                                       what was rendered, and how often each class is seen
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segtasks.data.rooms.layout import CLASS_NAMES, PICTURE
from segtasks.data.rooms.render import MIN_SIDE, RoomsScene, render_scene

Progress = Callable[[int, int], None]
# Raised whenever the same arguments give other pictures, so that a cached folder is not reused.
FORMAT = 2
RECORD = "rooms.json"
# Validation scenes stay the same, and unseen, whatever the number of training scenes.
VAL_START = 1_000_000


class RoomsFolderError(ValueError):
    """The folder holds something else, or cannot be written."""


@dataclass(frozen=True)
class RoomsFolder:
    """A complete data set of rendered scenes.

    Attributes:
        path: its folder.
        class_shares: split ("train", "val") -> share of the labelled pixels of each class.
        rendered: False when the folder was complete before.
    """

    path: Path
    class_shares: dict[str, list[float]]
    rendered: bool


@dataclass(frozen=True)
class _Request:
    train: int
    val: int
    height: int
    width: int
    seed: int
    format: int = FORMAT


def write_rooms(
    out: Path,
    train: int = 96,
    val: int = 24,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    progress: Progress | None = None,
) -> RoomsFolder:
    """Render a data set into `out`, or leave it alone if these very scenes are there already.

    The scenes are written beside `out` and moved there when all are done, so a folder of that
    name is always complete.

    Args:
        out: a new or empty folder, or one that this function has written.
        train: number of training scenes, at least 1.
        val: number of validation scenes, at least 1.
        size: (height, width) in pixels.
        seed: which series of scenes, 0 or more.
        progress: called with (scenes done, scenes in all) after each scene.

    Raises:
        RoomsFolderError: when `out` holds anything else or cannot be written.
        ValueError: when a number is out of range.
    """
    request = _Request(train, val, size[0], size[1], seed)
    _check(request)
    try:
        return _render_into(Path(out), request, progress)
    except OSError as error:
        raise RoomsFolderError(
            f"cannot write the scenes to {out}: {error.strerror} ({error.filename});"
            " choose a folder that can be written, with enough space"
        ) from error


def _render_into(out: Path, request: _Request, progress: Progress | None) -> RoomsFolder:
    present = _present(out, request)
    if present is not None:
        return RoomsFolder(out, present, rendered=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-unfinished-", dir=out.parent))
    try:
        shares = _write_splits(work, request, progress)
        work.chmod(0o755)  # mkdtemp keeps its folders to the owner
        shares = _move(work, out, request, shares)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return RoomsFolder(out, shares, rendered=True)


def _check(request: _Request) -> None:
    if request.train < 1 or request.val < 1:
        raise ValueError(f"train and val must be 1 or more, got {request.train} and {request.val}")
    if request.train > VAL_START:
        raise ValueError(f"train must be {VAL_START} at most, got {request.train}")
    if min(request.height, request.width) < MIN_SIDE:
        raise ValueError(
            f"size must be at least {MIN_SIDE}x{MIN_SIDE}, got {request.height}x{request.width}"
        )
    if request.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {request.seed}")


def _present(out: Path, request: _Request) -> dict[str, list[float]] | None:
    """Return the class shares if `out` holds the requested scenes, None if it holds nothing."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise RoomsFolderError(f"{out} is a file; choose another folder for the scenes")
    if not any(out.iterdir()):
        return None
    record = out / RECORD
    if not record.is_file():
        raise RoomsFolderError(
            f"{out} is not empty and holds no rendered scenes ({RECORD} is missing);"
            " nothing was written. Choose a new folder"
        )
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        scenes, shares = found["request"], found["class_shares"]
    except (ValueError, KeyError, TypeError) as error:
        raise RoomsFolderError(
            f"{record} cannot be read ({error!r}); remove {out} and render again"
        ) from error
    if scenes != asdict(request):
        raise RoomsFolderError(
            f"{out} holds other scenes ({_describe(scenes)}) than asked for"
            f" ({_describe(asdict(request))}); remove it or choose another folder"
        )
    return dict(shares)


def _describe(request: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in request.items())


def _move(
    work: Path, out: Path, request: _Request, shares: dict[str, list[float]]
) -> dict[str, list[float]]:
    try:
        # Takes the place of an empty folder, but never of a filled one.
        work.rename(out)
    except OSError:
        # Another process may have rendered the same meanwhile.
        present = _present(out, request)
        if present is None:
            raise
        return present
    return shares


def _write_splits(
    work: Path, request: _Request, progress: Progress | None
) -> dict[str, list[float]]:
    for name in ("RGB", "Depth", "Label", "annotations"):
        (work / name).mkdir()
    shares: dict[str, list[float]] = {}
    total = request.train + request.val
    splits = (("train", "train", 0, request.train), ("val", "test", VAL_START, request.val))
    done = 0
    for split, list_name, start, count in splits:
        pixels = np.zeros(len(CLASS_NAMES) + 1, np.int64)
        coco = _empty_coco()
        lines = []
        for index in range(start, start + count):
            done += 1
            name = f"{done:04d}.png"
            scene = render_scene(request.seed, index, (request.height, request.width))
            _write_scene(work, name, scene)
            _add_to_coco(coco, f"RGB/{name}", scene)
            lines.append(f"RGB/{name} Label/{name}\n")
            pixels += np.bincount(scene.label.reshape(-1), minlength=len(pixels))
            if progress is not None:
                progress(done, total)
        shares[split] = (pixels[1:] / max(1, int(pixels[1:].sum()))).round(6).tolist()
        (work / f"{list_name}.txt").write_text("".join(lines), encoding="utf-8")
        _write_json(work / "annotations" / f"instances_{split}.json", coco)
    record = {
        "request": asdict(request),
        "classes": list(CLASS_NAMES),
        "class_shares": shares,
    }
    _write_json(work / RECORD, record)
    return shares


def _write_scene(work: Path, name: str, scene: RoomsScene) -> None:
    # OpenCV writes BGR, so that readers of the file see true colours.
    _write_png(work / "RGB" / name, np.ascontiguousarray(scene.image[..., ::-1]))
    _write_png(work / "Depth" / name, scene.depth)
    _write_png(work / "Label" / name, scene.label)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise RoomsFolderError(f"{path.name}: OpenCV cannot encode {pixels.shape} as PNG")
    path.write_bytes(data.tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _empty_coco() -> dict[str, Any]:
    """Return a COCO instances file without images; walls, floor and ceiling have no boxes."""
    return {
        "info": {"description": "rendered rooms"},
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "object"}
            for number, name in enumerate(CLASS_NAMES, start=1)
            if number >= PICTURE
        ],
    }


def _add_to_coco(coco: dict[str, Any], file_name: str, scene: RoomsScene) -> None:
    height, width = scene.label.shape
    image_id = len(coco["images"]) + 1
    coco["images"].append(
        {"id": image_id, "file_name": file_name, "height": height, "width": width}
    )
    boxes = scene.boxes_xyxy.tolist()
    for (left, top, right, bottom), class_id, area in zip(
        boxes, scene.box_classes.tolist(), scene.box_areas.tolist(), strict=True
    ):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": class_id,
                "bbox": [left, top, right - left, bottom - top],
                "area": area,
                "iscrowd": 0,
                "segmentation": [],
            }
        )
