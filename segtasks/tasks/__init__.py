"""Tasks: models, losses, metrics and inference put together for the trainer."""

from __future__ import annotations

from segtasks.tasks.detection import RTDETRTask
from segtasks.tasks.segmentation import SegmentationTask

__all__ = ["RTDETRTask", "SegmentationTask"]
