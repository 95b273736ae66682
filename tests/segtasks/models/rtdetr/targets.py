"""Targets and random numbers for the tests of the detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from segtasks.golden import golden_input


@dataclass
class Boxes:
    """Labels (n,) and boxes (n, 4) of an image."""

    labels: np.ndarray
    boxes: np.ndarray


class GoldenDraws:
    """The random numbers of a recording, in the order in which the official code draws them."""

    def __init__(self, prefix: str, *, labels: bool = True, boxes: bool = True) -> None:
        self.prefix = prefix
        self.names = ["u_label", "new_label"] * labels + ["sign", "u_box"] * boxes

    def random(self, size: Any) -> np.ndarray:
        return golden_input(self._next("u_"), size, "uniform")

    def integers(self, low: int, high: int, size: Any) -> np.ndarray:
        return low + golden_input(self._next(""), size, "label", high=high)

    def _next(self, kind: str) -> str:
        name = self.names.pop(0)
        assert name.startswith(kind)
        return f"{self.prefix}.{name}"


def recorded_boxes(golden: dict[str, Any], prefix: str = "") -> list[Boxes]:
    """The targets of a recording, one per image."""
    count = sum(name.startswith(f"{prefix}gt_labels.") for name in golden)
    names = [f"{prefix}gt_{{}}.{i}" for i in range(count)]
    return [Boxes(golden[n.format("labels")], golden[n.format("boxes")]) for n in names]
