from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning import Trainer
from jtlightning.callbacks.base import Callback
from jtlightning.precision import LossScaler, Precision, mixed_precision
from jtlightning.trainer.step import NonFiniteLossError

from .tiny import TinyData, TinyTask, parameters_of

MIXED: tuple[Precision, ...] = ("16-mixed", "bf16-mixed")


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    if precision == "16-mixed":
        return x.astype(np.float16).astype(np.float32)
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("precision", MIXED)
def test_a_linear_layer_computes_in_16_bits_and_learns_in_32(
    precision: Precision, rng: np.random.Generator
) -> None:
    layer = nn.Linear(16, 8)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    weight, bias = layer.weight.numpy(), layer.bias.numpy()
    with mixed_precision(layer, precision):
        y = layer(jt.array(x))
        gradient = jt.grad(y.sum(), layer.weight).numpy()
    product = rounded(x, precision) @ rounded(weight, precision).T + bias
    np.testing.assert_allclose(y.numpy(), rounded(product, precision), rtol=1e-2, atol=1e-2)
    assert np.array_equal(y.numpy(), rounded(y.numpy(), precision))
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient[0], rounded(x, precision).sum(0), rtol=1e-2, atol=1e-2)
    assert np.array_equal(layer.weight.numpy(), weight)
    assert not np.array_equal(layer(jt.array(x)).numpy(), y.numpy())  # 32 bits again


def test_32_leaves_every_layer_alone() -> None:
    layer = nn.Linear(16, 8)
    with mixed_precision(layer, 32):
        assert "execute" not in vars(layer)


def test_depthwise_convolutions_stay_in_32_bits() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=2))
    with mixed_precision(block, "16-mixed"):
        assert ["execute" in vars(layer) for layer in block] == [False, True]


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs.item())


@pytest.mark.parametrize(("precision", "limit"), [("16-mixed", 5e-3), ("bf16-mixed", 5e-2)])
def test_a_short_training_agrees_with_float32(
    tmp_path: Path, precision: Precision, limit: float
) -> None:
    losses = {}
    for name in (32, precision):
        kept = Losses()
        trainer, task = start(tmp_path / str(name), 2.0**10, name, callbacks=[kept], max_epochs=2)
        task.model.drop.p = 0.0  # one draw that rounding turns over would be another training
        trainer.fit(task, datamodule=TinyData())
        assert all(p.dtype == "float32" for p in task.parameters())
        losses[name] = kept.values
    assert len(losses[precision]) == 12
    assert losses[precision] != losses[32]
    np.testing.assert_allclose(losses[precision], losses[32], rtol=limit)


def start(
    folder: Path, scale: float, precision: Precision = "16-mixed", **arguments: Any
) -> tuple[Trainer, TinyTask]:
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **arguments,
    )
    assert (trainer.scaler is not None) == (precision == "16-mixed")
    if trainer.scaler is not None:
        trainer.scaler = LossScaler(scale, growth_interval=4)
    return trainer, TinyTask()


class States(Callback):
    """Weights, scale and skipped steps after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, np.ndarray], float, int]] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        assert trainer.scaler is not None
        state = (parameters_of(task), trainer.scaler.scale, trainer.scaler.skipped)
        self.seen.append(state)


def test_a_step_that_overflows_is_skipped_and_counted(tmp_path: Path) -> None:
    states = States()
    trainer, task = start(tmp_path, 2.0**21, callbacks=[states], max_epochs=2)
    trainer.scaler = LossScaler(2.0**21)
    # Weights and running statistics before and after each step.
    states.seen.append((parameters_of(task), 2.0**21, 0))
    trainer.fit(task, datamodule=TinyData())
    skipped = states.seen[-1][2]
    assert 1 <= skipped <= 8
    for (before, _, count), (after, scale, now) in itertools.pairwise(states.seen):
        unchanged = all(np.array_equal(before[name], after[name]) for name in after)
        assert unchanged == (now == count + 1)
        assert scale == 2.0 ** (21 - now)
    assert trainer.global_step == 12
    assert trainer.drivers[0].updates == 12 - skipped
    assert all(np.isfinite(value).all() for value in states.seen[-1][0].values())
    (table,) = tmp_path.glob("*/metrics.csv")
    assert "train/skipped_steps" in table.read_text()


def test_the_scale_grows_after_enough_good_steps(tmp_path: Path) -> None:
    states = States()
    trainer, task = start(tmp_path, 8.0, callbacks=[states], max_epochs=2)
    trainer.fit(task, datamodule=TinyData())
    assert [scale for _, scale, _ in states.seen] == [8.0] * 3 + [16.0] * 4 + [32.0] * 4 + [64.0]


class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


def test_a_run_that_is_stopped_and_resumed_repeats_the_other_bit_for_bit(tmp_path: Path) -> None:
    def run(name: str, *callbacks: Callback) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        trainer, task = start(
            tmp_path / name, 2.0**21, max_epochs=4, callbacks=list(callbacks),
            accumulate_grad_batches=2,
        )  # fmt: skip
        trainer.fit(task, datamodule=TinyData(), ckpt_path="auto")
        assert trainer.scaler is not None
        return parameters_of(task), trainer.scaler.state_dict()

    whole, scaler = run("whole")
    assert run("halves", StopAfter(2))[1] != scaler
    resumed, state = run("halves")
    assert state == scaler
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


class NaNTask(TinyTask):
    def training_step(self, batch: Any, batch_idx: int) -> jt.Var:
        return super().training_step(batch, batch_idx) * jt.array([np.nan])


def test_a_loss_that_no_scale_can_save_is_an_error(tmp_path: Path) -> None:
    trainer, _ = start(tmp_path, 4.0, max_epochs=1)
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        trainer.fit(NaNTask(), datamodule=TinyData())
    assert trainer.scaler is not None
    assert (trainer.scaler.scale, trainer.global_step) == (1.0, 2)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is '16'; choose one of"):
        Trainer(precision="16")  # type: ignore[arg-type]
