"""Clipped AdamW steps beside those that PyTorch took, recorded with the goldens of RT-DETR."""

from __future__ import annotations

import json
from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from jtlightning.gradients import clip_by_norm, gradient_norm
from jtlightning.optim import AdamW
from segtasks.golden import golden_input

RECORDING = Path(__file__).parents[1] / "reference" / "rtdetr" / "adamw.npz"


def test_five_clipped_steps_equal_the_recording() -> None:
    with np.load(RECORDING) as archive:
        recorded = dict(archive)
    meta = json.loads(str(recorded["meta"]))
    shapes = {name: recorded[f"step1.param.{name}"].shape for name in "abc"}
    parameters = {
        name: jt.array(golden_input(f"rtdetr.adamw.init.{name}", shape))
        for name, shape in shapes.items()
    }
    config = AdamW(meta["lr"], tuple(meta["betas"]), meta["eps"], meta["weight_decay"])
    groups = [
        {**group, "params": [parameters[name] for name in group["params"]]}
        for group in meta["groups"]
    ]
    optimizer = config.build(groups)

    for step in range(1, 6):
        scale = 0.2 if step % 2 else 0.01
        # The gradient of a linear function is whatever it should be.
        loss = sum(
            (p * jt.array(scale * golden_input(f"rtdetr.adamw.grad{step}.{name}", p.shape))).sum()
            for name, p in parameters.items()
        )
        optimizer.backward(loss)
        gradients = [p.opt_grad(optimizer) for p in parameters.values()]
        norm = gradient_norm(gradients)
        clip_by_norm(gradients, norm, meta["clip"])
        jt.sync_all()

        assert norm.item() == pytest.approx(recorded[f"step{step}.grad_norm"].item(), rel=1e-6)
        for name, gradient in zip(parameters, gradients, strict=True):
            expected = recorded[f"step{step}.clipped_grad.{name}"]
            np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-8)
        optimizer.step()
        jt.sync_all()
        for name, parameter in parameters.items():
            # Single-precision rounding of numbers around 1, over five steps of up to 0.05.
            expected = recorded[f"step{step}.param.{name}"]
            np.testing.assert_allclose(parameter.numpy(), expected, atol=1e-6)
