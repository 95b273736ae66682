"""Boxes drawn on images and videos, and predictions.json beside them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from segtasks.commands.predict_files import Files, import_jittor, progress
from segtasks.commands.predict_inputs import list_pictures
from segtasks.commands.video import ENDINGS, Video, open_video, write_video, written_name
from segtasks.data.detection.base import DetectionDataModule
from segtasks.data.detection.dataset import DetectionDataset
from segtasks.predictors.configuration import Recipe
from segtasks.predictors.inputs import PredictionError, image_size
from segtasks.visualize import colour_map

if TYPE_CHECKING:
    from segtasks.predictors.detection import DetectionResult, Detector

#: Folder of the pictures.
KIND = "boxes"
#: Default of RTDETRTask.
_SCORE_THRESHOLD = 0.4
_MAX_DETECTIONS = 300


def run(arguments: argparse.Namespace, recipe: Recipe) -> int:
    """Predict what the arguments name; returns the exit code.

    Raises:
        ValueError: Something cannot be; nothing has been written.
    """
    path = Path(arguments.rgb or "")
    if arguments.rgb is not None and path.suffix.lower() in ENDINGS:
        return _predict_video(arguments, recipe, path)
    return _predict_images(arguments, recipe)


def _predict_images(arguments: argparse.Namespace, recipe: Recipe) -> int:
    named = _find(arguments, recipe)
    sizes = [
        image_size(index, path, kind="image", grey_files=True)
        for index, path in enumerate(named.values())
    ]
    files = Files(arguments.out, [KIND], list(named))
    files.check(overwrite=arguments.overwrite)
    detector = _load(arguments, recipe)
    settings = _settings(arguments, recipe)
    paths = list(named.values())
    rows: list[dict[str, Any]] = []
    with progress(Console(stderr=True), "predicting", len(paths)) as advance:
        for index, result in enumerate(detector.stream(paths, **settings)):
            written = files.write(index, {KIND: result.draw()})
            rows.append(
                {
                    "name": files.names[index],
                    "file": str(paths[index]),
                    "size": list(sizes[index]),
                    "detections": result.records(),
                    "files": written,
                }
            )
            advance()
    files.summarise({**_describe(arguments, recipe, detector, settings), "images": rows})
    found = sum(len(row["detections"]) for row in rows)
    _conclude(f"{found} objects in {len(rows)} images, pictures and predictions.json", files)
    return 0


def _predict_video(arguments: argparse.Namespace, recipe: Recipe, path: Path) -> int:
    video = open_video(path)
    files = Files(arguments.out, [], [])
    target = files.folder / written_name(path)
    if target.exists() and target.samefile(path):
        raise PredictionError(f"--out {files.folder} would replace the video {path} itself")
    files.check(overwrite=arguments.overwrite, others=[target])
    detector = _load(arguments, recipe)
    settings = _settings(arguments, recipe)
    console = Console(stderr=True)
    frames: list[dict[str, Any]] = []
    with (
        progress(console, "predicting", video.frames) as advance,
        write_video(target, video.size, video.rate) as output,
    ):
        for number, result in enumerate(_detect_frames(detector, video, settings)):
            output.add(result.draw())
            seconds = round(number / video.rate, 4)
            frames.append({"frame": number, "seconds": seconds, "detections": result.records()})
            advance()
    for note in _video_notes(video, len(frames)):
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    described = {
        "file": str(path),
        "size": list(video.size),
        "frames_per_second": video.rate,
        "written": target.name,
    }
    summary = _describe(arguments, recipe, detector, settings)
    files.summarise({**summary, "video": described, "frames": frames})
    found = sum(len(frame["detections"]) for frame in frames)
    _conclude(f"{found} objects in {len(frames)} frames, {target.name} and predictions.json", files)
    return 0


def _detect_frames(
    detector: Detector, video: Video, settings: dict[str, Any]
) -> Iterator[DetectionResult]:
    """A batch of frames after the other, so that a long video needs little memory."""
    frames = video.read()
    while batch := list(islice(frames, settings["batch_size"])):
        yield from detector.stream(batch, input_order="bgr", **settings)


def _video_notes(video: Video, read: int) -> Iterator[str]:
    if not video.has_rate:
        yield f"{video.path} does not say its frames per second; {video.rate:g} are written"
    if video.frames is not None and read < video.frames:
        yield f"{video.path} says it has {video.frames} frames, {read} could be read"


def _find(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Path]:
    """Images by the names of the files that are written for them."""
    if arguments.split is None:
        path = Path(arguments.rgb)
        return {path.stem: path} if path.is_file() else list_pictures(arguments.rgb, "--rgb")
    if not isinstance(recipe.data, DetectionDataModule):
        raise PredictionError(
            f"--split reads a detection data module of segtasks.data, the configuration's data is "
            f"a {type(recipe.data).__name__}; name the images by --rgb"
        )
    if arguments.split != "test":
        raise PredictionError(f"--split {arguments.split}: for detection the split is test")
    recipe.data.prepare_data()
    dataset: DetectionDataset = recipe.data.test_dataloader().dataset
    return {
        Path(record.file).with_suffix("").as_posix(): dataset.path(index)
        for index, record in enumerate(dataset.images)
    }


def _load(arguments: argparse.Namespace, recipe: Recipe) -> Detector:
    import_jittor(arguments.out)
    from segtasks.predictors.loading import build_detector

    return build_detector(
        arguments.ckpt_path,
        recipe,
        weights=arguments.weights,
        class_names=arguments.class_names,
        device=arguments.device,
    )


def _settings(arguments: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Arguments of `Detector.stream`."""
    threshold = arguments.score_threshold
    if threshold is None:
        threshold = recipe.config.get("task.init_args.score_threshold")
    batch_size = arguments.batch_size
    if batch_size is None:
        batch_size = getattr(recipe.data, "val_batch_size", 1) if arguments.split else 1
    return {
        "score_threshold": _SCORE_THRESHOLD if threshold is None else float(threshold),
        "max_detections": arguments.max_detections or _MAX_DETECTIONS,
        "batch_size": batch_size,
    }


def _describe(
    arguments: argparse.Namespace, recipe: Recipe, detector: Detector, settings: dict[str, Any]
) -> dict[str, Any]:
    """What the detections depend on, and what their values mean."""
    return {
        "checkpoint": str(arguments.ckpt_path),
        "weights": detector.source,
        "configuration": recipe.source,
        "network_input": list(detector.size),
        **settings,
        "unit": "box_xyxy: left, top, right, bottom in pixels of the image; score 0 to 1; size is"
        " height, width; colours are red, green, blue of 0 to 255",
        "classes": list(detector.class_names),
        "colours": colour_map(detector.num_classes).tolist(),
    }


def _conclude(text: str, files: Files) -> None:
    Console().print(escape(f"{text} in {files.folder}"), soft_wrap=True, highlight=False)
