"""Classification losses of a detector's queries, one value per layer.

All take logits (L, R, C) of R queries in each of L layers and labels (L, R), where C stands for "no
object", and return (L,). Labels and qualities carry no gradient.
"""

from __future__ import annotations

import jittor as jt


def varifocal(
    logits: jt.Var, labels: jt.Var, quality: jt.Var, alpha: float = 0.75, gamma: float = 2.0
) -> jt.Var:
    """Summed varifocal loss: positives aim at, and are weighted by, the IoU of their box.

    Zhang et al., "VarifocalNet", CVPR 2021, equation 2, with an exponent on the negatives only.

    Args:
        logits: (L, R, C).
        labels: (L, R), integers, C for no object.
        quality: (L, R), IoU of a positive with its box, 0 elsewhere.
        alpha: weight of negatives.
        gamma: exponent of a negative's score.
    """
    positive = _one_hot(labels, logits.shape[2])
    target = positive * quality.unsqueeze(-1)
    weight = alpha * logits.detach().sigmoid().pow(gamma) * (1 - positive) + target
    return (weight.detach() * _binary_cross_entropy(logits, target)).sum((1, 2))


def focal(logits: jt.Var, labels: jt.Var, alpha: float = 0.25, gamma: float = 2.0) -> jt.Var:
    """Summed sigmoid focal loss; Lin et al., "Focal Loss", ICCV 2017, equation 5.

    Args:
        logits: (L, R, C).
        labels: (L, R), integers, C for no object.
        alpha: weight of positives, 1 - alpha that of negatives.
        gamma: exponent of the distance from the right answer.
    """
    positive = _one_hot(labels, logits.shape[2])
    score = logits.sigmoid()
    distance = score + positive - 2 * score * positive
    weight = (1 - alpha + (2 * alpha - 1) * positive) * distance.pow(gamma)
    return (weight * _binary_cross_entropy(logits, positive)).sum((1, 2))


def binary_cross_entropy(logits: jt.Var, labels: jt.Var) -> jt.Var:
    """Summed binary cross entropy of every class; logits (L, R, C), labels (L, R)."""
    return _binary_cross_entropy(logits, _one_hot(labels, logits.shape[2])).sum((1, 2))


def cross_entropy(logits: jt.Var, labels: jt.Var, no_object_weight: float) -> jt.Var:
    """Weighted mean of the softmax cross entropy (negative log-likelihood).

    Args:
        logits: (L, R, C + 1), the last one for no object.
        labels: (L, R), integers, C for no object.
        no_object_weight: weight of queries without a box, others count 1.
    """
    largest = logits.max(-1, keepdims=True).detach()
    normaliser = (logits - largest).exp().sum(-1).log() + largest.squeeze(-1)
    picked = logits.reindex(labels.shape, ["i0", "i1", "@e0(i0, i1)"], extras=[labels])
    matched = (labels < logits.shape[2] - 1).float32()
    weight = no_object_weight + (1 - no_object_weight) * matched
    return (weight * (normaliser - picked)).sum(1) / weight.sum(1)


def _one_hot(labels: jt.Var, classes: int) -> jt.Var:
    """Float (L, R, classes); nothing but zeros where the label is `classes`."""
    return (labels.unsqueeze(-1) == jt.index((*labels.shape, classes), dim=2)).float32()


def _binary_cross_entropy(logits: jt.Var, target: jt.Var) -> jt.Var:
    # log(1 + exp(x)) without overflow. Either branch has the right derivative at 0, which
    # maximum() and abs() together have not.
    positive = logits > 0
    softplus = jt.ternary(positive, logits, jt.zeros_like(logits))
    softplus = softplus + (1 + jt.ternary(positive, -logits, logits).exp()).log()
    return softplus - logits * target
