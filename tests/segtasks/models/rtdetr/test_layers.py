from __future__ import annotations

from typing import cast

import jittor as jt
import numpy as np
import pytest

from segtasks.models.rtdetr.layers import (
    MLP,
    Activation,
    ConvNorm,
    FrozenBatchNorm2d,
    LayerNorm,
    MultiheadAttention,
    activation,
)
from tests.segtasks.models.rtdetr.golden import load_golden_weights


def reference_attention(
    attention: MultiheadAttention, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """One image; in float64, head by head."""
    weight = np.split(attention.in_proj_weight.numpy().astype(np.float64), 3)
    bias = np.split(attention.in_proj_bias.numpy().astype(np.float64), 3)
    queries, keys, values = (
        np.split(x @ w.T + b, attention.heads, -1)
        for x, w, b in zip((q, k, v), weight, bias, strict=True)
    )
    mixed = []
    for a, b, c in zip(queries, keys, values, strict=True):
        scores = np.where(mask, -np.inf, a @ b.T / np.sqrt(a.shape[-1]))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ c)
    out = attention.out_proj
    return np.concatenate(mixed, -1) @ out.weight.numpy().T + out.bias.numpy()


@pytest.mark.parametrize("itself", [True, False], ids=["to itself", "to others"])
def test_attention_follows_the_formula_and_the_mask(itself: bool, rng: np.random.Generator) -> None:
    attention = MultiheadAttention(16, 2)
    load_golden_weights(attention)
    keys = 5 if itself else 7
    q, k, v = (rng.standard_normal((2, n, 16)).astype(np.float32) for n in (5, keys, keys))
    k = q if itself else k
    mask = rng.random((5, keys)) < 0.4
    mask[:, 0] = False
    query = jt.array(q)

    out = attention(query, query if itself else jt.array(k), jt.array(v), jt.array(mask)).numpy()

    for i in range(2):
        expected = reference_attention(attention, q[i], k[i], v[i], mask)
        np.testing.assert_allclose(out[i], expected, atol=1e-5)


def test_attention_starts_as_officially() -> None:
    attention = MultiheadAttention(64, 8)
    packed = np.abs(attention.in_proj_weight.numpy())
    out = np.abs(attention.out_proj.weight.numpy())

    assert packed.shape == (192, 64)
    assert 0.98 * np.sqrt(6 / 256) < packed.max() <= np.sqrt(6 / 256)
    assert 0.98 / 8 < out.max() <= 1 / 8
    assert not attention.in_proj_bias.numpy().any()
    assert not attention.out_proj.bias.numpy().any()


def test_layer_norm_keeps_its_digits_on_a_large_mean(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((2, 5, 16)) + 1000).astype(np.float32)
    norm = LayerNorm(16)
    load_golden_weights(norm)

    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = expected * norm.weight.numpy() + norm.bias.numpy()
    # float32 keeps 6e-5 of the inputs around 1000; E[x^2] - E[x]^2 would be wrong by 0.1 and more.
    np.testing.assert_allclose(norm(jt.array(x)).numpy(), expected, atol=1e-3)


def test_frozen_norm_ignores_the_batch_and_takes_no_gradients(rng: np.random.Generator) -> None:
    norm = FrozenBatchNorm2d(4)
    load_golden_weights(norm)
    before = {name: tensor.numpy() for name, tensor in norm.named_parameters()}
    x = rng.standard_normal((2, 4, 3, 5)).astype(np.float32)
    norm.eval()
    norm.train()

    out = norm(jt.array(x)).numpy()

    weight, bias, mean, variance = (
        before[name].reshape(1, 4, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    np.testing.assert_allclose(
        out, (x - mean) / np.sqrt(variance + 1e-5) * weight + bias, atol=1e-6
    )
    for name, tensor in norm.named_parameters():
        assert tensor.is_stop_grad(), name
        assert tensor.persistent is True, name  # a buffer to the trainer's summary
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_mlp_has_relu_between_its_layers_only(rng: np.random.Generator) -> None:
    mlp = MLP(3, 8, 2, 3)
    load_golden_weights(mlp)
    x = rng.standard_normal((2, 5, 3)).astype(np.float32)
    weights = {name: tensor.numpy() for name, tensor in mlp.named_parameters()}

    expected = x
    for i in range(3):
        expected = expected if i == 0 else np.maximum(expected, 0)
        expected = expected @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
    np.testing.assert_allclose(mlp(jt.array(x)).numpy(), expected, atol=1e-5)


def test_convolution_keeps_the_size_unless_padding_says_otherwise() -> None:
    x = jt.zeros((1, 2, 8, 9))

    assert ConvNorm(2, 3, 3)(x).shape == [1, 3, 8, 9]
    assert ConvNorm(2, 3, 3, stride=2, padding=0)(x).shape == [1, 3, 3, 4]


def test_what_is_no_choice_is_named() -> None:
    with pytest.raises(ValueError, match="no activation 'swish'; choose one of None, 'relu'"):
        activation(cast(Activation, "swish"))
    with pytest.raises(ValueError, match="heads must divide the 16 features, got 3"):
        MultiheadAttention(16, 3)
