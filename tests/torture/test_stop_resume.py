"""Stopped once at each step in turn and continued with other logging: always the same bits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from tests.torture.program import build, state_of
from tests.torture.run_process import STEPS_PER_EPOCH
from tests.torture.scale import report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

STEPS = 40
EPOCHS = STEPS // STEPS_PER_EPOCH + 1
STOPS = range(1, STEPS + 1)
WORKERS_EVERY = 8  # a worker process takes a second to start

#: What may differ between the two halves of a run without changing a bit of it.
VARIANTS: list[dict[str, Any]] = [
    {"log_every_n_steps": 1},
    {"log_every_n_steps": 50, "logger": False},
    {"log_every_n_steps": 3, "enable_progress_bar": True, "enable_model_summary": True},
    {"log_every_n_steps": 7, "logger": False, "enable_progress_bar": True},
]


class StopAt(Callback):
    """Sends SIGTERM so that the run stops after `step`; from where, depends on the step."""

    def __init__(self, step: int) -> None:
        self.step = step
        # In its epoch a step is 0 at the end, 2 where the validation is.
        self.moment = {0: "epoch end", 1: "window", 2: "validation", 3: "boundary"}[step % 4]
        if step % 8 > 4:
            self.moment = "boundary" if step % 2 == 0 else "window"

    def _stop_if(self, moment: str, step: int) -> None:
        if moment == self.moment and step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_after_backward(self, trainer: Any, task: Any) -> None:
        self._stop_if("window", trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self._stop_if("boundary", trainer.global_step)

    def on_validation_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._stop_if("validation", trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        self._stop_if("epoch end", trainer.global_step)


class Means(Callback):
    """Keeps what each epoch has logged as its means, by epoch."""

    runs_after_task = True

    def __init__(self) -> None:
        self.by_epoch: dict[int, tuple[float, float]] = {}

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        values = trainer.metrics["train/loss"], trainer.metrics["val/loss"]
        self.by_epoch[trainer.current_epoch] = values


class Run:
    """One process's part of a run, here in one process; what it told, and its end state."""

    def __init__(self, folder: Path, *callbacks: Callback, **arguments: Any) -> None:
        self.hashes: dict[int, dict[str, str]] = {}
        self.means = Means()
        callbacks = (self.means, *callbacks)
        self._built = build(folder, self._tell, *callbacks, max_epochs=EPOCHS, **arguments)

    def _tell(self, event: str, *, step: int, hashes: dict[str, str] | None = None) -> None:
        if hashes is not None:
            self.hashes[step] = hashes

    def fit(self) -> Run:
        trainer, task, data, _ = self._built
        trainer.fit(task, datamodule=data, ckpt_path="auto")
        return self

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """Everything at the end."""
        trainer, task, _, ema = self._built
        return state_of(trainer, task, ema)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("left_alone")).fit()


def test_a_run_stopped_at_any_step_ends_with_the_same_bits(tmp_path: Path, left_alone: Run) -> None:
    began = time.monotonic()
    expected = left_alone.state()
    compared, moments = 0, set()
    for number, step in enumerate(STOPS):
        folder = tmp_path / str(step)
        first, second = VARIANTS[number % 4], VARIANTS[(number // 4 + number + 1) % 4]
        workers = int(number % WORKERS_EVERY == 0)
        stop = StopAt(step)
        moments.add(stop.moment)
        halves = [Run(folder, stop, workers=workers, **first), Run(folder, **second)]
        with pytest.raises(SystemExit) as stopped:
            halves[0].fit()
        assert stopped.value.code == 143
        assert max(halves[0].hashes) == step, stop.moment
        halves[1].fit()
        assert min(halves[1].hashes) == step
        assert halves[0].means.by_epoch | halves[1].means.by_epoch == left_alone.means.by_epoch
        for half in halves:
            for at, hashes in half.hashes.items():
                assert hashes == left_alone.hashes[at], f"stopped at {step}: step {at} differs"
                compared += 1
        for part, arrays in halves[1].state().items():
            for name, array in arrays.items():
                where = f"stopped at {step}: {part} {name}"
                np.testing.assert_array_equal(array, expected[part][name], err_msg=where)
    assert moments == {"boundary", "window", "validation", "epoch end"}
    report(
        "stop and resume at every step 1 to 40",
        "40 of 40 bit-equal; in a window, an epoch, around validation; logging varied",
        f"{len(STOPS)} of {len(STOPS)} bit-equal at the end and in all {compared} states on the "
        f"way; stopped at: {', '.join(sorted(moments))}; {time.monotonic() - began:.0f} s",
    )
