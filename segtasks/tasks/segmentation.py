"""RGB-D semantic segmentation as a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import jittor as jt
import numpy as np
from jittor import nn

from jtlightning.optim import AdamW, OptimizerConfig, PolySchedule, Schedule
from jtlightning.task import Task
from segtasks.data.samples import IGNORE_INDEX
from segtasks.inference import Protocol, SingleScale
from segtasks.losses.segmentation import cross_entropy
from segtasks.metrics.segmentation import ConfusionMatrix, SegmentationScores
from segtasks.models.dformer import parameter_groups
from segtasks.tasks.checks import check_classes
from segtasks.tasks.report import SegmentationReport, sample_sheets, write_predictions
from segtasks.tasks.weights import start_segmenter


class SegmentationTask(Task):
    """Trains and evaluates a network that maps an image and its depth to logits.

    Its batches are `segtasks.data.samples.SegmentationBatch`, on the device.

    Args:
        model: The network: (B, 3, H, W) image and depth -> (B, K, H, W) logits; its `num_classes`
            must be the data's.
        weights: A file whose weights the network starts from, a .ckpt, .safetensors, .pth of
            PyTorch or .pkl of Jittor, for DFormer also with the names of the earlier Jittor port;
            all of them must fit. An average in it is preferred.
        skip_weights: Parts of the network that keep their own values, by the start of their names,
            such as `decode_head.conv_seg` for another number of classes, or `decode_head` for a
            pre-trained backbone; then the file may hold more than the network, too.
        optimizer: AdamW at 6e-5 with decay 0.01, DFormer's, unless given.
        schedule: Poly 0.9 without warm-up unless given.
        param_groups: `all` trains every parameter (from scratch); `official` leaves out what the
            official fine-tuning leaves out, such as v1's layer scales.
        protocol: How scores are computed in validation, test and prediction.
        baselines: Also test with the depth blanked (its mean everywhere), and compare with the
            most frequent class of each position in the training labels.
        pictures: Samples drawn in the sheet that a test writes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: str | None = None,
        skip_weights: list[str] | None = None,
        optimizer: OptimizerConfig | None = None,
        schedule: Schedule | None = None,
        param_groups: Literal["official", "all"] = "all",
        protocol: Protocol | None = None,
        baselines: bool = False,
        pictures: int = 8,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer or AdamW(lr=6e-5, weight_decay=0.01)
        self.schedule = schedule or PolySchedule()
        self.param_groups = param_groups
        self.protocol = protocol or SingleScale()
        self.baselines = baselines
        self.pictures = pictures
        self.num_classes = int(model.num_classes)
        if weights is not None:
            start_segmenter(model, weights, skip_weights or ())

    @property
    def example_input(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Image and depth of one training crop, for the model summary; None without their size."""
        shapes = getattr(self.trainer.datamodule, "input_shapes", None)
        if shapes is None:
            return None
        image, depth = (np.zeros((1, *shape[1:]), np.float32) for shape in shapes)
        return image, depth

    def setup(self, stage: str) -> None:
        """Compare model and data before any work.

        Raises:
            ValueError: Their numbers of classes differ.
        """
        check_classes(self.num_classes, self.trainer.datamodule)

    def configure_optimizers(self) -> Any:
        decay = float(getattr(self.optimizer, "weight_decay", 0.0))
        groups = parameter_groups(self.model, self.param_groups, decay)
        return self.optimizer.build(groups), self.schedule

    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        loss = cross_entropy(self.model(batch.image, batch.depth), batch.label, IGNORE_INDEX)
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.confusion = ConfusionMatrix(self.num_classes, IGNORE_INDEX)

    def validation_step(self, batch: Any, batch_idx: int) -> np.ndarray:
        """Count the batch; returns the predicted classes, (B, H, W)."""
        prediction = self._predict(batch.image, batch.depth)
        self.confusion.update(prediction, batch.label.numpy())
        return prediction

    def prediction_images(
        self, batch: Any, outputs: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        """RGB, depth, labels and prediction of each sample beside each other (`ImageLogger`)."""
        return sample_sheets(self.trainer, batch, outputs, self.num_classes)

    def on_validation_epoch_end(self) -> None:
        self.confusion.reduce(self.trainer.sum_over_processes)
        self._log_scores("val", self.confusion.scores())

    def on_test_epoch_start(self) -> None:
        self.report = SegmentationReport(
            self.trainer, self.num_classes, self.protocol, self.baselines, self.pictures
        )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        prediction = self._predict(batch.image, batch.depth)
        without_depth = None
        if self.baselines:
            # 0 is the mean of the normalised depth.
            without_depth = self._predict(batch.image, jt.zeros_like(batch.depth))
        self.report.add(batch, prediction, without_depth)

    def on_test_epoch_end(self) -> None:
        self.report.reduce()
        self._log_scores("test", self.report.scores())

    def on_test_end(self) -> None:
        self.report.publish()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, np.ndarray]:
        """Name of each sample -> (H, W) uint8 classes."""
        prediction = self._predict(batch.image, batch.depth).astype(np.uint8)
        return dict(zip(batch.names, prediction, strict=True))

    def on_predict_batch_end(
        self, outputs: dict[str, np.ndarray], batch: Any, batch_idx: int
    ) -> None:
        if self.trainer.run is not None:
            write_predictions(self.trainer, batch, list(outputs.values()))

    def _predict(self, image: jt.Var, depth: jt.Var) -> np.ndarray:
        """Most probable class of every pixel, (B, H, W)."""
        index, _ = jt.argmax(self.protocol(self.model, image, depth), dim=1)
        return index.numpy()

    def _log_scores(self, prefix: str, scores: SegmentationScores) -> None:
        self.log(f"{prefix}/miou", scores.miou, prog_bar=True)
        self.log(f"{prefix}/macc", scores.macc)
        self.log(f"{prefix}/pixel_accuracy", scores.pixel_accuracy)
        self.log(f"{prefix}/fwiou", scores.fwiou)
