"""The average of weights beside the official RT-DETR code's, recorded with its goldens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.ema import EMA
from segtasks.golden import golden_tensor

RECORDING = Path(__file__).parents[2] / "reference" / "rtdetr" / "ema.npz"


class Net(nn.Module):
    def __init__(self) -> None:
        self.conv, self.norm = nn.Conv(2, 3, 1), nn.BatchNorm(3)


def assign(net: Net, prefix: str) -> None:
    for name, parameter in net.named_parameters():
        parameter.assign(jt.array(golden_tensor(f"{prefix}.{name}", parameter.shape)))


@pytest.mark.parametrize("case", ["official", "fast"])
def test_averages_of_weights_and_statistics_equal_the_recording(case: str) -> None:
    with np.load(RECORDING) as archive:
        recorded = {k.split(".", 1)[1]: v for k, v in archive.items() if k.startswith(case)}
    meta = json.loads(str(recorded["meta"]))
    net = Net()
    assign(net, "rtdetr.ema.init")
    weights = [p for name, p in net.named_parameters() if "running" not in name]
    trainer: Any = SimpleNamespace(optimizers=[jt.optim.SGD(weights, 0.1)])
    ema = EMA(meta["decay"], warmup_steps=meta["warmups"])
    ema.on_fit_start(trainer, net)

    decays = []
    for step in range(1, 11):
        assign(net, f"rtdetr.ema.step{step}")
        ema.on_after_optimizer_step(trainer, net, trainer.optimizers[0])
        jt.sync_all()
        decays.append(ema.current_decay())
        if step in (1, 2, 10):
            average = ema.state_dict()["average"]
            assert len(average) == 6
            for name, value in average.items():
                # Ten float32 roundings of numbers around 1.
                np.testing.assert_allclose(value, recorded[f"step{step}.{name}"], atol=2e-6)
    np.testing.assert_allclose(decays, recorded["decays"], rtol=1e-12)
