"""NaNGuard and MemoryGuard on small networks."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.memory_guard import (
    MemoryGrowthError,
    MemoryGuard,
    _Watch,
    largest_holders,
)
from jtlightning.callbacks.nan_guard import NaNGuard, NonFiniteError
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


def test_large_parameters_are_not_taken_for_infinite_ones(tmp_path: Path) -> None:
    trainer, task = FakeTrainer(tmp_path), Net()
    task.first.weight.update(jt.array(np.full((8, 4), 1e38, np.float32)))
    NaNGuard().on_train_batch_end(trainer, task, None, None, 0)


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
    """Keeps its predictions, and with them the graphs that lead to `scale`: it is not updated."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = jt.ones(2)
        self.predictions: list[jt.Var] = []
        self.total: jt.Var | float = 0.0

    def execute(self, x: jt.Var) -> jt.Var:
        return super().execute(x) * self.scale


def train(
    guard: MemoryGuard,
    trainer: FakeTrainer,
    task: Any,
    steps: int,
    *,
    in_step: Callable[[jt.Var], Any] = id,
    in_hook: Callable[[jt.Var], Any] = id,
    log_every: int = 10,
) -> None:
    """A loop with the trainer's places; `in_step` and `in_hook` get every prediction."""
    rng = np.random.default_rng(0)
    guard.on_train_start(trainer, task)
    for step in range(1, steps + 1):
        with trainer.observe("Keeper.training_step"):
            prediction = task(jt.array(rng.standard_normal((8, 4), dtype=np.float32)))
            loss = (prediction**2).mean()
            in_step(prediction)
        with trainer.observe("optimizer_step"):
            trainer.optimizer.step(loss)
        with trainer.observe("synchronize"):
            jt.sync_all()
        trainer.global_step += 1
        trainer.should_log = step % log_every == 0
        with trainer.observe("Other.on_train_batch_end"):
            in_hook(prediction)
        with trainer.observe("MemoryGuard.on_train_batch_end"):
            guard.on_train_batch_end(trainer, task, None, None, 0)


@pytest.fixture
def keeper(tmp_path: Path) -> tuple[FakeTrainer, Keeper]:
    gc.collect()  # tracebacks of other tests hold theirs
    trainer, task = FakeTrainer(tmp_path), Keeper()
    trained = [*task.first.parameters(), *task.second.parameters()]
    trainer.optimizer = jt.optim.AdamW(trained, lr=1e-2)
    return trainer, task


def test_the_alarm_names_step_hook_and_holder(keeper: tuple[FakeTrainer, Keeper]) -> None:
    trainer, task = keeper
    guard = MemoryGuard(every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError) as error:
        train(guard, trainer, task, 400, in_hook=task.predictions.append)
    text = str(error.value)
    number = re.search(r"Keeper\.predictions: list of (\d+) Vars, 0\.0 MiB", text)
    assert text.startswith(f"at step {trainer.global_step} ")
    assert "Other.on_train_batch_end keeps 1 Var per step (Keeper.predictions)" in text
    assert re.search(r"\d+ operations per step of Keeper\.training_step stay alive", text)
    assert int(number[1]) == trainer.global_step < 100
    assert trainer.observers == []


def test_what_training_step_keeps_is_told_from_what_hooks_keep(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    guard = MemoryGuard(every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError, match=r"Keeper\.training_step keeps 1 Var per step"):
        train(guard, trainer, task, 400, in_step=task.predictions.append)


def test_a_running_sum_is_found_without_a_container(keeper: tuple[FakeTrainer, Keeper]) -> None:
    trainer, task = keeper

    def add(prediction: jt.Var) -> None:
        task.total = task.total + prediction.sum()

    guard = MemoryGuard(every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError) as error:
        train(guard, trainer, task, 400, in_hook=add)
    assert "Other.on_train_batch_end adds to the graph of Keeper.total" in str(error.value)


def test_what_is_kept_now_and_then_is_found(keeper: tuple[FakeTrainer, Keeper]) -> None:
    trainer, task = keeper

    def sometimes(prediction: jt.Var) -> None:
        if trainer.global_step % 7 == 0:
            task.predictions.append([prediction])  # a list of lists, as metrics have

    guard = MemoryGuard(factor=2.0, every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError) as error:
        train(guard, trainer, task, 600, in_hook=sometimes)
    assert re.search(r"\d operations? .* of Keeper\.training_step stay", str(error.value))


def test_a_list_of_dicts_is_named(keeper: tuple[FakeTrainer, Keeper]) -> None:
    trainer, task = keeper
    guard = MemoryGuard(every_n_steps=10, warmup_steps=5)
    with pytest.raises(MemoryGrowthError) as error:
        train(guard, trainer, task, 400, in_hook=lambda p: task.predictions.append({"p": p}))
    who = "Other.on_train_batch_end keeps 1 container with Var per step (Keeper.predictions)"
    assert who in str(error.value)


def test_a_warning_is_repeated_only_when_the_number_doubles(
    keeper: tuple[FakeTrainer, Keeper], caplog: pytest.LogCaptureFixture
) -> None:
    trainer, task = keeper
    guard = MemoryGuard(1.5, 2, 5, on_alarm="warn")
    train(guard, trainer, task, 200, in_hook=task.predictions.append)
    assert 1 <= len(caplog.records) <= 4
    assert "at step " in caplog.text


def test_plain_training_raises_no_alarm_and_logs_memory(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    train(MemoryGuard(1.05, 1, 5), trainer, task, 160, log_every=1)
    first, last = trainer.logged[10][1], trainer.logged[-1][1]
    assert first["memory/live_vars"] == last["memory/live_vars"]
    assert first["memory/live_ops"] == last["memory/live_ops"]
    assert last["memory/host_mib"] > 10
    assert abs(last["memory/host_mib_per_1000_steps"]) < 100
    assert "memory/host_mib_per_1000_steps" not in first


def test_logged_values_between_two_log_steps_are_no_alarm(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper

    def log(prediction: jt.Var) -> None:
        task.predictions.extend(prediction.sum().detach() for _ in range(10))
        if trainer.global_step % 200 == 0:
            jt.fetch_sync(task.predictions)
            task.predictions.clear()

    train(MemoryGuard(1.5, 5, 5), trainer, task, 401, in_hook=log, log_every=200)


def test_more_than_before_that_does_not_go_on_growing_is_no_alarm(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper

    def unfreeze(prediction: jt.Var) -> None:
        if trainer.global_step == 30:
            task.more = [jt.ones(3) * 2.0 for _ in range(500)]
            jt.sync(task.more)

    train(MemoryGuard(1.5, 5, 5), trainer, task, 300, in_hook=unfreeze, log_every=1)
    assert trainer.observers == []


def test_watching_changes_no_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = []
    for factor in (1e9, 1.01):
        jt.set_global_seed(0)
        trainer, task = FakeTrainer(tmp_path), Keeper()
        trained = [*task.first.parameters(), *task.second.parameters()]
        trainer.optimizer = jt.optim.AdamW(trained, lr=1e-2)
        guard = MemoryGuard(factor, 1, 5, on_alarm="warn")
        train(guard, trainer, task, 40, in_hook=task.predictions.append)
        weights.append({name: p.numpy() for name, p in task.named_parameters()})
        assert bool(caplog.records) == (factor < 2)
        task.predictions.clear()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)


def test_watching_executes_nothing(keeper: tuple[FakeTrainer, Keeper]) -> None:
    trainer, task = keeper
    jt.sync_all()
    watch = _Watch(trainer, task)
    pending = jt.ones(3) * 2.0
    with watch.observe("somewhere"):
        more = pending + 1.0
    for _ in range(4):
        watch.end_step()
    watch.findings(trainer)
    largest_holders(trainer, task)
    assert ":s0:" in pending.debug_msg()  # not computed yet
    assert ":s0:" in more.debug_msg()


def test_parameters_and_moments_are_not_named_as_holders(
    keeper: tuple[FakeTrainer, Keeper],
) -> None:
    trainer, task = keeper
    train(MemoryGuard(), trainer, task, 2)
    task.predictions.append(jt.ones(3))
    names = largest_holders(trainer, task, count=1000)
    assert "Keeper.predictions: list of 1 Vars, 0.0 MiB" in names
    assert len(trainer.optimizer.param_groups[0]["params"]) == 4
    assert "list of 4 Vars" not in names


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1.0},
        {"every_n_steps": 0},
        {"warmup_steps": 0},
        {"max_live_ops": 0},
        {"on_alarm": "shout"},
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MemoryGuard(**options)
