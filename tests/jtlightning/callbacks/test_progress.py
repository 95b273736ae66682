from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jtlightning.callbacks.progress import RichProgressBar
from tests.jtlightning.fake_trainer import FakeTrainer


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def show(bar: RichProgressBar, *, terminal: bool) -> io.StringIO:
    output = io.StringIO()
    bar.console = Console(file=output, force_terminal=terminal, width=200)
    return output


def train_epoch(
    bar: RichProgressBar, trainer: FakeTrainer, clock: Clock, *, step_s: float = 1.0
) -> None:
    bar.on_train_epoch_start(trainer, None)
    for index in range(trainer.num_training_batches):
        trainer.batch_idx = index + 1
        clock.now_s += step_s
        trainer.global_step += 1
        bar.on_train_batch_end(trainer, None, None, None, index)
    bar.on_train_epoch_end(trainer, None)


def test_plain_lines_are_sparse_and_tell_everything(tmp_path: Path, clock: Clock) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.num_training_batches, trainer.estimated_stepping_batches = 25, 50
    trainer.metrics.update({"train/loss": 0.51239, "hidden": 1.0})
    trainer.metrics.shown = ("train/loss",)
    bar = RichProgressBar(line_every_s=10.0)
    output = show(bar, terminal=False)
    bar.on_train_start(trainer, None)
    train_epoch(bar, trainer, clock)
    assert output.getvalue().splitlines() == [
        "epoch 1/2  step 10/50  1.00 it/s  ETA 0:00:40  train/loss 0.5124",
        "epoch 1/2  step 20/50  1.00 it/s  ETA 0:00:30  train/loss 0.5124",
        "epoch 1/2 took 25.0 s  step 25/50  1.00 it/s  ETA 0:00:25  train/loss 0.5124",
    ]


def test_a_validation_is_one_plain_line(tmp_path: Path, clock: Clock) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.global_step = 30
    trainer.metrics["val/miou"], trainer.metrics.shown = 0.25, ("val/miou",)
    bar = RichProgressBar()
    output = show(bar, terminal=False)
    bar.on_validation_start(trainer, None)
    for index in range(2):
        bar.on_validation_batch_end(trainer, None, None, None, index)
    bar.on_validation_end(trainer, None)
    assert output.getvalue() == "validation after step 30: 2 batches  val/miou 0.25\n"


def test_speed_leaves_out_compilation_and_validation(tmp_path: Path, clock: Clock) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.num_training_batches = 4
    bar = RichProgressBar()
    output = show(bar, terminal=False)
    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    for step_s in (90.0, 60.0, 2.0, 2.0):
        clock.now_s += step_s
        trainer.global_step += 1
        bar.on_train_batch_end(trainer, None, None, None, 0)
    bar.on_validation_start(trainer, None)
    clock.now_s += 500.0
    bar.on_validation_end(trainer, None)
    bar.on_train_epoch_end(trainer, None)
    assert "2.00 s/it" in output.getvalue().splitlines()[-1]
    train_epoch(bar, trainer, clock, step_s=2.0)
    assert "2.00 s/it" in output.getvalue().splitlines()[-1]


def test_an_endless_run_has_no_remaining_time(tmp_path: Path, clock: Clock) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.estimated_stepping_batches, trainer.max_epochs = sys.maxsize, None
    bar = RichProgressBar()
    output = show(bar, terminal=False)
    bar.on_train_start(trainer, None)
    train_epoch(bar, trainer, clock, step_s=0.1)
    assert output.getvalue() == "epoch 1 took 1.0 s  step 10  10.00 it/s\n"


def test_a_terminal_is_refreshed_at_most_every_interval(tmp_path: Path, clock: Clock) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.num_training_batches = 200
    bar = RichProgressBar(refresh_s=0.2)
    output = show(bar, terminal=True)
    bar.on_train_start(trainer, None)
    train_epoch(bar, trainer, clock, step_s=0.01)  # two seconds
    bar.on_train_end(trainer, None)
    assert 8 <= output.getvalue().count("epoch 1/2") <= 14
    assert "200/200" in output.getvalue()


@pytest.mark.parametrize("hook", ["train_end", "exception", "teardown"])
def test_the_terminal_is_given_back(tmp_path: Path, clock: Clock, hook: str) -> None:
    trainer = FakeTrainer(tmp_path)
    bar = RichProgressBar()
    output = show(bar, terminal=True)
    bar.on_train_epoch_start(trainer, None)
    assert output.getvalue().endswith("\x1b[?25l") or "\x1b[?25l" in output.getvalue()
    if hook == "train_end":
        bar.on_train_end(trainer, None)
    elif hook == "exception":
        bar.on_exception(trainer, None, RuntimeError())
    else:
        bar.teardown(trainer, None, "fit")
    assert "\x1b[?25h" in output.getvalue()


def test_metrics_are_read_only_when_something_is_shown(tmp_path: Path, clock: Clock) -> None:
    reads = []

    class Metrics:
        def progress_bar(self) -> dict[str, float]:
            reads.append(clock.now_s)
            return {}

    trainer = FakeTrainer(tmp_path)
    trainer.metrics = Metrics()  # type: ignore[assignment]
    bar = RichProgressBar(line_every_s=5.0)
    show(bar, terminal=False)
    bar.on_train_start(trainer, None)
    train_epoch(bar, trainer, clock)
    assert reads == [1005.0, 1010.0, 1010.0]


def test_times_must_be_positive() -> None:
    with pytest.raises(ValueError, match="refresh_s=0"):
        RichProgressBar(refresh_s=0)
