"""Memory that is refused ends a run with a message, and leaves what was saved.

Run as a module, this file trains under a limit: `python -m tests.torture.test_out_of_memory FOLDER
HOW`.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from jtlightning import runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from jtlightning.callbacks import EMA, ModelCheckpoint  # noqa: E402
from jtlightning.callbacks.base import Callback  # noqa: E402
from tests.jtlightning.test_fit import make_trainer  # noqa: E402
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of  # noqa: E402
from tests.torture.scale import report  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.torture]

ROOT = Path(__file__).parents[2]
ROOM_MIB = 600  # more than the process has when it starts to train
FIRST = 7  # step after which memory is asked for
PASSED: list[str] = []  # what has been seen to hold, for the row at the end
HOWS = ["kept Vars", "one large Var", "kept arrays", "a batch"]


class Hoard(Callback):
    """Limits the process, and then keeps 64 MiB more in every step, or asks for 8 GiB."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.kept: list[Any] = []

    def on_train_start(self, trainer: Any, task: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (ROOM_MIB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step < FIRST:
            return
        if self.how == "kept Vars":
            self.kept.append(jt.zeros((1024, 1024, 16)))
            jt.sync(self.kept)
        elif self.how == "kept arrays":
            self.kept.append(np.ones((1024, 1024, 8)))


class Hungry(TinyTask):
    """Asks for 8 GiB inside a step, in one Var or from the host."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.how == "one large Var" and self.trainer.global_step == FIRST:
            jt.zeros((2048, 1024, 1024)).sync()
        if self.how == "a batch" and self.trainer.global_step == FIRST:
            arrays = [jt.array(np.zeros((1024, 1024, 16), np.float32)) for _ in range(100)]
            return loss + sum(a.sum() for a in arrays)
        return loss


def fit(folder: Path, *callbacks: Callback, how: str = "", **settings: Any) -> Any:
    """The trainer after three epochs of six steps, with a checkpoint of each."""
    saver = ModelCheckpoint(every_n_train_steps=1, save_last=True)
    trainer = make_trainer(folder, max_epochs=3, callbacks=[EMA(0.9), saver, *callbacks])
    trainer.fit(Hungry(how), datamodule=TinyData(), **settings)
    return trainer


def start(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.torture.test_out_of_memory", str(folder), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return parameters_of(fit(tmp_path_factory.mktemp("undisturbed")).task)


@pytest.mark.parametrize("how", HOWS)
def test_the_holders_are_named_and_the_checkpoint_goes_on(
    tmp_path: Path, how: str, undisturbed: dict[str, np.ndarray]
) -> None:
    done = start(tmp_path, how)
    assert done.returncode == 1, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    told = re.search(r"OutOfMemoryError: out of memory at epoch \d, step (\d+): (.*)", last)
    assert told, last
    assert "Unable to allocate" in told[2]
    assert "parameters and statistics 0.0 MiB" in told[2]
    if how.startswith("kept"):
        kept = r"holders: Hoard\.kept: list of \d+ (Vars|arrays), [3-6]\d\d\.0 MiB"
        assert re.search(kept, told[2]), last
    trainer = fit(tmp_path, ckpt_path="last")
    assert trainer.global_step == 18
    for name, array in parameters_of(trainer.task).items():
        np.testing.assert_array_equal(array, undisturbed[name], err_msg=name)
    PASSED.append("memory")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_an_unrelated_child_that_dies_changes_nothing(
    tmp_path: Path, how: signal.Signals, undisturbed: dict[str, np.ndarray]
) -> None:
    class Child(Callback):
        """Starts a process that has nothing to do with training, and ends or stops it."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                self.process = subprocess.Popen(["sleep", "600"])
                self.process.send_signal(how)
                if how != signal.SIGSTOP:
                    assert self.process.wait(timeout=30) == -how

        def on_fit_end(self, trainer: Any, task: Any) -> None:
            self.process.kill()
            self.process.wait(timeout=30)

    trainer = fit(tmp_path, Child())
    assert trainer.global_step == 18
    for name, array in parameters_of(trainer.task).items():
        np.testing.assert_array_equal(array, undisturbed[name], err_msg=name)
    PASSED.append("child")


def test_the_row_is_reported() -> None:
    report(
        "out of memory, unrelated child process killed",
        "a message with the largest holders and the last checkpoint intact; nothing changes",
        f"{PASSED.count('memory')} of {len(HOWS)} named and continued bit-equal; "
        f"{PASSED.count('child')} of 3 children change nothing",
    )


if __name__ == "__main__":
    fit(Path(sys.argv[1]), Hoard(sys.argv[2]), how=sys.argv[2])
