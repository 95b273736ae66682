from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.ops.resize import adaptive_average_pool, resize_bilinear

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol" / "protocol.npz"
SIZES = {"up": (3, 4), "odd": (10, 13), "mid": (15, 20), "big": (30, 40)}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(PROTOCOL) as archive:
        kinds = ("pool7/", "resize_")
        return {key: archive[key] for key in archive.files if key.startswith(kinds)}


@pytest.mark.parametrize("case", SIZES)
def test_pooling_and_resizing_equal_the_recording(recorded: dict, case: str) -> None:
    x = jt.array(golden_input(f"protocol/pool/{case}", (1, 2, *SIZES[case])))

    pooled = adaptive_average_pool(x, 7).numpy()
    resized = resize_bilinear(x, (9, 11)).numpy()
    aligned = resize_bilinear(x, (9, 11), align_corners=True).numpy()

    # The recording's own positions are in single precision.
    np.testing.assert_allclose(pooled, recorded[f"pool7/{case}"], atol=1e-6)
    np.testing.assert_allclose(resized, recorded[f"resize_false/{case}"], atol=1e-5)
    np.testing.assert_allclose(aligned, recorded[f"resize_true/{case}"], atol=1e-5)


def test_gradient_of_resizing_is_its_transpose(rng: np.random.Generator) -> None:
    x, up = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 7, 3))
    source, upstream = (jt.array(a.astype(np.float32)) for a in (x, up))

    resized = resize_bilinear(source, (7, 3))
    gradient = jt.grad((resized * upstream).sum(), source)

    # <A x, u> = <x, A^T u> for a linear map A.
    left = (resized.numpy().astype(np.float64) * up).sum()
    assert left == pytest.approx((gradient.numpy().astype(np.float64) * x).sum(), abs=1e-4)
    assert np.abs(gradient.numpy()).min() > 0


def test_a_single_pixel_fills_the_map() -> None:
    x = jt.array(np.float32([[[[3.0]]]]))

    assert (resize_bilinear(x, (4, 5)).numpy() == 3).all()
    assert (resize_bilinear(x, (4, 5), align_corners=True).numpy() == 3).all()
    assert (adaptive_average_pool(x, 7).numpy() == 3).all()
