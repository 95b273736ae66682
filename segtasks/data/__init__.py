"""Data sets, transforms and data modules, in NumPy."""

from __future__ import annotations

from segtasks.data.detection.modules import (
    CocoDataModule,
    RoomsDetectionDataModule,
    VocDataModule,
)
from segtasks.data.modules import RGBDDataModule, RoomsDataModule
from segtasks.data.transforms.detection import DetectionAugmentation

__all__ = [
    "CocoDataModule",
    "DetectionAugmentation",
    "RGBDDataModule",
    "RoomsDataModule",
    "RoomsDetectionDataModule",
    "VocDataModule",
]
