"""Object detection with RT-DETR as a task."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from jtlightning.optim import AdamW, ConstantSchedule, OptimizerConfig, Schedule
from jtlightning.seed import position_seed
from jtlightning.task import Task
from segtasks.losses.matcher import HungarianMatcher
from segtasks.losses.rtdetr import RTDETRCriterion
from segtasks.metrics.detection import (
    CocoEvaluator,
    CocoScores,
    ImageDetections,
    coco_records,
    rounded,
)
from segtasks.metrics.voc import VocScores, voc_scores
from segtasks.models.rtdetr.postprocess import top_predictions
from segtasks.tasks.checks import check_classes
from segtasks.tasks.detection_report import (
    DetectionReport,
    annotated_boxes,
    original_picture,
    shown_boxes,
    write_detections,
    write_pictures,
)
from segtasks.tasks.parameter_patterns import ParameterPattern, pattern_groups
from segtasks.tasks.weights import start_detector
from segtasks.visualize_boxes import detection_sheet

_log = logging.getLogger(__name__)

#: Sides of the network's inputs are multiples of it.
_STRIDE = 32


class RTDETRTask(Task):
    """Trains and evaluates an RT-DETR detector.

    "DETRs Beat YOLOs on Real-time Object Detection" (Zhao et al., CVPR 2024). Its batches are
    `segtasks.data.detection.DetectionBatch`: uint8 images on the device, targets on the host.
    Images are divided by 255 and not normalised further, as the official weights expect.

    Args:
        model: The network; its `num_classes` must be the data's.
        weights: A file whose weights the network starts from, a .ckpt, .safetensors, .pth of
            PyTorch or .pkl of Jittor; all of them must fit. An average in it is preferred.
        skip_weights: Parts of the network that keep their own values, by the start of their
            names: `[encoder, decoder]` where the file holds a pre-trained backbone.
        optimizer: AdamW at 1e-4 with decay 1e-4 unless given.
        schedule: A constant rate unless given, as in the official training.
        param_groups: Learning rate and decay by parameter name; what no pattern finds has the
            optimizer's.
        multi_scale: Sides of which each training step draws one, and resizes its batch to that
            square; multiples of 32. A side named twice is drawn twice as often.
        losses: What the network is trained on: one of vfl, focal, bce and labels, and boxes.
        loss_weights: Weight of each term; default: 1 for classification, 5 for loss_bbox, 2 for
            loss_giou.
        loss_alpha: Weight of the varifocal loss's negatives, or of the focal loss's positives.
        loss_gamma: Exponent of both.
        matcher: Assigns queries to boxes; default: with the official costs.
        voc: Also compute the scores of Pascal VOC, at IoU 0.5, in validation and test.
        score_threshold: Least score, 0 to 1, of a detection that is drawn in pictures; it does
            not change any number.
        pictures: Images drawn in the sheet that a test writes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: str | None = None,
        skip_weights: list[str] | None = None,
        optimizer: OptimizerConfig | None = None,
        schedule: Schedule | None = None,
        param_groups: list[ParameterPattern] | None = None,
        multi_scale: list[int] | None = None,
        losses: Sequence[str] = ("vfl", "boxes"),
        loss_weights: dict[str, float] | None = None,
        loss_alpha: float = 0.75,
        loss_gamma: float = 2.0,
        matcher: HungarianMatcher | None = None,
        voc: bool = False,
        score_threshold: float = 0.4,
        pictures: int = 8,
    ) -> None:
        super().__init__()
        wrong = [side for side in multi_scale or () if side < _STRIDE or side % _STRIDE]
        if wrong:
            raise ValueError(f"multi_scale takes multiples of {_STRIDE}, got {wrong[0]}")
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must lie between 0 and 1, got {score_threshold}")
        self.model = model
        self.num_classes = int(model.num_classes)
        self.optimizer = optimizer or AdamW(lr=1e-4, weight_decay=1e-4)
        self.schedule = schedule or ConstantSchedule()
        self.param_groups = list(param_groups or ())
        self.multi_scale = list(multi_scale or ())
        self.voc, self.score_threshold, self.pictures = voc, score_threshold, pictures
        self.criterion = RTDETRCriterion(
            self.num_classes,
            matcher,
            losses=losses,
            weights=loss_weights,
            alpha=loss_alpha,
            gamma=loss_gamma,
            reduce_mean=self._mean_over_processes,
        )
        if weights is not None:
            start_detector(model, weights, skip_weights or ())

    @property
    def example_input(self) -> np.ndarray | None:
        """One image of the training size, for the model summary; None without that size."""
        shapes = getattr(self.trainer.datamodule, "input_shapes", None)
        return None if shapes is None else np.zeros((1, *shapes[0][1:]), np.float32)

    def setup(self, stage: str) -> None:
        """Compare model and data before any work.

        Raises:
            ValueError: Their numbers of classes differ, or there is no data module that knows the
                annotations.
        """
        data = self.trainer.datamodule
        if stage != "predict" and not hasattr(data, "val_annotations"):
            raise ValueError(
                "RTDETRTask evaluates with the annotations of a data module (val_annotations), "
                f"got {type(data).__name__}; pass datamodule=..., such as a CocoDataModule"
            )
        check_classes(self.num_classes, data)

    def configure_optimizers(self) -> Any:
        groups = pattern_groups(self.model.named_parameters(), self.param_groups)
        return self.optimizer.build(groups), self.schedule

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        size = self.training_size(batch_idx)
        output = self.model(_network_input(batch), batch.targets, size)
        terms = self.criterion(output, batch.targets)
        loss = sum(terms.values())
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        return loss

    def training_size(self, batch_idx: int) -> tuple[int, int] | None:
        """Height and width that a batch is resized to; the same again after a restart."""
        if not self.multi_scale:
            return None
        trainer = self.trainer
        seed = position_seed(trainer.seed, "multi_scale", trainer.global_step, batch_idx)
        side = int(np.random.default_rng(seed).choice(self.multi_scale))
        return side, side

    def on_validation_epoch_start(self) -> None:
        data: Any = self.trainer.datamodule
        self.evaluator = CocoEvaluator(data.val_annotations(), data.category_ids)

    def validation_step(self, batch: Any, batch_idx: int) -> list[ImageDetections]:
        """Collect the detections of each image, and return them."""
        found = self._detect(batch)
        for target, image in zip(batch.targets, found, strict=True):
            self.evaluator.update(target.image_id, image.labels, image.boxes, image.scores)
        return found

    def prediction_images(
        self, batch: Any, outputs: Sequence[ImageDetections]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """What was annotated and what was found in each image (`ImageLogger`)."""
        for index, (target, found) in enumerate(zip(batch.targets, outputs, strict=True)):
            sheet = detection_sheet(
                [original_picture(batch, index)],
                [annotated_boxes(target)],
                [shown_boxes(found, self.score_threshold)],
                self._class_names(),
            )
            yield f"predictions/{target.name}", sheet

    def on_validation_epoch_end(self) -> None:
        self.evaluator.reduce(self.trainer.gather)
        scores = voc_scores(self.evaluator) if self.voc else None
        self._log_scores("val", self.evaluator.scores(), scores)

    def on_test_epoch_start(self) -> None:
        self.report = DetectionReport(
            self.trainer,
            self._class_names(),
            threshold=self.score_threshold,
            pictures=self.pictures,
            voc=self.voc,
        )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.report.add(batch, self._detect(batch))

    def on_test_epoch_end(self) -> None:
        self.report.reduce()
        self._log_scores("test", *self.report.scores())

    def on_test_end(self) -> None:
        self.report.publish()

    def on_predict_epoch_start(self) -> None:
        self.predicted: list[dict[str, Any]] = []

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, ImageDetections]:
        """Name of each image -> its detections, best first, in pixels of the original image."""
        names = [target.name for target in batch.targets]
        return dict(zip(names, self._detect(batch), strict=True))

    def on_predict_batch_end(
        self, outputs: dict[str, ImageDetections], batch: Any, batch_idx: int
    ) -> None:
        if self.trainer.run is None:
            return
        data: Any = self.trainer.datamodule
        ids = getattr(data, "category_ids", list(range(self.num_classes)))
        for target, image in zip(batch.targets, outputs.values(), strict=True):
            self.predicted += coco_records(target.image_id, image, ids)
        found = list(outputs.values())
        write_pictures(self.trainer, batch, found, self._class_names(), self.score_threshold)

    def on_predict_end(self) -> None:
        if self.trainer.run is not None:
            write_detections(self.trainer.run.path / "detections.json", self.predicted)

    def _detect(self, batch: Any) -> list[ImageDetections]:
        """The best detections of each image, best first, in pixels of the original image."""
        output = self.model(_network_input(batch))
        sizes = np.array([target.original_size for target in batch.targets])
        return [rounded(*found) for found in top_predictions(output.logits, output.boxes, sizes)]

    def _mean_over_processes(self, count: np.ndarray) -> np.ndarray:
        return self.trainer.sum_over_processes(count) / self.trainer.world_size

    def _class_names(self) -> list[str]:
        names = getattr(self.trainer.datamodule, "class_names", None)
        return list(names) if names else [f"class {i}" for i in range(self.num_classes)]

    def _log_scores(self, prefix: str, coco: CocoScores, voc: VocScores | None) -> None:
        """Log what is defined; there may be nothing large, or nothing at all."""
        numbers = coco.numbers | ({} if voc is None else voc.numbers())
        if math.isnan(coco.ap):
            _log.warning("nothing is annotated in the images evaluated: %s/ap is undefined", prefix)
        for name, value in numbers.items():
            if not math.isnan(value):
                self.log(f"{prefix}/{name}", value, prog_bar=name in ("ap", "ap50"))


def _network_input(batch: Any) -> jt.Var:
    """(B, 3, H, W) float32, 0 to 1."""
    return batch.image.float32() / 255
