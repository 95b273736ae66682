from __future__ import annotations

import numpy as np
import pytest

from segtasks.data.rooms.sensor import DEPTH_RANGE_M, measure_depth, photograph
from segtasks.data.rooms.texture import NOISE_SIZE

SIZE = (60, 80)
NO_BLOTS = np.zeros((NOISE_SIZE, NOISE_SIZE), np.float32)


def measure(depth_m: np.ndarray, rng: np.random.Generator, cosine: float = 1.0) -> np.ndarray:
    return measure_depth(depth_m, np.full(depth_m.shape, cosine), 0.7, NO_BLOTS, rng)


def test_a_flat_wall_is_read_in_steps_of_the_range(rng: np.random.Generator) -> None:
    depth = measure(np.full(SIZE, 2.0, np.float32), rng)

    assert (depth > 0).all()
    assert depth.mean() * DEPTH_RANGE_M / 255 == pytest.approx(2, abs=0.002)


def test_near_things_throw_a_shadow_to_their_right(rng: np.random.Generator) -> None:
    depth_m = np.full(SIZE, 4.0, np.float32)
    depth_m[:, 30:50] = 0.8

    depth = measure(depth_m, rng)

    # Focal length 80 / 1.4 pixels, projector 6 cm aside: 57.1 * 0.06 * (1/0.8 - 1/4) = 3.4.
    assert np.flatnonzero(depth[20] == 0).tolist() == [50, 51, 52]


def test_what_is_too_near_or_too_far_is_a_hole(rng: np.random.Generator) -> None:
    depth_m = np.full(SIZE, 2.0, np.float32)
    depth_m[:20], depth_m[40:] = 0.3, DEPTH_RANGE_M + 0.1

    holes = measure(depth_m, rng) == 0

    assert holes[:20].all()
    assert not holes[20:40].any()
    assert holes[40:].all()


def test_grazing_rays_often_find_no_echo(rng: np.random.Generator) -> None:
    depth_m = np.full(SIZE, 2.0, np.float32)

    # A ray is lost when its cosine falls below a number drawn from 0 to 0.16.
    assert (measure(depth_m, rng, cosine=0.04) == 0).mean() == pytest.approx(0.75, abs=0.03)
    assert (measure(depth_m, rng, cosine=0.17) > 0).all()


def test_blots_follow_the_table(rng: np.random.Generator) -> None:
    table = rng.random((NOISE_SIZE, NOISE_SIZE), dtype=np.float32)
    depth_m = np.full((300, 400), 2.0, np.float32)

    depth = measure_depth(depth_m, np.ones_like(depth_m), 0.7, table, rng)

    assert 0.001 < (depth == 0).mean() < 0.03


def test_the_photograph_exposes_for_the_middle_and_keeps_the_order_of_channels(
    rng: np.random.Generator,
) -> None:
    radiance = (
        np.ones((3, *SIZE), np.float32) * np.array([0.3, 0.2, 0.1], np.float32)[:, None, None]
    )

    dark, bright = photograph(radiance * 0.5, rng), photograph(radiance * 4, rng)

    for image in (dark, bright):
        assert image.shape == (*SIZE, 3)
        red, green, blue = image.reshape(-1, 3).mean(axis=0)
        # The middle value 0.2 is exposed to 0.17 to 0.3, its root to 105 to 140, give or take tint.
        assert 98 < green < 147
        # Roots of 3:2 and 1:2, tinted by 4 % at most.
        assert red / green == pytest.approx(1.5**0.5, rel=0.09)
        assert blue / green == pytest.approx(0.5**0.5, rel=0.09)
