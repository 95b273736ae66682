"""Learning rates, throughput and times."""

from __future__ import annotations

from pathlib import Path

import pytest

from jtlightning.callbacks.lr_monitor import LearningRateMonitor
from jtlightning.callbacks.throughput import Throughput
from jtlightning.callbacks.timer import Timer
from tests.jtlightning.fake_trainer import FakeTrainer


class Clock:
    """Stands in for the time module's clocks."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def test_learning_rates_are_logged_with_the_other_metrics(tmp_path: Path) -> None:
    trainer, monitor = FakeTrainer(tmp_path), LearningRateMonitor()
    trainer.rates = {"lr/decay": 0.1, "lr/no_decay": 0.2}
    for step, trainer.should_log in ((1, False), (2, True)):
        trainer.global_step = step
        monitor.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.logged == [(2, {"lr/decay": 0.1, "lr/no_decay": 0.2})]


def test_learning_rates_can_have_their_own_cadence(tmp_path: Path) -> None:
    trainer, monitor = FakeTrainer(tmp_path), LearningRateMonitor(every_n_steps=3)
    for trainer.global_step in range(1, 8):
        monitor.on_train_batch_end(trainer, None, None, None, 0)
    assert [step for step, _ in trainer.logged] == [3, 6]


def test_nothing_is_logged_inside_an_accumulation_window(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.at_step_boundary = False
    LearningRateMonitor(1).on_train_batch_end(trainer, None, None, None, 0)
    Throughput(every_n_steps=1).on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.logged == []


def run_steps(
    trainer: FakeTrainer, meter: Throughput, clock: Clock, times_s: list[float], wait_s: float = 0.0
) -> None:
    for seconds in times_s:
        clock.now_s += seconds
        trainer.global_step += 1
        trainer.samples_seen += 8
        trainer.data_wait_s += wait_s
        meter.on_train_batch_end(trainer, None, None, None, 0)


def test_throughput_covers_the_last_steps_without_compilation(tmp_path: Path, clock: Clock) -> None:
    trainer, meter = FakeTrainer(tmp_path), Throughput(window=4, skip_steps=2)
    meter.on_train_start(trainer, None)
    run_steps(trainer, meter, clock, [90.0, 60.0, 0.5, 0.5], wait_s=0.1)
    assert trainer.logged[-1][1] == pytest.approx(
        {
            "throughput/samples_per_s": 16.0,
            "throughput/steps_per_s": 2.0,
            "throughput/ms_per_step": 500.0,
            "throughput/data_wait_percent": 20.0,
        }
    )
    run_steps(trainer, meter, clock, [0.25] * 4)
    assert trainer.logged[-1][1]["throughput/ms_per_step"] == pytest.approx(250.0)


def test_throughput_leaves_validation_out(tmp_path: Path, clock: Clock) -> None:
    trainer, meter = FakeTrainer(tmp_path), Throughput(skip_steps=0)
    meter.on_train_start(trainer, None)
    run_steps(trainer, meter, clock, [1.0, 1.0])
    meter.on_validation_start(trainer, None)
    clock.now_s += 100.0
    meter.on_validation_end(trainer, None)
    run_steps(trainer, meter, clock, [1.0, 1.0])
    assert trainer.logged[-1][1]["throughput/ms_per_step"] == pytest.approx(1000.0)


@pytest.mark.parametrize("validates", [False, True])
def test_throughput_leaves_the_writing_of_checkpoints_out_but_not_the_data(
    tmp_path: Path, clock: Clock, validates: bool
) -> None:
    trainer, meter = FakeTrainer(tmp_path), Throughput(skip_steps=0)
    meter.on_train_start(trainer, None)
    for _ in range(3):
        run_steps(trainer, meter, clock, [1.0])
        if validates:
            meter.on_validation_start(trainer, None)
            clock.now_s += 100.0
            meter.on_validation_end(trainer, None)
        clock.now_s += 30.0  # taking the snapshot
        meter.on_save_checkpoint(trainer, None, None)
        clock.now_s += 20.0  # writing it
        clock.now_s += 0.5
        trainer.data_wait_s += 0.5
        meter.on_train_batch_start(trainer, None, None, 0)
    assert trainer.logged[-1][1]["throughput/ms_per_step"] == pytest.approx(1500.0)
    assert trainer.logged[-1][1]["throughput/data_wait_percent"] == pytest.approx(100 / 3)


def test_throughput_counts_what_runs_between_steps_without_a_save(
    tmp_path: Path, clock: Clock
) -> None:
    trainer, meter = FakeTrainer(tmp_path), Throughput(skip_steps=0)
    meter.on_train_start(trainer, None)
    for _ in range(3):
        run_steps(trainer, meter, clock, [1.0])
        clock.now_s += 1.0
        meter.on_train_batch_start(trainer, None, None, 0)
    assert trainer.logged[-1][1]["throughput/ms_per_step"] == pytest.approx(2000.0)


def test_timer_sums_over_processes(tmp_path: Path, clock: Clock) -> None:
    trainer, first = FakeTrainer(tmp_path), Timer()
    first.on_validation_start(trainer, None)  # the sanity check comes before training
    first.on_validation_end(trainer, None)
    first.on_train_start(trainer, None)
    clock.now_s += 10.0
    first.on_validation_start(trainer, None)
    clock.now_s += 4.0
    first.on_validation_end(trainer, None)
    second = Timer()
    second.load_state_dict(first.state_dict())
    second.on_train_start(trainer, None)
    clock.now_s += 1.0
    second.on_train_epoch_end(trainer, None)
    assert [values for _, values in trainer.logged] == [
        {"time/train_s": 10.0, "time/validation_s": 4.0},
        {"time/train_s": 11.0, "time/validation_s": 4.0},
    ]


@pytest.mark.parametrize("window", [0, -1])
def test_bad_arguments_are_named(window: int) -> None:
    with pytest.raises(ValueError, match=str(window)):
        Throughput(window=window)
    with pytest.raises(ValueError, match=str(window)):
        LearningRateMonitor(window)
