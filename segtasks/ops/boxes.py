"""Axis-aligned boxes: formats, overlaps and the inverse of the sigmoid that bounds them.

Everything is one fused element-wise kernel over the four coordinates, with PyTorch's gradients
where a minimum, maximum or limit is met exactly. Generalised IoU: Rezatofighi et al.,
"Generalized Intersection over Union", CVPR 2019, equation 1.
"""

from __future__ import annotations

import jittor as jt


def cxcywh_to_xyxy(boxes: jt.Var) -> jt.Var:
    """Turn (centre x, centre y, width, height) into (left, top, right, bottom); (..., 4)."""
    x, y, width, height = _coordinates(boxes)
    return jt.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)


def xyxy_to_cxcywh(boxes: jt.Var) -> jt.Var:
    """Turn (left, top, right, bottom) into (centre x, centre y, width, height); (..., 4)."""
    left, top, right, bottom = _coordinates(boxes)
    return jt.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], -1)


def elementwise_iou(a_xyxy: jt.Var, b_xyxy: jt.Var) -> jt.Var:
    """Intersection over union of box i with box i.

    There is no guard against an empty union: boxes need a positive area.

    Args:
        a_xyxy: (..., 4), any unit.
        b_xyxy: the same shape and unit.

    Returns:
        (...), 0 to 1.
    """
    intersection, union = _overlap(_coordinates(a_xyxy), _coordinates(b_xyxy))
    return intersection / union


def elementwise_giou(a_xyxy: jt.Var, b_xyxy: jt.Var) -> jt.Var:
    """Generalised IoU of box i with box i: the IoU less the empty part of their common hull.

    Args:
        a_xyxy: (..., 4), any unit, positive area.
        b_xyxy: the same shape and unit.

    Returns:
        (...), -1 to 1.
    """
    return _generalised(_coordinates(a_xyxy), _coordinates(b_xyxy))


def pairwise_iou(a_xyxy: jt.Var, b_xyxy: jt.Var) -> tuple[jt.Var, jt.Var]:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a_xyxy: (..., N, 4), any unit, positive area.
        b_xyxy: (..., M, 4) in the same unit.

    Returns:
        IoU and the area of the union, each (..., N, M).
    """
    intersection, union = _overlap(*_pairs(a_xyxy, b_xyxy))
    return intersection / union, union


def pairwise_giou(a_xyxy: jt.Var, b_xyxy: jt.Var) -> jt.Var:
    """Generalised IoU of every box of `a`, (..., N, 4), with every box of `b`, (..., M, 4).

    Returns:
        (..., N, M), -1 to 1.
    """
    return _generalised(*_pairs(a_xyxy, b_xyxy))


def inverse_sigmoid(x: jt.Var, eps: float = 1e-5) -> jt.Var:
    """Logit of a probability, finite at 0 and 1.

    Args:
        x: any shape; values outside 0..1 count as the nearer limit and get no gradient.
        eps: the smallest probability, and complement, that is told apart from 0.

    Returns:
        The shape of `x`, within log(eps) and -log(eps).
    """
    x = _at_most(_at_least(x, 0), 1)
    return (_at_least(x, eps) / _at_least(1 - x, eps)).log()


def _coordinates(boxes: jt.Var) -> tuple[jt.Var, ...]:
    return tuple(boxes[..., i] for i in range(4))


def _pairs(a: jt.Var, b: jt.Var) -> tuple[tuple[jt.Var, ...], tuple[jt.Var, ...]]:
    """Coordinates of (..., N, 4) and (..., M, 4), each repeated to (..., N, M)."""
    # Repeated here, which the kernels fuse, as Jittor's ternary() does not survive broadcasting
    # to an empty shape.
    shape = (*a.shape[:-1], b.shape[-2])
    rows = tuple(value.unsqueeze(-1).broadcast(shape) for value in _coordinates(a))
    return rows, tuple(value.unsqueeze(-2).broadcast(shape) for value in _coordinates(b))


def _overlap(a: tuple[jt.Var, ...], b: tuple[jt.Var, ...]) -> tuple[jt.Var, jt.Var]:
    """Areas of the intersection and of the union."""
    width = _smaller(a[2], b[2]) - _larger(a[0], b[0])
    height = _smaller(a[3], b[3]) - _larger(a[1], b[1])
    intersection = _at_least(width, 0) * _at_least(height, 0)
    return intersection, _area(a) + _area(b) - intersection


def _generalised(a: tuple[jt.Var, ...], b: tuple[jt.Var, ...]) -> jt.Var:
    intersection, union = _overlap(a, b)
    width = _larger(a[2], b[2]) - _smaller(a[0], b[0])
    height = _larger(a[3], b[3]) - _smaller(a[1], b[1])
    hull = _at_least(width, 0) * _at_least(height, 0)
    return intersection / union - (hull - union) / hull


def _area(box: tuple[jt.Var, ...]) -> jt.Var:
    return (box[2] - box[0]) * (box[3] - box[1])


def _larger(a: jt.Var, b: jt.Var) -> jt.Var:
    # Equal operands share the gradient, as in PyTorch; Jittor's maximum() gives all to the second.
    return jt.ternary(a > b, a, jt.ternary(a < b, b, (a + b) / 2))


def _smaller(a: jt.Var, b: jt.Var) -> jt.Var:
    return jt.ternary(a < b, a, jt.ternary(a > b, b, (a + b) / 2))


def _at_least(x: jt.Var, limit: float) -> jt.Var:
    # Not maximum(): at exactly the limit the gradient passes, as through PyTorch's clamp().
    return jt.ternary(x < limit, jt.full_like(x, limit), x)


def _at_most(x: jt.Var, limit: float) -> jt.Var:
    return jt.ternary(x > limit, jt.full_like(x, limit), x)
