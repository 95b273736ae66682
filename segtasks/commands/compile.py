"""`segtasks compile`: the kernels of a configuration, compiled ahead of its run."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jtlightning.callbacks.base import Callback
from jtlightning.cli.command import capture_chatter
from jtlightning.runtime.kernels import added, stamps
from segtasks.commands.assembly import Assembly
from segtasks.commands.mistakes import tell_mistake
from segtasks.data.base import SplitDataModule

if TYPE_CHECKING:
    from jtlightning.runtime.chatter import Chatter
    from jtlightning.task import Task
    from jtlightning.trainer import Trainer

_log = logging.getLogger(__name__)
#: The second step meets the optimizer's state, the third and later ones nothing new.
_STEPS = 3
#: The second batch is added to the first one's scores.
_EVALUATED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 when done, 2 where the configuration or its data are not complete.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    began = time.perf_counter()
    # Kept where something fails: what the compilers said is in it.
    folder = Path(tempfile.mkdtemp(prefix="segtasks-compile-"))
    chatter = capture_chatter(folder)
    try:
        run = _prepare(arguments.config, overrides, folder)
    except (ValueError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not tell_mistake(error):
            raise
        return 2
    try:
        new, present = run.compile(chatter)
    except BaseException:
        _log.error("what Jittor and the compilers wrote is in %s", folder / "jittor.log")
        raise
    shutil.rmtree(folder, ignore_errors=True)
    compiling = chatter.compile_seconds if chatter is not None else 0.0
    _report(new, present, compiling, time.perf_counter() - began)
    return 0


class CompileRun:
    """A short run of a configuration, on the trainer's own way, that leaves nothing but kernels.

    Args:
        trainer: With the limits of `_shortened`.
        data: Its data module, set up once to see that the files are there.
        task: What is trained and evaluated.
    """

    def __init__(self, trainer: Trainer, data: Any, task: Task) -> None:
        self.trainer, self.data, self.task = trainer, data, task

    def compile(self, chatter: Chatter | None) -> tuple[int, int]:
        """Train, validate and test.

        Returns:
            Number of kernels that were compiled, and of all in the cache.
        """
        import jittor as jt

        cache = Path(jt.flags.cache_path)
        before = stamps(cache)
        sides = sorted(set(getattr(self.task, "multi_scale", ())))
        self.trainer.max_steps = max(_STEPS, len(sides))
        tests = _has_test(self.data)
        self.trainer.callbacks += [_Sides(sides), _Progress(chatter, tests)]
        # Scores of an untrained network: nobody wants to read them.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            self.trainer.fit(self.task, datamodule=self.data)
            if tests:
                self.trainer.test(self.task, datamodule=self.data)
        if chatter is not None:
            chatter.show_progress(0, 0)
        after = stamps(cache)
        return len(added(before, after)), len(after)


class _Sides(Callback):
    """Has each training step use the next of the sizes from which a task draws."""

    def __init__(self, sides: list[int]) -> None:
        self.sides = sides

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        if self.sides:
            task.multi_scale = [self.sides[trainer.global_step % len(self.sides)]]


class _Progress(Callback):
    """Counts batches on the line that tells of the compiling."""

    def __init__(self, chatter: Chatter | None, tests: bool) -> None:
        self.chatter, self.tests = chatter, tests
        self.done = self.total = 0

    def on_fit_start(self, trainer: Trainer, task: Task) -> None:
        evaluated = trainer.num_val_batches + _EVALUATED * self.tests
        evaluated += min(trainer.num_sanity_val_steps, trainer.num_val_batches)
        self.total = trainer.max_steps * trainer.accumulate_grad_batches + evaluated
        self._show()

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_test_batch_end(self, *_: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        self.done += 1
        self._show()

    def _show(self) -> None:
        if self.chatter is not None:
            self.chatter.show_progress(self.done, self.total)


def _prepare(configs: Sequence[str], overrides: Sequence[str], folder: Path) -> CompileRun:
    """Build everything, and see that the data are there, before anything is compiled."""
    assembly = Assembly(configs, overrides)
    _shorten(assembly, folder)
    trainer, data = assembly.trainer(), assembly.data()
    data.prepare_data()
    if isinstance(data, SplitDataModule):
        data.check_files = False  # few of them are read, and each is looked at then
    for stage in ("fit", "test"):
        data.setup(stage)
    return CompileRun(trainer, data, assembly.task(data))


def _shorten(assembly: Assembly, folder: Path) -> None:
    """Few batches, no loggers, checkpoints or output but in `folder`; else what is configured."""
    values = assembly.config.values
    settings = values["trainer"] = values.get("trainer") or {}
    window = int(settings.get("accumulate_grad_batches", 1))
    settings.update(
        devices="auto",
        num_nodes=1,
        max_epochs=None,
        max_steps=_STEPS,
        max_time=None,
        fast_dev_run=False,
        limit_train_batches=_STEPS * window,
        limit_val_batches=_EVALUATED,
        limit_test_batches=_EVALUATED,
        val_check_interval=1.0,
        check_val_every_n_epoch=1,
        log_every_n_steps=1,
        profiler=None,
        logger=True,  # a CSV file in the folder: some callbacks need a run's folder
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    task = assembly.config.get("task.init_args")
    if isinstance(task, dict):  # kernels do not depend on values, and the file may not be here
        for name in ("weights", "skip_weights"):
            task.pop(name, None)


def _has_test(data: Any) -> bool:
    from jtlightning.data.datamodule import DataModule

    return type(data).test_dataloader is not DataModule.test_dataloader


def _report(new: int, present: int, compiling: float, took: float) -> None:
    console = Console(soft_wrap=True, highlight=False)
    compiled = f"compiled {new:,} kernels in {compiling:.1f} s" if new else "no kernel was missing"
    console.print(f"{compiled}; {present:,} are in the cache now; {took:.1f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segtasks compile",
        description=(
            "Compile the kernels of a configuration ahead of its run: a few training steps, at"
            " every input size, then validation and test batches, as the trainer does them, in a"
            " temporary folder. Needs the data; weights are not read. Further options are those"
            " of fit, such as --data.root DIR. Exit code 0: done, 2: configuration or data are"
            " not complete."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        required=True,
        metavar="FILE",
        help="a configuration; may be repeated",
    )
    return parser
