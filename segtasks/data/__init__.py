"""Data sets, transforms and data modules, in NumPy."""

from __future__ import annotations

from segtasks.data.modules import RGBDDataModule, RoomsDataModule

__all__ = ["RGBDDataModule", "RoomsDataModule"]
