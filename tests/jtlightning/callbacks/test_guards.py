"""NaNGuard, MemoryGuard and ModelSummary on small networks."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn
from rich.console import Console

from jtlightning.callbacks.memory_guard import (
    MemoryGrowthError,
    MemoryGuard,
    largest_holders,
)
from jtlightning.callbacks.nan_guard import NaNGuard, NonFiniteError
from jtlightning.callbacks.summary import ModelSummary, hidden_places, summarize
from tests.jtlightning.fake_trainer import FakeTrainer


class Net(nn.Module):
    def __init__(self) -> None:
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.BatchNorm(8), nn.Linear(8, 2)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.second(nn.relu(self.norm(self.first(x))))


def poison(value: jt.Var, number: float) -> None:
    array = value.numpy()
    array.reshape(-1)[1] = number
    value.update(jt.array(array))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_parameter_that_is_not_finite_is_named(tmp_path: Path, number: float) -> None:
    trainer, task = FakeTrainer(tmp_path), Net()
    trainer.global_step, trainer.current_epoch = 50, 3
    guard = NaNGuard()
    guard.on_train_batch_end(trainer, task, None, None, 7)
    poison(task.second.weight, number)
    poison(task.norm.running_var, number)
    with pytest.raises(NonFiniteError, match="epoch 3, step 50, batch 7") as error:
        guard.on_train_batch_end(trainer, task, None, None, 7)
    assert "norm.running_var, second.weight." in str(error.value)
    assert "first.weight" not in str(error.value)


def test_parameters_are_looked_at_only_at_log_steps(tmp_path: Path) -> None:
    trainer, task = FakeTrainer(tmp_path), Net()
    poison(task.second.weight, float("nan"))
    trainer.should_log = False
    NaNGuard().on_train_batch_end(trainer, task, None, None, 0)
    trainer.should_log, trainer.at_step_boundary = True, False
    NaNGuard().on_train_batch_end(trainer, task, None, None, 0)


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_a_metric_that_is_not_finite_is_named(tmp_path: Path, hook: str) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.metrics.update({"val/loss": float("nan"), "val/miou": 0.5, "rare": float("inf")})
    with pytest.raises(NonFiniteError, match="val/loss is nan at ") as error:
        getattr(NaNGuard(ignore_metrics=["rare"]), hook)(trainer, None)
    assert "rare" not in str(error.value)


def test_the_sanity_check_may_be_not_finite(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.metrics["val/loss"], trainer.sanity_checking = float("nan"), True
    NaNGuard().on_validation_end(trainer, None)


class Keeper(Net):
    """Keeps its predictions, which keeps the graphs of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions: list[jt.Var] = []


def train(guard: MemoryGuard, trainer: FakeTrainer, task: Any, steps: int, *, keep: bool) -> None:
    rng = np.random.default_rng(0)
    guard.on_train_start(trainer, task)
    for _ in range(steps):
        prediction = task(jt.array(rng.standard_normal((8, 4), dtype=np.float32)))
        trainer.optimizer.step((prediction**2).mean())
        if keep:
            task.predictions.append(prediction)
        jt.sync_all()
        trainer.global_step += 1
        guard.on_train_batch_end(trainer, task, None, None, 0)


@pytest.fixture
def keeper(tmp_path: Path) -> tuple[FakeTrainer, Keeper]:
    trainer, task = FakeTrainer(tmp_path), Keeper()
    trained = [p for name, p in task.named_parameters() if "running" not in name]
    trainer.optimizer = jt.optim.AdamW(trained, lr=1e-2)
    return trainer, task


def test_kept_predictions_raise_an_alarm_with_step_and_holder(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    guard = MemoryGuard(every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError, match=r"list of \d+ Vars .* in Keeper\.predictions"):
        train(guard, trainer, task, 400, keep=True)
    assert trainer.global_step < 400
    task.predictions.clear()


def test_a_warning_is_repeated_only_when_the_number_doubles(
    keeper: tuple[FakeTrainer, Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    trainer, task = keeper
    train(MemoryGuard(1.5, 2, 5, on_alarm="warn"), trainer, task, 200, keep=True)
    task.predictions.clear()
    assert 1 <= len(caplog.records) <= 3
    assert "at step " in caplog.text


def test_plain_training_raises_no_alarm_and_logs_memory(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    train(MemoryGuard(1.05, 1, 5), trainer, task, 110, keep=False)
    first, last = trainer.logged[10][1], trainer.logged[-1][1]
    assert first["memory/live_vars"] == last["memory/live_vars"]
    assert last["memory/host_mib"] > 10
    assert "memory/host_mib_per_1000_steps" in last
    assert "memory/host_mib_per_1000_steps" not in first


def test_parameters_and_moments_are_not_named_as_holders(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    train(MemoryGuard(), trainer, task, 2, keep=False)
    task.predictions.append(jt.ones(3))
    names = largest_holders(trainer, task, count=1000)
    assert "list of 1 Vars (0.0 MiB) in Keeper.predictions" in names
    assert len(trainer.optimizer.param_groups[0]["params"]) == 6
    assert "list of 6 Vars" not in names


@pytest.mark.parametrize(
    "options", [{"factor": 1.0}, {"every_n_steps": 0}, {"warmup_steps": 0}, {"on_alarm": "shout"}]
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MemoryGuard(**options)


def test_trainable_frozen_and_statistics_are_counted_apart() -> None:
    task = nn.Sequential(Net(), nn.Linear(2, 3))
    trained = {id(p) for p in (task[0].first.weight, task[0].norm.weight, task[1].weight)}
    rows = {row.name: row for row in summarize(task, 2, trained)}
    assert list(rows) == ["0", "0.first", "0.norm", "0.second", "1", "total"]
    numbers = {n: (r.trainable, r.frozen, r.statistics) for n, r in rows.items()}
    assert numbers["0.norm"] == (8, 8, 16)
    assert numbers["0"] == (32 + 8, 8 + 8 + 18, 16)
    assert numbers["total"] == (32 + 8 + 6, 8 + 8 + 18 + 3, 16)
    assert rows["total"].mib == pytest.approx(4 * (46 + 37 + 16) / 2**20)


def test_frozen_layers_are_told_from_trainable_ones_without_an_optimizer() -> None:
    task = Net()
    task.first.weight.stop_grad()
    total = summarize(task)[-1]
    assert (total.trainable, total.frozen, total.statistics) == (8 + 16 + 18, 32, 16)


def test_registered_buffers_are_statistics() -> None:
    task = nn.Linear(2, 2)
    task.register_buffer("anchors", jt.ones(5).stop_grad())
    assert summarize(task)[-1].statistics == 5


def test_hidden_parameters_are_found_by_path() -> None:
    task = nn.Sequential(Net())
    task[0].heads = [nn.Linear(2, 2), nn.Linear(2, 2)]
    task[0].scales = {"a": (jt.ones(2),)}
    task[0]._bias = jt.ones(3)
    task[0]._fine = nn.Linear(1, 1)  # Jittor does see modules of such names
    assert [place.split(" ")[0] for place in hidden_places(task)] == [
        "0.heads",
        "0.scales",
        "0._bias",
    ]
    assert len(hidden_places(nn.Sequential(nn.ModuleList([Net()]), nn.ParameterList([])))) == 0


def test_the_table_and_a_warning_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, summary = Net(), ModelSummary()
    task.heads = [nn.Linear(2, 2)]
    summary.console = Console(file=io.StringIO(), width=80)
    summary.on_fit_start(SimpleNamespace(optimizer=None), task)
    text = summary.console.file.getvalue()
    assert "BatchNorm" in text
    assert text.rstrip().splitlines()[-1].split() == ["total", "Net", "74", "0", "16", "0.00"]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "heads (list with 1 Vars or modules) is invisible" in caplog.text
