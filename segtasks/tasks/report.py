"""What a segmentation test leaves behind: results.json, a table, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segtasks.data.samples import IGNORE_INDEX
from segtasks.data.transforms.segmentation import restore_pixels
from segtasks.metrics.segmentation import ConfusionMatrix, SegmentationScores
from segtasks.visualize import colour_map, overlay, prediction_sheet, save_picture

if TYPE_CHECKING:
    from jtlightning.trainer import Trainer
    from segtasks.inference import Protocol

MODEL = "model"
WITHOUT_DEPTH = "without depth"
MAJORITY = "majority of position"


class SegmentationReport:
    """Counts the predictions of one test, of the model and of the baselines beside it.

    Args:
        trainer: Whose data module names the classes and whose run folder is written to.
        num_classes: K.
        protocol: Recorded with the numbers.
        baselines: Count the baselines as well.
        pictures: Samples to draw.
    """

    def __init__(
        self,
        trainer: Trainer,
        num_classes: int,
        protocol: Protocol,
        baselines: bool,
        pictures: int,
    ) -> None:
        self._trainer, self._protocol, self._pictures = trainer, protocol, pictures
        data: Any = trainer.datamodule
        self._names = _class_names(trainer, num_classes)
        self._counts = {MODEL: ConfusionMatrix(num_classes, IGNORE_INDEX)}
        self._majority = None
        if baselines:
            self._counts[WITHOUT_DEPTH] = ConfusionMatrix(num_classes, IGNORE_INDEX)
            if hasattr(data, "majority_label"):
                self._counts[MAJORITY] = ConfusionMatrix(num_classes, IGNORE_INDEX)
                self._majority = data.majority_label
        self._drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, batch: Any, prediction: np.ndarray, without_depth: np.ndarray | None) -> None:
        """Count a batch (a `SegmentationBatch` of Vars): (B, H, W) predictions and its labels."""
        label = batch.label.numpy()
        self._counts[MODEL].update(prediction, label)
        if without_depth is not None:
            self._counts[WITHOUT_DEPTH].update(without_depth, label)
        if self._majority is not None:
            baseline = np.broadcast_to(self._majority(label.shape[1:]), label.shape)
            self._counts[MAJORITY].update(baseline, label)
        for index in range(min(len(label), self._pictures - len(self._drawn))):
            image, depth = _pictures(self._trainer, batch, index)
            self._drawn.append((image, depth, label[index], prediction[index]))

    def reduce(self) -> None:
        """Add up the counts of all processes; the pictures stay those of each."""
        for counts in self._counts.values():
            counts.reduce(self._trainer.sum_over_processes)

    def scores(self) -> SegmentationScores:
        """Scores of the model."""
        return self._counts[MODEL].scores()

    def publish(self) -> None:
        """Print the table; write results.json and the pictures into the run folder, if any.

        Of several processes rank 0 does, with pictures of its samples.
        """
        if not self._trainer.is_global_zero:
            return
        console = Console()
        scores = {name: counts.scores() for name, counts in self._counts.items()}
        console.print(_table(self._names, scores))
        run = self._trainer.run
        if run is None:
            return
        path = run.path / "results.json"
        path.write_text(json.dumps(self._results(scores), indent=2) + "\n")
        console.print(f"results: {path}", soft_wrap=True)
        if self._drawn:
            images, depths, labels, predictions = zip(*self._drawn, strict=True)
            sheet = prediction_sheet(images, depths, labels, predictions, self._names)
            picture = run.pictures / "predictions.png"
            save_picture(picture, sheet)
            console.print(f"pictures: {picture}", soft_wrap=True)

    def _results(self, scores: dict[str, SegmentationScores]) -> dict[str, Any]:
        return {
            "unit": "0 to 1",
            "protocol": self._protocol.describe(),
            "global_step": self._trainer.global_step,
            "classes": self._names,
            "scores": {
                name: {key: np.asarray(value).tolist() for key, value in asdict(one).items()}
                for name, one in scores.items()
            },
        }


def write_predictions(trainer: Trainer, batch: Any, predictions: Sequence[np.ndarray]) -> None:
    """Save label maps, and beside each a picture of the classes over the image.

    Writes `predictions/<name>.png`, 8-bit classes from 0, and `<name>_overlay.png` into the run
    folder.

    Args:
        trainer: Whose run is written to.
        batch: A `SegmentationBatch` of Vars.
        predictions: (H, W) classes of each sample.
    """
    assert trainer.run is not None
    folder = trainer.run.path / "predictions"
    colours = colour_map(getattr(trainer.datamodule, "num_classes", 256))
    for index, (name, classes) in enumerate(zip(batch.names, predictions, strict=True)):
        image, _ = _pictures(trainer, batch, index)
        save_picture(folder / f"{name}.png", classes.astype(np.uint8))
        save_picture(folder / f"{name}_overlay.png", overlay(image, classes, colours))


def sample_sheets(
    trainer: Trainer, batch: Any, predictions: np.ndarray, num_classes: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw one sample after the other: `predictions/<name>` and a sheet of one row.

    Args:
        trainer: Whose data module names the classes.
        batch: A `SegmentationBatch` of Vars.
        predictions: (B, H, W) classes.
        num_classes: K.
    """
    names, labels = _class_names(trainer, num_classes), batch.label.numpy()
    for index, name in enumerate(batch.names):
        image, depth = _pictures(trainer, batch, index)
        sheet = prediction_sheet([image], [depth], [labels[index]], [predictions[index]], names)
        yield f"predictions/{name}", sheet


def _class_names(trainer: Trainer, num_classes: int) -> list[str]:
    names = getattr(trainer.datamodule, "class_names", None)
    return list(names) if names else [f"class {i}" for i in range(num_classes)]


def _pictures(trainer: Trainer, batch: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) in RGB and depth (H, W) of one sample, uint8."""
    image, depth = restore_pixels(batch.image[index].numpy(), batch.depth[index].numpy())
    if getattr(trainer.datamodule, "channel_order", "bgr") == "bgr":
        image = image[..., ::-1]
    return image, depth[..., 0]


def _table(names: list[str], scores: dict[str, SegmentationScores]) -> Table:
    """IoU per class and the means, in per cent, a column for the model and each baseline."""
    table = Table(title="Test: IoU in per cent")
    table.add_column("class")
    for name in scores:
        table.add_column(name, justify="right")
    for index, name in enumerate(names):
        table.add_row(name, *(f"{100 * s.iou[index]:.1f}" for s in scores.values()))
    table.add_section()
    for label, key in (
        ("mIoU", "miou"),
        ("mean accuracy", "macc"),
        ("pixel accuracy", "pixel_accuracy"),
        ("frequency-weighted IoU", "fwiou"),
    ):
        table.add_row(label, *(f"{100 * getattr(s, key):.1f}" for s in scores.values()))
    if WITHOUT_DEPTH in scores:
        lost = scores[MODEL].miou - scores[WITHOUT_DEPTH].miou
        table.add_row("mIoU lost without depth", "", f"{100 * lost:.1f}", *[""] * (len(scores) - 2))
    return table
