from __future__ import annotations

from collections.abc import Callable

import jittor as jt
import numpy as np
import pytest

from jtlightning.optim import (
    SGD,
    AdamW,
    ConstantSchedule,
    CosineSchedule,
    OptimizerDriver,
    OptimizerStateError,
    PolySchedule,
)


def adamw_in_float64(
    weight: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float
) -> np.ndarray:
    """Algorithm 2 of Loshchilov and Hutter, written down independently."""
    m = v = np.zeros_like(weight)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weight = weight * (1 - lr * decay) - lr * step
    return weight


def make_driver(weight: jt.Var, schedule: object = None) -> OptimizerDriver:
    optimizer = AdamW(lr=0.1, weight_decay=0.05).build([{"params": [weight]}])
    return OptimizerDriver(optimizer, schedule, 10, {id(weight): "w"})  # type: ignore[arg-type]


def test_bias_correction_counts_updates_not_backward_calls(rng: np.random.Generator) -> None:
    start, targets = rng.normal(size=5), rng.normal(size=(6, 5))
    weight = jt.array(start.astype(np.float32))
    driver = make_driver(weight)
    for update in range(3):
        for micro in range(2):  # accumulated: the gradient of the sum of both
            target = jt.array(targets[2 * update + micro].astype(np.float32))
            driver.optimizer.backward((weight * target).sum())
        driver.set_rates(update)
        driver.step()
    gradients = [targets[2 * u] + targets[2 * u + 1] for u in range(3)]
    expected = adamw_in_float64(start, gradients, 0.1, 0.05)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5)


def test_moments_restored_into_a_new_optimizer_continue_alike(rng: np.random.Generator) -> None:
    start = rng.normal(size=4).astype(np.float32)

    def steps(driver: OptimizerDriver, weight: jt.Var, numbers: range) -> None:
        for number in numbers:
            driver.optimizer.backward((weight * weight * (number + 1)).sum())
            driver.set_rates(number)
            driver.step()
            jt.sync_all()

    whole = jt.array(start)
    steps(make_driver(whole), whole, range(4))
    first = jt.array(start)
    driver = make_driver(first)
    steps(driver, first, range(2))
    second = jt.array(first.numpy())
    resumed = make_driver(second)
    resumed.load_tensors(driver.state_tensors(), "a test")
    resumed.updates = driver.updates
    steps(resumed, second, range(2, 4))
    np.testing.assert_array_equal(whole.numpy(), second.numpy())


def test_moments_of_another_optimizer_are_refused() -> None:
    weight = jt.ones(3)
    driver = make_driver(weight)
    tensors = driver.state_tensors()
    tensors["optimizer/0/m/other"] = tensors.pop("optimizer/0/m/w")
    with pytest.raises(OptimizerStateError, match=r"missing optimizer/0/m/w; unknown .*other"):
        driver.load_tensors(tensors, "file.ckpt")


def test_rates_are_named_by_group() -> None:
    weights = [jt.ones(2), jt.ones(2)]
    groups = [{"name": "decay", "params": weights[:1]}, {"params": weights[1:], "lr": 0.5}]
    driver = OptimizerDriver(SGD(lr=0.1).build(groups), CosineSchedule(), 10, {})
    driver.set_rates(5)
    assert driver.rates() == pytest.approx({"lr/decay": 0.05, "lr/1": 0.25})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantSchedule(warmup_steps=2), [0, 0.5, 1, 1, 1]),
        (PolySchedule(power=1.0), [1, 0.8, 0.6, 0.4, 0.2]),
        (PolySchedule(power=1.0, warmup_steps=2), [0, 0.5, 0.6, 0.4, 0.2]),
        # DFormer: the first update at the full rate, then policy(0), policy(1), ...
        (PolySchedule(power=1.0, warmup_steps=2, written_after_update=True), [1, 0, 0.5, 0.6, 0.4]),
        (CosineSchedule(), [1, 0.9045085, 0.6545085, 0.3454915, 0.0954915]),
        (CosineSchedule(warmup_steps=1, floor=0.5), [0, 1, 0.9267767, 0.75, 0.5732233]),
    ],
)
def test_schedules_in_closed_form(schedule: object, expected: list[float]) -> None:
    factors = [schedule(step, 5) for step in range(5)]  # type: ignore[operator]
    np.testing.assert_allclose(factors, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=-1.0), "AdamW.lr must be above 0, got -1.0"),
        (lambda: AdamW(betas=(0.9, 1.0)), r"AdamW.betas must be from 0 to below 1, got \(0.9"),
        (lambda: SGD(momentum=1.0), "SGD.momentum must be from 0 to below 1, got 1.0"),
        (lambda: SGD(weight_decay=-0.1), "SGD.weight_decay must be at least 0"),
        (lambda: ConstantSchedule(warmup_steps=-1), "warmup_steps must be at least 0, got -1"),
        (lambda: PolySchedule(power=0.0), "PolySchedule.power must be above 0"),
        (lambda: CosineSchedule(floor=2.0), "CosineSchedule.floor must be from 0 to 1"),
    ],
)
def test_values_that_cannot_train_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_base_rate_that_is_set_is_that_very_rate() -> None:
    weights = [jt.ones(2) for _ in range(3)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]]}]
    groups.append({"params": [weights[2]], "lr": 0.03})
    driver = OptimizerDriver(SGD(lr=0.3).build(groups), None, 10, {})
    rates = np.random.default_rng(0).uniform(1e-5, 1.0, 50).tolist()
    for rate in rates:
        driver.set_base_rate(rate)
        driver.set_rates(0)
        first, second, third = (group["lr"] for group in driver.optimizer.param_groups)
        assert first == second == rate
        assert third == pytest.approx(rate / 10)
