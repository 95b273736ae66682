"""Callbacks: what happens beside the loop. Loaded on first use; some of them import Jittor."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jtlightning.callbacks.base import Callback
    from jtlightning.callbacks.batch_size_finder import BatchSizeFinder
    from jtlightning.callbacks.config_saver import ConfigSaver
    from jtlightning.callbacks.early_stopping import EarlyStopping
    from jtlightning.callbacks.ema import EMA
    from jtlightning.callbacks.finetuning import BackboneFinetuning
    from jtlightning.callbacks.image_logger import ImageLogger
    from jtlightning.callbacks.lr_finder import LearningRateFinder
    from jtlightning.callbacks.lr_monitor import LearningRateMonitor
    from jtlightning.callbacks.memory_guard import MemoryGuard
    from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
    from jtlightning.callbacks.nan_guard import NaNGuard
    from jtlightning.callbacks.prediction_writer import BasePredictionWriter, PredictionWriter
    from jtlightning.callbacks.progress import RichProgressBar
    from jtlightning.callbacks.save_on_exception import SaveOnException
    from jtlightning.callbacks.summary import ModelSummary
    from jtlightning.callbacks.swa import StochasticWeightAveraging
    from jtlightning.callbacks.throughput import Throughput
    from jtlightning.callbacks.timer import Timer
    from jtlightning.callbacks.weight_stats import WeightStats

__all__ = [
    "EMA",
    "BackboneFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "ConfigSaver",
    "EarlyStopping",
    "ImageLogger",
    "LearningRateFinder",
    "LearningRateMonitor",
    "MemoryGuard",
    "ModelCheckpoint",
    "ModelSummary",
    "NaNGuard",
    "PredictionWriter",
    "RichProgressBar",
    "SaveOnException",
    "StochasticWeightAveraging",
    "Throughput",
    "Timer",
    "WeightStats",
]

_MODULES = {
    "BackboneFinetuning": "finetuning",
    "BasePredictionWriter": "prediction_writer",
    "BatchSizeFinder": "batch_size_finder",
    "Callback": "base",
    "ConfigSaver": "config_saver",
    "EMA": "ema",
    "EarlyStopping": "early_stopping",
    "ImageLogger": "image_logger",
    "LearningRateFinder": "lr_finder",
    "LearningRateMonitor": "lr_monitor",
    "MemoryGuard": "memory_guard",
    "ModelCheckpoint": "model_checkpoint",
    "ModelSummary": "summary",
    "NaNGuard": "nan_guard",
    "PredictionWriter": "prediction_writer",
    "RichProgressBar": "progress",
    "SaveOnException": "save_on_exception",
    "StochasticWeightAveraging": "swa",
    "Throughput": "throughput",
    "Timer": "timer",
    "WeightStats": "weight_stats",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
