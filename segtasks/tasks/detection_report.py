"""What a detection test leaves behind: results.json, detections.json, a table, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from segtasks.metrics.detection import CocoEvaluator, CocoScores, ImageDetections, undefined_as_none
from segtasks.metrics.voc import VocScores, voc_scores
from segtasks.visualize import save_picture
from segtasks.visualize_boxes import Boxes, detection_sheet, draw_boxes

if TYPE_CHECKING:
    from jtlightning.trainer import Trainer

PROTOCOL = {
    "protocol": "COCO boxes",
    "ious": [round(0.5 + 0.05 * i, 2) for i in range(10)],
    "detections_per_image_and_class": 100,
}
_NUMBER_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR, 1 detection",
    "ar10": "AR, 10 detections",
    "ar100": "AR, 100 detections",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}


class DetectionReport:
    """Collects the detections of one test, and tells of them.

    Args:
        trainer: Whose data module has the annotations and whose run folder is written to.
        class_names: Name of each class.
        threshold: Least score of a detection that is drawn.
        pictures: Images to draw.
        voc: Also compute the scores of Pascal VOC.
    """

    def __init__(
        self,
        trainer: Trainer,
        class_names: list[str],
        *,
        threshold: float,
        pictures: int,
        voc: bool,
    ) -> None:
        self._trainer, self._names = trainer, class_names
        self._threshold, self._pictures, self._voc = threshold, pictures, voc
        data: Any = trainer.datamodule
        self.evaluator = CocoEvaluator(data.val_annotations(), data.category_ids)
        self._drawn: list[tuple[np.ndarray, Boxes, Boxes]] = []
        self._coco: CocoScores | None = None
        self._voc_scores: VocScores | None = None

    def add(self, batch: Any, found: Sequence[ImageDetections]) -> None:
        """Take a batch (a `DetectionBatch` on the device) and what was found in each image."""
        for index, (target, image) in enumerate(zip(batch.targets, found, strict=True)):
            self.evaluator.update(target.image_id, image.labels, image.boxes, image.scores)
            if len(self._drawn) < self._pictures:
                picture = original_picture(batch, index)
                shown = shown_boxes(image, self._threshold)
                self._drawn.append((picture, annotated_boxes(target), shown))

    def reduce(self) -> None:
        """Take the detections of all processes; the pictures stay those of each."""
        self.evaluator.reduce(self._trainer.gather)

    def scores(self) -> tuple[CocoScores, VocScores | None]:
        """Scores of the images so far, computed at the first call."""
        if self._coco is None:
            self._coco = self.evaluator.scores()
            self._voc_scores = voc_scores(self.evaluator) if self._voc else None
        return self._coco, self._voc_scores

    def publish(self) -> None:
        """Print the table; write the files and the pictures into the run folder, if any.

        Of several processes rank 0 does, with pictures of its samples.
        """
        if not self._trainer.is_global_zero:
            return
        console = Console()
        coco, voc = self.scores()
        console.print(_table(self._names, self._objects(), coco, voc))
        run = self._trainer.run
        if run is None:
            return
        results, detections = run.path / "results.json", run.path / "detections.json"
        results.write_text(json.dumps(self._results(coco, voc), indent=2) + "\n")
        write_detections(detections, self.evaluator.detections())
        console.print(f"results: {results}\ndetections: {detections}", soft_wrap=True)
        if self._drawn:
            images, annotated, detected = zip(*self._drawn, strict=True)
            picture = run.pictures / "detections.png"
            save_picture(picture, detection_sheet(images, annotated, detected, self._names))
            console.print(f"pictures: {picture}", soft_wrap=True)

    def _objects(self) -> list[int]:
        """Annotated objects of each class, without crowds."""
        counts = dict.fromkeys(self.evaluator.category_ids, 0)
        for annotation in self.evaluator.truth():
            counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
        return list(counts.values())

    def _results(self, coco: CocoScores, voc: VocScores | None) -> dict[str, Any]:
        per_class: dict[str, Any] = {
            name: {"objects": count, "ap": undefined_as_none(ap), "ap50": undefined_as_none(ap50)}
            for name, count, ap, ap50 in zip(
                self._names,
                self._objects(),
                coco.class_ap.tolist(),
                coco.class_ap50.tolist(),
                strict=True,
            )
        }
        scores = {name: undefined_as_none(value) for name, value in coco.numbers.items()}
        if voc is not None:
            scores |= {name: undefined_as_none(value) for name, value in voc.numbers().items()}
            for name, first, second in zip(
                self._names, voc.class_2007.tolist(), voc.class_2010.tolist(), strict=True
            ):
                per_class[name]["voc_2007"] = undefined_as_none(first)
                per_class[name]["voc_2010"] = undefined_as_none(second)
        return {
            "unit": "0 to 1",
            "protocol": PROTOCOL,
            "global_step": self._trainer.global_step,
            "images": len(self.evaluator.images),
            "scores": scores,
            "classes": per_class,
        }


def write_detections(path: Path, detections: list[dict[str, Any]]) -> None:
    """Write detections as the COCO evaluation server takes them."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(detections, file, separators=(",", ":"))


def write_pictures(
    trainer: Trainer, batch: Any, found: Sequence[ImageDetections], names: list[str], least: float
) -> None:
    """Draw what was found on each image, into `predictions/` of the run folder.

    Args:
        trainer: Whose run is written to.
        batch: A `DetectionBatch` on the device.
        found: What was found in each image.
        names: Name of each class.
        least: Least score of a detection that is drawn.
    """
    assert trainer.run is not None
    folder = trainer.run.path / "predictions"
    for index, (target, image) in enumerate(zip(batch.targets, found, strict=True)):
        picture = draw_boxes(original_picture(batch, index), shown_boxes(image, least), names)
        # A name is a path below the data's folder; the pictures lie side by side.
        flat = Path(target.name).with_suffix("").as_posix().replace("/", "_")
        save_picture(folder / f"{flat}.png", picture)


def original_picture(batch: Any, index: int) -> npt.NDArray[np.uint8]:
    """An image of a `DetectionBatch` on the device at its original size, (H, W, 3) uint8 RGB."""
    pixels = np.ascontiguousarray(batch.image[index].numpy().transpose(1, 2, 0))
    width, height = batch.targets[index].original_size
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def annotated_boxes(target: Any) -> Boxes:
    """The objects of a `DetectionTarget`, in pixels of the original image."""
    centre, sides = target.boxes[:, :2], target.boxes[:, 2:]
    corners = np.concatenate([centre - sides / 2, centre + sides / 2], 1)
    return Boxes(target.labels, corners * np.array([*target.original_size] * 2))


def shown_boxes(found: ImageDetections, threshold: float) -> Boxes:
    """The detections that are good enough to be drawn."""
    return Boxes(found.labels, found.boxes, found.scores).above(threshold)


def _table(names: list[str], objects: list[int], coco: CocoScores, voc: VocScores | None) -> Table:
    """AP per class, and the twelve numbers, in per cent; undefined ones as a dash."""
    columns = [coco.class_ap, coco.class_ap50]
    titles = ["objects", "AP", "AP50"]
    if voc is not None:
        columns += [voc.class_2007, voc.class_2010]
        titles += ["VOC 2007", "VOC 2010"]
    table = Table(title="Test: average precision in per cent")
    table.add_column("class")
    for title in titles:
        table.add_column(title, justify="right")
    for index, (name, count) in enumerate(zip(names, objects, strict=True)):
        table.add_row(name, str(count), *(_percent(column[index]) for column in columns))
    table.add_section()
    for key, title in _NUMBER_TITLES.items():
        table.add_row(title, "", _percent(coco.numbers[key]))
    if voc is not None:
        table.add_row("VOC mAP at 0.5", "", "", "", _percent(voc.map_2007), _percent(voc.map_2010))
    return table


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
