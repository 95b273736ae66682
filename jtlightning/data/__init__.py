"""Data for training: NumPy only, order and randomness from (seed, epoch, index)."""

from __future__ import annotations
