from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from segtasks.ops.softmax import attention_softmax

SCALE = 0.3


def exact(scores: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """The definition in float64."""
    logits = scores.astype(np.float64) * SCALE + bias
    parts = np.exp(logits - logits.max(-1, keepdims=True))
    return parts / parts.sum(-1, keepdims=True)


def made_up(masked: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores that overflow an exponential, and a bias that hides some, and all of one query's."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3, 5, 37)).astype(np.float32) * 100
    scores[:, 2] /= 10
    if not masked:
        return scores, None
    bias = np.where(rng.random((5, 37)) < 0.3, -1e9, 0.0).astype(np.float32)
    bias[2] = -1e9
    return scores, bias


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_and_gradient_are_those_of_numpy(
    masked: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and not jt.has_cuda:
        pytest.skip("no CUDA device")
    monkeypatch.setattr(jt.flags, "use_cuda", int(device == "cuda"))
    scores, bias = made_up(masked)
    upstream = np.random.default_rng(1).standard_normal(scores.shape).astype(np.float32)
    given = jt.array(scores)
    weights = attention_softmax(given, SCALE, None if bias is None else jt.array(bias))
    gradient = jt.grad((weights * jt.array(upstream)).sum(), given).numpy()

    # What hides everything hides nothing: a single precision -1e9 leaves no digit of a score.
    expected = exact(scores, 0.0 if bias is None else bias)
    if bias is not None:
        expected[:, 2] = 1 / scores.shape[-1]
        assert not weights.numpy()[:, 0, bias[0] < 0].any()
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-5)
    inner = (expected * upstream).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, SCALE * expected * (upstream - inner), atol=1e-5)


def test_half_precision_is_calculated_in_single() -> None:
    scores, _ = made_up(masked=False)
    weights = attention_softmax(jt.array(scores).float16(), SCALE)
    assert weights.dtype == "float16"
    np.testing.assert_allclose(weights.float32().numpy(), exact(np.float16(scores)), atol=1e-3)


def test_a_bias_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\), \(4, 3\)"):
        attention_softmax(jt.zeros((2, 3, 4)), 1.0, jt.zeros((4, 3)))
