"""The run that is tortured: everything that must survive, small, and telling where it is.

`python -m tests.torture.program FOLDER --epochs N` trains, continuing where an earlier process of
the folder stopped, and writes one JSON line to stdout for each event: the state's hashes at every
step boundary, each save, and the place where it pauses if it was asked to. A pause ends when a
byte arrives on stdin.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jtlightning import runtime

runtime.prepare()

if __name__ == "__main__":  # as the command line does it
    from jtlightning.cli.interrupt import leave_at_ctrl_c

    with leave_at_ctrl_c():
        import jittor  # noqa: F401

        from jtlightning.signals import reclaim

        reclaim()

import jittor as jt  # noqa: E402
import numpy as np  # noqa: E402

from jtlightning.callbacks import model_checkpoint  # noqa: E402
from jtlightning.callbacks.base import Callback  # noqa: E402
from jtlightning.callbacks.ema import EMA  # noqa: E402
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint  # noqa: E402
from jtlightning.data.loader import Loader  # noqa: E402
from jtlightning.trainer import Trainer  # noqa: E402
from tests.jtlightning.tiny import TinyData, TinyTask, collate, jitter  # noqa: E402
from tests.torture.operations import Operations  # noqa: E402

Tell = Callable[..., None]

#: 7 micro-batches an epoch: windows of 2, 2, 2 and 1; a validation after 4 of them.
SETTINGS: dict[str, Any] = {
    "accumulate_grad_batches": 2,
    "val_check_interval": 4,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Data(TinyData):
    """Shuffled and augmented, 28 samples in batches of 4, from `workers` processes."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__(batch_size=4, train=28)
        self.workers = workers

    def train_dataloader(self) -> Loader:
        return Loader(
            self.train,
            self.batch_size,
            collate=collate,
            transform=jitter,
            shuffle=True,
            num_workers=self.workers,
        )


def state_of(trainer: Trainer, task: TinyTask, ema: EMA) -> dict[str, dict[str, np.ndarray]]:
    """All that a resumed run has to repeat, as arrays; for a step boundary."""
    named = {name: p.numpy() for name, p in task.named_parameters()}
    statistics = {name: named.pop(name) for name in list(named) if ".running_" in name}
    state = trainer.state
    counters = [state.epoch, state.batch_in_epoch, state.global_step, ema.updates]
    return {
        "weights": named,
        "statistics": statistics,
        "optimizer": trainer.drivers[0].state_tensors(),
        "averages": ema.state_dict()["average"],
        "position": {"counters": np.array(counters)},
    }


def hashes_of(state: dict[str, dict[str, np.ndarray]]) -> dict[str, str]:
    """A hash of each part of a state: names, shapes, types and every bit."""
    found = {}
    for part, arrays in state.items():
        digest = hashlib.blake2b(digest_size=12)
        for name, array in sorted(arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        found[part] = digest.hexdigest()
    return found


class Hashes(Callback):
    """Tells the state's hashes when training starts and at every step boundary."""

    def __init__(self, tell: Tell, ema: EMA) -> None:
        self.tell, self.ema = tell, ema

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self._tell("resumed", trainer, task)

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self._tell("step", trainer, task)

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        self.tell("end", step=trainer.global_step)

    def _tell(self, event: str, trainer: Trainer, task: Any) -> None:
        hashes = hashes_of(state_of(trainer, task, self.ema))
        self.tell(event, step=trainer.global_step, hashes=hashes)


def watch_saves(operations: Operations) -> None:
    """Let `operations` see what each save does, on whichever thread."""
    publish = model_checkpoint.publish_file

    def watched(*arguments: Any) -> None:
        with operations.watched():
            publish(*arguments)

    model_checkpoint.publish_file = watched


def pause_at(hook: str, number: int, pause: Tell) -> Callback:
    """Waits at the `number`-th call of a hook in this process."""
    left = number

    def wait(callback: Callback, trainer: Trainer, *_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            pause(hook)

    return type("PauseAt", (Callback,), {hook: wait})()


class BusyKernel(Callback):
    """Runs one long kernel, which holds the interpreter, behind the given step of the process."""

    def __init__(self, step: int, seconds: float, tell: Tell) -> None:
        self.left, self.seconds, self.tell = step, seconds, tell

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        self.left -= int(trainer.at_step_boundary)
        if self.left == 0 and trainer.at_step_boundary:
            self._compute(0.0)  # compiles it
            self.tell("busy")
            self._compute(self.seconds)

    def _compute(self, seconds: float) -> None:
        source = """
            auto now = [] { return std::chrono::steady_clock::now(); };
            auto end = now() + std::chrono::duration<double>(@in0(0));
            while (now() < end) @out(0) += 1;
        """
        limit = jt.array(np.array([seconds], np.float32))
        header = "#include <chrono>"
        jt.code([1], "float32", [limit], cpu_src=source, cpu_header=header).sync()


class OtherChildren(Callback):
    """Starts processes that have nothing to do with the run and lets them end in every bad way."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.children: list[subprocess.Popen] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        ways = [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM]
        if trainer.at_step_boundary and trainer.global_step % 2 and len(self.children) < len(ways):
            child = subprocess.Popen(["sleep", "60"])
            child.send_signal(ways[len(self.children)])
            self.children.append(child)

    def teardown(self, trainer: Trainer, task: Any, stage: str) -> None:
        stopped = self.children[1]
        self.tell("children", codes=[c.wait() for c in self.children if c is not stopped])
        stopped.kill()
        stopped.wait()


def build(
    folder: Path, tell: Tell, *callbacks: Callback, workers: int = 0, **arguments: Any
) -> tuple[Trainer, TinyTask, Data, EMA]:
    """Everything of one process of the run, ready for `fit`."""
    ema = EMA(decay=0.9)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        callbacks=[ema, *callbacks, Hashes(tell, ema)],
        **{**SETTINGS, **arguments},
    )
    return trainer, TinyTask(), Data(workers), ema


def _announce(event: str, **values: Any) -> None:
    """One write, so that a kill leaves no half line."""
    line = {"event": event, "time": time.monotonic(), **values}
    os.write(1, f"{json.dumps(line)}\n".encode())


def _pause(place: str, **values: Any) -> None:
    _announce("paused", place=place, **values)
    os.read(0, 1)


def _callbacks(options: argparse.Namespace) -> list[Callback]:
    kind, _, place = options.pause.partition(":")
    watch_saves(Operations(_announce, _pause, place if kind == "save" else ""))
    asynchronous = options.asynchronous
    found: list[Callback] = [
        ModelCheckpoint(every_n_train_steps=3, save_top_k=2, asynchronous=asynchronous),
        ModelCheckpoint(monitor="val/loss", save_last=False, asynchronous=asynchronous),
    ]
    if kind.startswith("on_"):
        found.append(pause_at(kind, int(place), _pause))
    if kind == "busy":
        step, _, seconds = place.partition(":")
        found.append(BusyKernel(int(step), float(seconds), _announce))
    if options.other_children:
        found.append(OtherChildren(_announce))
    return found


def main() -> None:
    """Train as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pause", default="")
    parser.add_argument("--asynchronous", action="store_true")
    parser.add_argument("--other-children", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    trainer, task, data, _ = build(
        options.folder,
        _announce,
        *_callbacks(options),
        workers=options.workers,
        max_epochs=options.epochs,
    )
    trainer.fit(task, datamodule=data, ckpt_path="auto")
    _announce("done")


if __name__ == "__main__":
    main()
