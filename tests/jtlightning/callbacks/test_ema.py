from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.ema import EMA


class Net(nn.Module):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.BatchNorm(8), nn.Linear(8, 2)
        for layer in (self.first, self.second):
            layer.weight = jt.array(rng.standard_normal(layer.weight.shape, dtype=np.float32))
            layer.bias = jt.array(rng.standard_normal(layer.bias.shape, dtype=np.float32))

    def execute(self, x: jt.Var) -> jt.Var:
        return self.second(nn.relu(self.norm(self.first(x))))


class Bench:
    """A network, its optimizer and an EMA, trained step by step as a trainer would."""

    def __init__(self, ema: EMA, *, frozen: tuple[str, ...] = ()) -> None:
        self.task, self.ema = Net(), ema
        statistics = ("norm.running_mean", "norm.running_var")
        named = dict(self.task.named_parameters())
        trained = [p for name, p in named.items() if name not in (*statistics, *frozen)]
        self.trainer: Any = SimpleNamespace(optimizers=[jt.optim.AdamW(trained, lr=1e-2)])
        (self.optimizer,) = self.trainer.optimizers
        self.rng = np.random.default_rng(1)
        ema.on_fit_start(self.trainer, self.task)

    def step(self) -> None:
        x = jt.array(self.rng.standard_normal((8, 4), dtype=np.float32))
        self.optimizer.step((self.task(x) ** 2).mean())
        self.ema.on_after_optimizer_step(self.trainer, self.task, self.optimizer)
        jt.sync_all()

    def weights(self) -> dict[str, np.ndarray]:
        return {name: p.numpy() for name, p in self.task.named_parameters()}


def average(ema: EMA) -> dict[str, np.ndarray]:
    return ema.state_dict()["average"]


def test_the_average_is_the_recurrence_with_warm_up() -> None:
    bench = Bench(EMA(0.9, warmup_steps=5))
    expected = {name: value.astype(np.float64) for name, value in bench.weights().items()}
    for step in range(1, 7):
        bench.step()
        decay = 0.9 * (1 - math.exp(-step / 5))
        for name, value in bench.weights().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    assert average(bench.ema).keys() == expected.keys()
    for name, value in average(bench.ema).items():
        # Six float32 roundings of numbers around 1.
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_live_operations_do_not_grow() -> None:
    bench = Bench(EMA(0.99, warmup_steps=50))
    for _ in range(5):
        bench.step()
    baseline = jt.liveness_info()
    for _ in range(200):
        bench.step()
    assert jt.liveness_info() == baseline


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_evaluation_sees_the_average_and_training_goes_on_with_the_weights(stage: str) -> None:
    bench = Bench(EMA(0.9))
    for _ in range(3):
        bench.step()
    raw, averaged = bench.weights(), average(bench.ema)
    getattr(bench.ema, f"on_{stage}_start")(bench.trainer, bench.task)
    np.testing.assert_equal(bench.weights(), averaged)
    np.testing.assert_equal(average(bench.ema), averaged)
    getattr(bench.ema, f"on_{stage}_end")(bench.trainer, bench.task)
    np.testing.assert_equal(bench.weights(), raw)
    np.testing.assert_equal(average(bench.ema), averaged)


@pytest.mark.parametrize("hook", ["on_exception", "teardown"])
def test_an_error_in_an_evaluation_gives_the_weights_back(hook: str) -> None:
    bench = Bench(EMA(0.9))
    bench.step()
    raw = bench.weights()
    bench.ema.on_validation_start(bench.trainer, bench.task)
    getattr(bench.ema, hook)(bench.trainer, bench.task, RuntimeError())
    np.testing.assert_equal(bench.weights(), raw)


@pytest.mark.parametrize("order", ["flags off first", "flags off last", "flags on last"])
def test_training_is_unchanged_by_validations_in_between(order: str) -> None:
    runs = []
    for validate in (False, True):
        bench = Bench(EMA(0.9))
        bench.step()
        if validate:
            flags = [(p, p.requires_grad) for p in bench.task.parameters()]
            start = [lambda b=bench: b.ema.on_validation_start(b.trainer, b.task)]
            start.insert(
                0 if order == "flags off first" else 1,
                lambda f=flags: [p.stop_grad() for p, _ in f],
            )
            for action in start:
                action()
            end = [lambda b=bench: b.ema.on_validation_end(b.trainer, b.task)]
            end.insert(
                1 if order == "flags on last" else 0,
                lambda f=flags: [setattr(p, "requires_grad", flag) for p, flag in f],
            )
            for action in end:
                action()
            jt.sync_all()
            assert [p.requires_grad for p, _ in flags] == [flag for _, flag in flags]
        for _ in range(3):
            bench.step()
        runs.append((bench.weights(), average(bench.ema)))
    np.testing.assert_equal(runs[1], runs[0])


def test_a_restored_average_continues_bit_for_bit() -> None:
    bench = Bench(EMA(0.9, warmup_steps=5))
    for _ in range(2):
        bench.step()
    state = bench.ema.state_dict()
    resumed = EMA(0.9, warmup_steps=5)
    resumed.load_state_dict(state)
    resumed.on_fit_start(bench.trainer, bench.task)
    bench.step()
    resumed.on_after_optimizer_step(bench.trainer, bench.task, bench.optimizer)
    np.testing.assert_equal(resumed.state_dict(), bench.ema.state_dict())


def test_a_restored_average_is_used_without_an_optimizer() -> None:
    bench = Bench(EMA(0.9))
    bench.step()
    ema, task = EMA(0.9), Net()
    ema.load_state_dict(bench.ema.state_dict())
    ema.on_test_start(SimpleNamespace(optimizers=[]), task)
    np.testing.assert_equal(
        {name: p.numpy() for name, p in task.named_parameters()}, average(bench.ema)
    )


def test_frozen_weights_and_statistics_can_stay_out() -> None:
    bench = Bench(EMA(0.9, average_statistics=False), frozen=("first.weight",))
    bench.step()
    assert sorted(average(bench.ema)) == [
        "first.bias",
        "norm.bias",
        "norm.weight",
        "second.bias",
        "second.weight",
    ]


def test_a_layer_that_joins_the_optimizer_joins_the_average() -> None:
    bench = Bench(EMA(0.9), frozen=("first.weight",))
    bench.step()
    bench.optimizer.add_param_group({"params": [bench.task.first.weight]})
    bench.ema.on_train_epoch_start(bench.trainer, bench.task)
    np.testing.assert_equal(average(bench.ema)["first.weight"], bench.task.first.weight.numpy())


def test_each_of_several_optimizers_moves_what_it_updates() -> None:
    bench = Bench(EMA(0.5), frozen=("second.weight",))
    other = jt.optim.SGD([bench.task.second.weight], lr=0.0)
    bench.trainer.optimizers.append(other)
    bench.ema.on_fit_start(bench.trainer, bench.task)
    start, named = average(bench.ema), dict(bench.task.named_parameters())
    for weight in named.values():
        weight.assign(weight + 1.0)
    bench.ema.on_after_optimizer_step(bench.trainer, bench.task, other)
    moved = {n for n, value in average(bench.ema).items() if (value != start[n]).any()}
    assert moved == {"second.weight"}
    assert bench.ema.updates == 0
    bench.ema.on_after_optimizer_step(bench.trainer, bench.task, bench.optimizer)
    assert bench.ema.updates == 1
    for name, value in average(bench.ema).items():
        # One rounding of numbers around 1.
        np.testing.assert_allclose(value, start[name] + 0.5, atol=1e-6, err_msg=name)


def test_a_save_within_an_evaluation_holds_the_raw_weights() -> None:
    bench = Bench(EMA(0.9))
    bench.step()
    raw = bench.weights()
    bench.ema.on_validation_start(bench.trainer, bench.task)
    tensors = {f"model/{name}": value for name, value in bench.weights().items()}
    bench.ema.on_save_checkpoint(bench.trainer, bench.task, SimpleNamespace(tensors=tensors))
    np.testing.assert_equal(tensors, {f"model/{name}": value for name, value in raw.items()})


def test_a_state_of_another_task_is_refused_by_name() -> None:
    ema = EMA()
    ema.load_state_dict({"updates": 3, "average": {"head.weight": np.zeros(2, np.float32)}})
    with pytest.raises(ValueError, match=r"head\.weight"):
        Bench(ema)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"warmup_steps": -1}])
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EMA(**options)
