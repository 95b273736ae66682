from __future__ import annotations

import jittor as jt
import numpy as np

from segtasks.models.layers import BatchNorm2d, DropPath, LayerNorm2d, Linear2d


def test_layer_norm_keeps_its_digits_on_a_large_mean(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 16, 3, 5)) + 1000
    norm = LayerNorm2d(16)
    norm.weight, norm.bias = jt.arange(16).float32(), jt.arange(16).float32() * 2

    wide = x.astype(np.float32).astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    scale = np.arange(16).reshape(1, 16, 1, 1)
    # float32 keeps 6e-5 of the inputs around 1000; E[x^2] - E[x]^2 would be wrong by 0.1 and more.
    np.testing.assert_allclose(
        norm(jt.array(x.astype(np.float32))).numpy(), expected * scale + 2 * scale, atol=5e-3
    )


def test_running_variance_is_unbiased_and_evaluation_uses_it(rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((2, 4, 3, 5)) + 7).astype(np.float32)
    norm = BatchNorm2d(4, momentum=0.25)

    normalised = norm(jt.array(x)).numpy()
    axes = (0, 2, 3)
    mean, variance = x.mean(axes), x.var(axes, ddof=1)

    np.testing.assert_allclose(normalised.mean(axes), 0, atol=1e-6)
    np.testing.assert_allclose(normalised.var(axes), 1, atol=1e-5)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.75 + 0.25 * variance, rtol=1e-6)
    norm.eval()
    expected = (x - 0.25 * mean.reshape(1, 4, 1, 1)) / np.sqrt(
        0.75 + 0.25 * variance.reshape(1, 4, 1, 1) + 1e-5
    )
    np.testing.assert_allclose(norm(jt.array(x)).numpy(), expected, atol=1e-5)


def test_linear_acts_on_channels(rng: np.random.Generator) -> None:
    layer = Linear2d(3, 5)
    x = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)

    expected = np.einsum("oc,bchw->bohw", layer.weight.numpy(), x)
    expected += layer.bias.numpy().reshape(1, 5, 1, 1)

    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, atol=1e-5)


def test_drop_path_drops_whole_samples_and_scales_the_rest() -> None:
    jt.set_seed(3)
    drop = DropPath(0.25)

    kept = drop(jt.ones((4000, 2, 1, 1))).numpy().reshape(4000, 2)

    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (kept[:, 0] == kept[:, 1]).all()
    # 4000 draws: the share of zeros has a standard deviation of 0.007.
    assert abs((kept == 0).mean() - 0.25) < 0.03
    drop.eval()
    assert (drop(jt.ones((8, 2, 1, 1))).numpy() == 1).all()
