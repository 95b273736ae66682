"""Losses of semantic segmentation."""

from __future__ import annotations

import jittor as jt


def cross_entropy(logits: jt.Var, label: jt.Var, ignore_index: int = 255) -> jt.Var:
    """Mean cross entropy over all pixels with a label.

    A batch without any labelled pixel gives 0 and a zero gradient. The official code gives NaN
    there, which one Adam step spreads over all weights.

    Args:
        logits: (B, K, H, W), K the number of classes.
        label: (B, H, W), integers; 0 to K - 1, or `ignore_index`.
        ignore_index: label of pixels that do not count.

    Returns:
        A scalar.
    """
    valid = label != ignore_index
    target = jt.ternary(valid, label, jt.zeros_like(label))
    log_normaliser = _logsumexp(logits)
    picked = logits.reindex(label.shape, ["i0", "@e0(i0, i1, i2)", "i1", "i2"], extras=[target])
    loss = jt.ternary(valid, log_normaliser - picked, jt.zeros_like(picked))
    return loss.sum() / valid.sum().float32().maximum(1.0)


def _logsumexp(logits: jt.Var) -> jt.Var:
    """Log of the summed exponentials over classes, (B, K, H, W) -> (B, H, W)."""
    largest = logits.max(1, keepdims=True).stop_grad()
    return (logits - largest).exp().sum(1).log() + largest.squeeze(1)
