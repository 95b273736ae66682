"""A trained detector asked about images: arrays or files, one or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from segtasks.data.detection.samples import DetectionBatch, DetectionSample, Objects, collate
from segtasks.data.images import ChannelOrder, read_colour
from segtasks.data.transforms.detection import validation_transform
from segtasks.predictors.inputs import (
    ImageInput,
    Many,
    PredictionError,
    check_order,
    image_size,
    name_classes,
)
from segtasks.visualize_boxes import Boxes, draw_boxes

if TYPE_CHECKING:
    from jittor import nn

#: Sides of the network's inputs are multiples of it.
_STRIDE = 32


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """What a detector found in one image, best first.

    Attributes:
        name: stem of the image's file, or the index of an array.
        boxes_xyxy: (n, 4) float32, left, top, right, bottom in pixels of the image; a box may
            reach over its border.
        labels: (n,) int64, class indices from 0.
        scores: (n,) float32, 0 to 1.
        image: (H, W, 3) uint8 RGB, as it was given.
        class_names: their names.
    """

    name: str
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, score: float) -> DetectionResult:
        """Those with at least this score, 0 to 1."""
        kept = self.scores >= score
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[kept],
            labels=self.labels[kept],
            scores=self.scores[kept],
        )

    def draw(self) -> npt.NDArray[np.uint8]:
        """The image with the boxes, their classes and scores in per cent, (H, W, 3) uint8 RGB."""
        return draw_boxes(
            self.image, Boxes(self.labels, self.boxes_xyxy, self.scores), self.class_names
        )

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per detection for a json file; boxes to a hundredth of a pixel."""
        return [
            {
                "label": int(label),
                "class": self.class_names[label],
                "score": round(float(score), 5),
                "box_xyxy": [round(float(side), 2) for side in box],
            }
            for label, score, box in zip(self.labels, self.scores, self.boxes_xyxy, strict=True)
        ]


class Detector:
    """A network with all that its detections depend on; `load_detector` makes it from a file.

    Args:
        model: (B, 3, H, W) image, 0 to 1 -> an output with `logits` (B, Q, C) and `boxes`
            (B, Q, 4), centre, width and height as fractions; has `num_classes`.
        size: (height, width) that images are resized to, multiples of 32, as in validation.
        class_names: C names; class 0, class 1, ... unless given.
        source: Where the weights are from, for people.

    Raises:
        PredictionError: The size is impossible, or there are not as many names as classes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: tuple[int, int] = (640, 640),
        class_names: Sequence[str] | None = None,
        source: str = "",
    ) -> None:
        if len(size) != 2 or min(size) < _STRIDE or size[0] % _STRIDE or size[1] % _STRIDE:
            raise PredictionError(
                f"size must be (height, width), multiples of {_STRIDE}, got {tuple(size)}"
            )
        self.model, self.size, self.source = model, (size[0], size[1]), source
        self.num_classes = int(model.num_classes)
        self.class_names = name_classes(class_names, self.num_classes)

    @overload
    def predict(
        self,
        images: ImageInput,
        *,
        score_threshold: float = ...,
        max_detections: int = ...,
        batch_size: int = ...,
        input_order: ChannelOrder = ...,
    ) -> DetectionResult: ...

    @overload
    def predict(
        self,
        images: Many,
        *,
        score_threshold: float = ...,
        max_detections: int = ...,
        batch_size: int = ...,
        input_order: ChannelOrder = ...,
    ) -> list[DetectionResult]: ...

    def predict(
        self,
        images: ImageInput | Many,
        *,
        score_threshold: float = 0.0,
        max_detections: int = 300,
        batch_size: int = 1,
        input_order: ChannelOrder = "rgb",
    ) -> DetectionResult | list[DetectionResult]:
        """Find the objects in an image, or in several.

        Args:
            images: (H, W, 3) uint8, or the path of a .png or .jpg; a list for several. Any sizes.
            score_threshold: Least score of what is returned, 0 to 1.
            max_detections: The best so many of each image.
            batch_size: Images asked about at once.
            input_order: Order of the colours in arrays; `bgr` for what OpenCV has read.

        Returns:
            One result, or for a list one per image, in its order.

        Raises:
            PredictionError: Something is wrong with an input; nothing was predicted.
            DataError: A file is missing or damaged.
        """
        several = isinstance(images, list)
        results = list(
            self.stream(
                images if isinstance(images, list) else [images],
                score_threshold=score_threshold,
                max_detections=max_detections,
                batch_size=batch_size,
                input_order=input_order,
            )
        )
        return results if several else results[0]

    def stream(
        self,
        images: Sequence[ImageInput],
        *,
        score_threshold: float = 0.0,
        max_detections: int = 300,
        batch_size: int = 1,
        input_order: ChannelOrder = "rgb",
    ) -> Iterator[DetectionResult]:
        """Detect as `predict` does, one batch after the other, for more than memory holds.

        All inputs are checked in this call; files are read when their batch comes.

        Returns:
            The results in the order of the images.

        Raises:
            PredictionError: As in `predict`.
            DataError: As in `predict`.
        """
        check_order(input_order, "input_order")
        if batch_size < 1 or max_detections < 1 or not 0 <= score_threshold <= 1:
            raise PredictionError(
                "batch_size and max_detections must be 1 or more and score_threshold 0 to 1, got "
                f"{batch_size}, {max_detections} and {score_threshold}"
            )
        paths = [Path(image) if isinstance(image, str) else image for image in images]
        for index, image in enumerate(paths):
            image_size(index, image, kind="images", grey_files=True)
        return (
            result.above(score_threshold)
            for first in range(0, len(paths), batch_size)
            for result in self._detect(
                [
                    _read(first + offset, image, input_order)
                    for offset, image in enumerate(paths[first : first + batch_size])
                ],
                max_detections,
            )
        )

    def _detect(self, samples: list[DetectionSample], count: int) -> list[DetectionResult]:
        from segtasks.models.rtdetr.postprocess import top_predictions

        transform, unused = validation_transform(self.size), np.random.default_rng(0)
        batch = collate([transform(sample, unused) for sample in samples])
        logits, boxes = self._ask(batch)
        sizes_wh = np.array([sample.original_size for sample in samples])
        return [
            DetectionResult(
                name=sample.name,
                boxes_xyxy=found.boxes_xyxy,
                labels=found.labels,
                scores=found.scores,
                image=sample.image,
                class_names=self.class_names,
            )
            for sample, found in zip(
                samples, top_predictions(logits, boxes, sizes_wh, count), strict=True
            )
        ]

    def _ask(
        self, batch: DetectionBatch
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits (B, Q, C) and boxes (B, Q, 4), as the trainer's `predict` computes them."""
        import jittor as jt

        from jtlightning.trainer.evaluate import evaluation_mode

        with evaluation_mode(self.model), jt.no_grad():
            output = self.model(jt.array(batch.image).float32() / 255)
            logits, boxes = output.logits.numpy(), output.boxes.numpy()
            jt.sync_all()
        if logits.shape[2] != self.num_classes:
            raise PredictionError(
                f"the network gave logits of {logits.shape[2]} classes, and its num_classes is "
                f"{self.num_classes}"
            )
        return logits, boxes


def _read(index: int, image: npt.NDArray[Any] | Path, order: ChannelOrder) -> DetectionSample:
    """A sample without objects, RGB."""
    if isinstance(image, Path):
        pixels, name = read_colour(image, "rgb"), image.stem
    else:
        pixels, name = image if order == "rgb" else image[..., ::-1], str(index)
    none = Objects(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        np.zeros(0, np.bool_),
    )
    height, width = pixels.shape[:2]
    return DetectionSample(np.ascontiguousarray(pixels), none, index, (width, height), name)
