"""The cameras: noise, exposure and gamma of the colours, noise and holes of the depth."""

from __future__ import annotations

import numpy as np

from segtasks.data.rooms.texture import value_noise

DEPTH_RANGE_M = 6.0
_NEAREST_M = 0.4
_BASELINE_M = 0.06


def photograph(radiance: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the image (H, W, 3) uint8 RGB of linear light (3, H, W)."""
    # The lens spreads each point a little, which also smooths the edges of the single rays.
    soft = _smooth(_smooth(radiance, axis=1), axis=2)
    middle = float(np.sort(soft, axis=None)[soft.size // 2])
    gain = generator.uniform(0.17, 0.3) / max(middle, 0.02)
    tint = generator.uniform(0.92, 1.08, (3, 1, 1)).astype(np.float32)
    exposed = soft * tint * np.float32(gain)
    sigma = np.float32(generator.uniform(0.004, 0.016))
    noise = sigma * generator.standard_normal(soft.shape, dtype=np.float32)
    # A square root stands for the display's gamma: unlike a power it is exact everywhere.
    encoded = np.sqrt(np.clip(exposed, 0, 1)) + noise
    pixels = np.rint(np.clip(encoded, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _smooth(values: np.ndarray, axis: int) -> np.ndarray:
    """Average each value with its neighbours, weights 1 4 1."""
    length = values.shape[axis]
    before = np.take(values, np.maximum(np.arange(length) - 1, 0), axis=axis)
    after = np.take(values, np.minimum(np.arange(length) + 1, length - 1), axis=axis)
    return (before + 4 * values + after) / np.float32(6)


def measure_depth(
    depth_m: np.ndarray,
    cosine: np.ndarray,
    half_width: float,
    table: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return what a structured-light sensor reads, (H, W) uint8: dark is near, 0 a hole.

    Args:
        depth_m: (H, W) exact distances along the optical axis.
        cosine: (H, W) cosine between ray and surface.
        half_width: half the image width at distance 1, which gives the focal length.
        table: random numbers for `value_noise`.
        generator: for the noise.
    """
    sigma = np.float32(0.003) + np.float32(0.0016) * depth_m * depth_m
    noisy = depth_m + sigma * generator.standard_normal(depth_m.shape, dtype=np.float32)
    coded = np.clip(np.rint(noisy * np.float32(255 / DEPTH_RANGE_M)), 1, 255)
    holes = (depth_m < _NEAREST_M) | (depth_m > DEPTH_RANGE_M)
    holes |= cosine < 0.16 * generator.random(depth_m.shape, dtype=np.float32)
    holes |= _hidden_from_projector(depth_m, half_width)
    holes |= _blots(depth_m.shape, table)
    return np.where(holes, 0, coded).astype(np.uint8)


def _hidden_from_projector(depth_m: np.ndarray, half_width: float) -> np.ndarray:
    """Find the shadow that near things throw to their right: the projector sits to the left."""
    width = depth_m.shape[1]
    disparity = np.float32(_BASELINE_M * width / (2 * half_width)) / depth_m
    hidden = np.zeros(depth_m.shape, bool)
    for shift in range(1, min(width - 1, int(disparity.max()) + 1)):
        hidden[:, shift:] |= disparity[:, :-shift] - disparity[:, shift:] > shift
    return hidden


def _blots(shape: tuple[int, ...], table: np.ndarray) -> np.ndarray:
    """Return a few per cent of the pixels in ragged blots of the same size at any resolution."""
    rows, columns = np.indices(shape, dtype=np.float32)
    unit = np.float32(14 / shape[0])
    coarse = value_noise(columns * unit, rows * unit, table)
    fine = value_noise(columns * (4 * unit), rows * (4 * unit), table.T)
    return 0.7 * coarse + 0.3 * fine > 0.87
