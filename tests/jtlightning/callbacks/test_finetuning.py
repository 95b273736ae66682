"""A head on a frozen backbone, then both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.finetuning import BackboneFinetuning
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.optim import AdamW, ConstantSchedule
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of

#: 28 samples in batches of 4: 7 micro-batches, steps of 2, so 4 steps an epoch.
SETTINGS = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 3}
RATE = 0.01


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn = nn.Linear(16, 8), nn.BatchNorm1d(8)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.bn(self.fc1(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.drop, self.head = Backbone(), nn.Dropout(0.2), nn.Linear(8, 3)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.head(self.drop(nn.relu(self.backbone(x))))


class Parts(TinyTask):
    """The tiny task with a backbone and a head, a weight decay that shows, a constant rate."""

    def __init__(self) -> None:
        super().__init__(RATE)
        self.model = Net()

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if not p.is_stop_grad()]
        groups = [{"params": trained}]
        return AdamW(lr=self.lr, weight_decay=0.1).build(groups), ConstantSchedule()


class Watch(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self.weights.append(parameters_of(task))
            self.rates.append(trainer.learning_rates())

    def moves(self, name: str) -> list[bool]:
        """Whether a parameter changed in step 2, 3, ..."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [bool((a[name] != b[name]).any()) for a, b in pairs]


def finetuning(**options: Any) -> BackboneFinetuning:
    return BackboneFinetuning(
        **{"backbone": "model.backbone", "unfreeze_backbone_at_epoch": 1, **options}
    )


def fit(folder: Path, *callbacks: Callback, **arguments: Any) -> tuple[Any, Trainer]:
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**SETTINGS, **arguments})
    task = Parts()
    trainer.fit(task, datamodule=TinyData(4, 28), ckpt_path="auto")
    return task, trainer


def test_the_backbone_moves_from_the_epoch_on_and_the_head_always(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, finetuning(), watch)
    assert watch.moves("model.head.weight") == [True] * 11
    # Not even weight decay, and not in the validations within the epochs either.
    assert watch.moves("model.backbone.fc1.weight") == [False] * 3 + [True] * 8
    rates = [r["lr/0/model.backbone"] for r in watch.rates]
    assert rates == pytest.approx([0.0] * 4 + [0.1 * RATE] * 4 + [0.2 * RATE] * 4)
    assert [r["lr/0"] for r in watch.rates] == pytest.approx([RATE] * 12)


def test_it_may_be_a_step_within_an_epoch(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, finetuning(unfreeze_backbone_at_step=6, multiplier=3.0), watch)
    assert watch.moves("model.backbone.fc1.weight") == [False] * 5 + [True] * 6
    rates = [r["lr/0/model.backbone"] for r in watch.rates]
    assert rates == pytest.approx([0.0] * 6 + [0.1 * RATE] * 2 + [0.3 * RATE] * 4)


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_of_the_frozen_part(tmp_path: Path, train_bn: bool) -> None:
    watch = Watch()
    task, _ = fit(tmp_path, finetuning(train_bn=train_bn), watch)
    for name in ("weight", "running_mean"):
        moves = watch.moves(f"model.backbone.bn.{name}")
        assert moves == [train_bn] * 3 + [True] * 8, name
    assert task.model.backbone.bn.is_training()


@pytest.mark.parametrize("options", [{}, {"train_bn": False}, {"unfreeze_backbone_at_step": 6}])
@pytest.mark.parametrize("step", [2, 4, 5, 6, 9])
def test_a_stopped_run_continues_bit_for_bit(
    tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    ends = []
    for name in ("whole", "parts"):
        if name == "parts":
            with pytest.raises(SystemExit):
                fit(tmp_path / name, finetuning(**options), EMA(0.9), StopAfter(step))
        average = EMA(0.9)
        task, trainer = fit(tmp_path / name, finetuning(**options), average)
        state = {**parameters_of(task), **trainer.drivers[0].state_tensors()}
        averages = average.state_dict()["average"]
        ends.append({**state, **{f"ema/{k}": v for k, v in averages.items()}})
    np.testing.assert_equal(ends[1], ends[0])


def test_a_checkpoint_holds_the_moments_of_the_frozen_part(tmp_path: Path) -> None:
    def moments(step: int) -> dict[str, np.ndarray]:
        folder = tmp_path / str(step)
        fit(folder, finetuning(), max_epochs=None, max_steps=step)
        (path,) = folder.glob("*/checkpoints/last.ckpt")
        tensors = read_checkpoint(path).tensors
        return {k: v for k, v in tensors.items() if k.startswith("optimizer/1/")}

    before, after = moments(4), moments(5)
    assert set(before) == set(after)
    assert {name.rsplit("/")[-1] for name in before} == {
        "model.backbone.fc1.weight",
        "model.backbone.fc1.bias",
    }
    assert not any(value.any() for value in before.values())
    assert all(value.any() for value in after.values())


def test_the_first_update_is_as_large_as_that_of_a_new_run(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, finetuning(), watch)
    name, rate = "model.backbone.fc1.weight", 0.1 * RATE
    before, after = (watch.weights[i][name].astype(np.float64) for i in (3, 4))
    # Adam's first update has the size of the rate, whatever the gradient.
    np.testing.assert_allclose(abs(after - before * (1 - rate * 0.1)), rate, rtol=1e-2)


def test_a_part_that_is_never_frozen_trains_as_without_the_callback(tmp_path: Path) -> None:
    plain, _ = fit(tmp_path / "plain")
    options = {"unfreeze_backbone_at_epoch": 0, "backbone_initial_ratio_lr": 1.0}
    divided, _ = fit(tmp_path / "divided", finetuning(**options))
    np.testing.assert_equal(parameters_of(divided), parameters_of(plain))


def test_the_rate_follows_its_function_up_to_the_schedule() -> None:
    callback = finetuning(lambda_func=lambda epoch: epoch + 1.0, backbone_initial_lr=0.02)
    assert callback._rate(0.1, 5) == 0.0
    callback.unfrozen_epoch = 1
    rates = [callback._rate(0.1, epoch) for epoch in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.02, 0.06, 0.1, 0.1])
    callback.should_align = False
    assert callback._rate(0.1, 3) == pytest.approx(0.02 * 3 * 4)


def test_the_task_gets_its_method_back(tmp_path: Path) -> None:
    task, _ = fit(tmp_path, finetuning(), max_epochs=1)
    assert "configure_optimizers" not in vars(task)


def test_an_unknown_part_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'model.backbon'.*nearest: model.backbone"):
        fit(tmp_path, finetuning(backbone="model.backbon"))


def test_a_part_outside_the_optimizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no parameter of 'model.drop'"):
        fit(tmp_path, finetuning(backbone="model.drop"))


@pytest.mark.parametrize(
    "options",
    [
        {"unfreeze_backbone_at_epoch": -1},
        {"unfreeze_backbone_at_step": -1},
        {"multiplier": 0.0},
        {"backbone_initial_ratio_lr": 0.0},
        {"backbone_initial_lr": -1.0},
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        finetuning(**options)
