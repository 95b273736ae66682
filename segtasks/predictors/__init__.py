"""Trained networks asked about images, from Python; `segtasks predict` is built on it.

Nothing here imports Jittor before a network is made.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from segtasks.predictors.detection import DetectionResult as DetectionResult
    from segtasks.predictors.detection import Detector as Detector
    from segtasks.predictors.inputs import PredictionError as PredictionError
    from segtasks.predictors.loading import load_detector as load_detector
    from segtasks.predictors.loading import load_segmenter as load_segmenter
    from segtasks.predictors.result import SegmentationResult as SegmentationResult
    from segtasks.predictors.segmentation import Segmenter as Segmenter

_HOMES = {
    "DetectionResult": "detection",
    "Detector": "detection",
    "PredictionError": "inputs",
    "SegmentationResult": "result",
    "Segmenter": "segmentation",
    "load_detector": "loading",
    "load_segmenter": "loading",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
