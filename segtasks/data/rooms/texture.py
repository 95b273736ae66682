"""Procedural textures: two colours mixed by a pattern, with an optional frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from segtasks.data.rooms.shapes import Surface

Pattern = Literal["plain", "stripes", "checker", "planks", "clouds", "dots"]
PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "checker", "planks", "clouds", "dots")
NOISE_SIZE = 64


@dataclass(frozen=True)
class Material:
    """How a surface is painted.

    Attributes:
        colour: linear RGB in 0 to 1.
        second: the pattern's other colour.
        pattern: how the two colours alternate.
        scale_m: size of one element of the pattern.
        frame_m: width of the frame along the edges of each face, 0 for none.
        frame: its colour.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: Pattern = "plain"
    scale_m: float = 0.3
    frame_m: float = 0.0
    frame: tuple[float, float, float] = (0.0, 0.0, 0.0)


def value_noise(u: np.ndarray, v: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Interpolate a square table of random numbers smoothly; it repeats every NOISE_SIZE units.

    Args:
        u: first coordinate, any shape.
        v: second coordinate, of the same shape.
        table: (NOISE_SIZE, NOISE_SIZE) values at whole coordinates.
    """
    column, row = np.floor(u), np.floor(v)
    a, b = u - column, v - row
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    mask = NOISE_SIZE - 1
    left, top = column.astype(np.int32) & mask, row.astype(np.int32) & mask
    right, bottom = (left + 1) & mask, (top + 1) & mask
    upper = table[top, left] * (1 - a) + table[top, right] * a
    lower = table[bottom, left] * (1 - a) + table[bottom, right] * a
    return upper * (1 - b) + lower * b


def _mix(pattern: Pattern, u: np.ndarray, v: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return how much (0 to 1) of the second colour shows; u, v in pattern elements."""
    if pattern == "plain":
        return np.zeros_like(u)
    if pattern == "stripes":
        return np.mod(np.floor(u), 2)
    if pattern == "checker":
        return np.mod(np.floor(u) + np.floor(v), 2)
    if pattern == "dots":
        a, b = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        return (a * a + b * b < 0.11).astype(np.float32)
    if pattern == "clouds":
        noise = 0.65 * value_noise(u, v, table) + 0.35 * value_noise(2.7 * u, 2.7 * v, table)
        return np.clip(3 * noise - 1, 0, 1)
    row = np.floor(v)
    # Each board has its own shade; a third of a length shifts it against its neighbour.
    board = np.floor(u / 5 + np.mod(row, 3) / 3)
    mask = NOISE_SIZE - 1
    shade = table[row.astype(np.int32) & mask, board.astype(np.int32) & mask]
    return np.where(v - row < 0.08, 1, 0.6 * shade).astype(np.float32)


def paint(material: Material, surface: Surface, table: np.ndarray) -> np.ndarray:
    """Return linear colours (3, P) float32 of the points of a surface."""
    u, v = surface.u / material.scale_m, surface.v / material.scale_m
    mix = _mix(material.pattern, u, v, table)
    wear = np.float32(0.9) + np.float32(0.2) * value_noise(4 * surface.u, 4 * surface.v, table)
    framed = surface.margin < material.frame_m
    channels = [
        np.where(framed, f, a + (b - a) * mix) * wear
        for a, b, f in zip(material.colour, material.second, material.frame, strict=True)
    ]
    return np.stack(channels).astype(np.float32)
