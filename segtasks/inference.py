"""Evaluation protocols: how a model is asked about an image, recorded beside its scores."""

from __future__ import annotations

from collections.abc import Callable

import jittor as jt

Segmenter = Callable[[jt.Var, jt.Var], jt.Var]
"""A model (image, depth) -> logits: (B, 3, H, W) each -> (B, K, H, W)."""


class SingleScale:
    """Ask once, for the whole image at its own size."""

    def __call__(self, model: Segmenter, image: jt.Var, depth: jt.Var) -> jt.Var:
        """Return the scores of every class, (B, K, H, W), 0 to 1 with sum 1 over K.

        Args:
            model: a segmenter in evaluation mode.
            image: (B, 3, H, W) normalised.
            depth: (B, 3, H, W) normalised.
        """
        return jt.nn.softmax(model(image, depth), dim=1)

    def describe(self) -> dict[str, str]:
        """Return the protocol's name and settings, for the file with the results."""
        return {"protocol": "single_scale"}
