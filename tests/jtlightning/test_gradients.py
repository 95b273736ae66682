from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jtlightning.gradients import clip_by_norm, clip_by_value, gradient_norm


@pytest.fixture
def arrays(rng: np.random.Generator) -> list[np.ndarray]:
    # The last is larger than a piece of the sum, and no multiple of it.
    shapes = [(3, 4), (7,), (300, 900)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def norm_of(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays)))


def test_the_norm_is_that_of_all_elements_together(arrays: list[np.ndarray]) -> None:
    norm = gradient_norm([jt.array(a) for a in arrays])
    # Sums are in double precision; what is left is the rounding of the result.
    assert norm.item() == pytest.approx(norm_of(arrays), rel=1e-7)


def test_the_norm_of_huge_gradients_does_not_overflow() -> None:
    assert gradient_norm([jt.array(np.full(4, 1e30, np.float32))]).item() == pytest.approx(2e30)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_element_makes_the_norm_not_finite(arrays: list[np.ndarray], bad: float) -> None:
    arrays[2][299, 899] = bad
    assert not np.isfinite(gradient_norm([jt.array(a) for a in arrays]).item())


def test_clipping_by_norm_and_by_value(arrays: list[np.ndarray]) -> None:
    gradients = [jt.array(a) for a in arrays]
    clip_by_norm(gradients, gradient_norm(gradients), 0.5)
    for array, gradient in zip(arrays, gradients, strict=True):
        np.testing.assert_allclose(gradient.numpy(), array * 0.5 / norm_of(arrays), rtol=1e-5)
    gradients = [jt.array(a) for a in arrays]
    clip_by_value(gradients, 0.3)
    np.testing.assert_array_equal(gradients[1].numpy(), arrays[1].clip(-0.3, 0.3))
