"""RT-DETR for object detection, with the official parameter names."""

from __future__ import annotations

from segtasks.models.rtdetr.backbone import PResNet
from segtasks.models.rtdetr.decoder import RTDETRTransformer
from segtasks.models.rtdetr.deploy import merge_repvgg
from segtasks.models.rtdetr.detector import RTDETR
from segtasks.models.rtdetr.encoder import HybridEncoder
from segtasks.models.rtdetr.outputs import Denoising, Predictions, RTDETROutput
from segtasks.models.rtdetr.postprocess import Detections, top_predictions
from segtasks.models.rtdetr.variants import (
    rtdetr_r18,
    rtdetr_r34,
    rtdetr_r50,
    rtdetr_r50_m,
    rtdetr_r101,
)

__all__ = [
    "RTDETR",
    "Denoising",
    "Detections",
    "HybridEncoder",
    "PResNet",
    "Predictions",
    "RTDETROutput",
    "RTDETRTransformer",
    "merge_repvgg",
    "rtdetr_r18",
    "rtdetr_r34",
    "rtdetr_r50",
    "rtdetr_r50_m",
    "rtdetr_r101",
    "top_predictions",
]
