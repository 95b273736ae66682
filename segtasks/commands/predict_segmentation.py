"""Pictures of segmented images, and predictions.json beside them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape

from segtasks.commands.predict_files import Files, import_jittor, progress
from segtasks.commands.predict_inputs import Images, find_pairs, find_split
from segtasks.predictors.configuration import Recipe
from segtasks.predictors.inputs import PredictionError
from segtasks.visualize import colour_map

if TYPE_CHECKING:
    from segtasks.inference import Protocol
    from segtasks.predictors.result import SegmentationResult
    from segtasks.predictors.segmentation import Segmenter

KINDS = ["labels", "colours", "overlays", "sheets"]
#: Of a window where neither an option nor the data say one.
_CROP = (480, 640)


def run(arguments: argparse.Namespace, recipe: Recipe) -> int:
    """Predict what the arguments name; returns the exit code.

    Raises:
        ValueError: Something cannot be; nothing has been written.
    """
    console = Console(stderr=True)
    images = _find(arguments, recipe)
    for note in images.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    kinds = arguments.write or KINDS
    files = Files(arguments.out, kinds, [item.name for item in images.inputs])
    files.check(overwrite=arguments.overwrite)
    crop, stride = _window(arguments, recipe)
    segmenter = _load(arguments, recipe)
    protocol = _protocol(arguments, crop, stride) or segmenter.protocol
    batch_size = _batch_size(arguments, recipe)
    stream = segmenter.stream_inputs(images.inputs, protocol=protocol, batch_size=batch_size)
    rows: dict[int, dict[str, Any]] = {}
    with progress(console, "predicting", len(images.inputs)) as advance:
        for index, result in stream:
            truth = images.truth(index) if images.truth else None
            written = files.write(index, _pictures(result, truth, kinds))
            rows[index] = _row(images, index, result, written)
            advance()
    summary = _describe(arguments, recipe, segmenter, protocol, batch_size)
    files.summarise({**summary, "images": [rows[index] for index in sorted(rows)]})
    text = f"{len(rows)} predicted, pictures and predictions.json in {files.folder}"
    Console().print(escape(text), soft_wrap=True, highlight=False)
    return 0


def _find(arguments: argparse.Namespace, recipe: Recipe) -> Images:
    if arguments.split is not None:
        return find_split(arguments.split, recipe)
    return find_pairs(arguments.rgb, arguments.depth, recipe)


def _load(arguments: argparse.Namespace, recipe: Recipe) -> Segmenter:
    import_jittor(arguments.out)
    from segtasks.predictors.loading import build_segmenter

    return build_segmenter(
        arguments.ckpt_path,
        recipe,
        weights=arguments.weights,
        class_names=arguments.class_names,
        device=arguments.device,
    )


def _window(
    arguments: argparse.Namespace, recipe: Recipe
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Crop and stride of a sliding window, each (height, width)."""
    crop = tuple(arguments.crop or getattr(recipe.data, "crop_size", _CROP))
    stride = tuple(arguments.stride) if arguments.stride else None
    if stride is not None and (stride[0] > crop[0] or stride[1] > crop[1]):
        raise PredictionError(
            f"--stride {stride[0]} {stride[1]} is larger than the window, {crop[0]} {crop[1]}, and"
            " would leave pixels out"
        )
    return (crop[0], crop[1]), stride


def _protocol(
    arguments: argparse.Namespace, crop: tuple[int, int], stride: tuple[int, int] | None
) -> Protocol | None:
    """The protocol that the options name; None for the configuration's."""
    from segtasks.inference import MultiScaleFlip, SingleScale, Sliding

    name = arguments.protocol
    if name == "config":
        return None
    if name == "single":
        return SingleScale()
    if name == "sliding":
        return Sliding(crop, stride)
    chosen = {"scales": arguments.scales} if arguments.scales else {}
    window = Sliding(crop, stride) if name == "msf_sliding" else None
    return MultiScaleFlip(**chosen, flip=not arguments.no_flip, window=window)


def _batch_size(arguments: argparse.Namespace, recipe: Recipe) -> int:
    if arguments.batch_size is None and arguments.split is not None:
        return int(getattr(recipe.data, "val_batch_size", 1))
    return arguments.batch_size or 1


def _pictures(
    result: SegmentationResult, truth: npt.NDArray[np.uint8] | None, kinds: list[str]
) -> dict[str, npt.NDArray[np.uint8]]:
    make: dict[str, Callable[[], npt.NDArray[np.uint8]]] = {
        "labels": lambda: result.label,
        "colours": result.colours,
        "overlays": result.overlay,
        "sheets": lambda: result.sheet(truth),
    }
    return {kind: make[kind]() for kind in kinds}


def _row(
    images: Images, index: int, result: SegmentationResult, written: dict[str, str]
) -> dict[str, Any]:
    item = images.inputs[index]
    return {
        "name": item.name,
        "rgb": str(item.rgb),
        "depth": str(item.depth),
        "size": list(item.size),
        "pixels": result.pixels(),
        "files": written,
    }


def _describe(
    arguments: argparse.Namespace,
    recipe: Recipe,
    segmenter: Segmenter,
    protocol: Protocol,
    batch_size: int,
) -> dict[str, Any]:
    """What the predictions depend on, and what their values mean."""
    preparation = segmenter.preparation
    return {
        "checkpoint": str(arguments.ckpt_path),
        "weights": segmenter.source,
        "configuration": recipe.source,
        "protocol": protocol.describe(),
        "batch_size": batch_size,
        "seed": segmenter.seed,
        "channel_order": preparation.channel_order,
        "depth_max": preparation.depth_max,
        "pad_to": preparation.pad_to,
        "unit": "pixels; size is height, width; colours are red, green, blue of 0 to 255",
        "classes": list(segmenter.class_names),
        "colours": colour_map(segmenter.num_classes).tolist(),
    }
