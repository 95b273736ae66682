"""Where a run spends its time: by hook and part of the loop, or by kernel."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jittor as jt
from rich import box
from rich.console import Console
from rich.table import Table

_log = logging.getLogger(__name__)
_WIDTH = 110  # of a table in a log or file


class Profiler:
    """Something that the trainer enters around every hook and every part of the loop.

    Subclass it, override what is needed, and pass it as `Trainer(profiler=)`.
    """

    def start(self) -> None:
        """The run begins; what was measured before is dropped."""

    @contextmanager
    def observe(self, place: str) -> Iterator[None]:
        """Entered around `place`, such as `EMA.on_fit_start`, `MyTask.training_step`, `backward`.

        Places can lie inside each other, as a hook that runs within a part of the loop does.
        """
        yield

    def report(self) -> str:
        """What was measured, as text of several lines."""
        return ""

    def finish(self, folder: Path | None) -> None:
        """The run has ended: write the report to `profile.txt` in `folder`, or else to the log."""
        report, name = self.report(), type(self).__name__
        if folder is None:
            _log.info("%s\n%s", name, report)
            return
        path = folder / "profile.txt"
        path.write_text(f"{report}\n", encoding="utf-8")
        _log.info("%s: %s; the table is in %s", name, report.partition("\n")[0], path)


class SimpleProfiler(Profiler):
    """Total and mean time, count and share of the whole for every place.

    Jittor is lazy, so what `training_step` and `backward` build is computed in `synchronize`. The
    time of a place includes that of places inside it; `elsewhere` is what no place covers.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """See `Profiler`."""
        self._measured: dict[str, tuple[int, float]] = {}  # place -> times entered, seconds
        self._depth, self._covered_s = 0, 0.0
        self._start = time.perf_counter()

    @contextmanager
    def observe(self, place: str) -> Iterator[None]:
        """See `Profiler`."""
        self._depth += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            duration = time.perf_counter() - start
            self._depth -= 1
            if self._depth == 0:
                self._covered_s += duration
            count, total = self._measured.get(place, (0, 0.0))
            self._measured[place] = count + 1, total + duration

    def report(self) -> str:
        """See `Profiler`."""
        whole = max(time.perf_counter() - self._start, 1e-9)
        rows = sorted(self._measured.items(), key=lambda item: item[1][1], reverse=True)
        rows.append(("elsewhere", (0, max(whole - self._covered_s, 0.0))))
        cells = [
            (
                place,
                f"{count:,}" if count else "",
                f"{total:.3f}",
                f"{1000 * total / count:.3f}" if count else "",
                f"{100 * total / whole:.1f}",
            )
            for place, (count, total) in rows
        ]
        return _table(f"{whole:.3f} s in all", ("place", "count", "total s", "mean ms", "%"), cells)


class KernelProfiler(Profiler):
    """Jittor's own times of every kernel, over a window of steps.

    No kernel is run twice, so the weights stay what they would be. With CUDA the device is waited
    for after every kernel, which makes the steps of the window slower.

    Args:
        skip_steps: Optimizer steps before the window; the first ones compile.
        steps: Length of the window.
        rows: Kernels in the report, those with the largest total first.
    """

    def __init__(self, skip_steps: int = 10, steps: int = 20, rows: int = 30) -> None:
        if skip_steps < 0 or steps < 1 or rows < 1:
            raise ValueError(
                "KernelProfiler needs skip_steps >= 0, steps >= 1 and rows >= 1, got "
                f"{skip_steps}, {steps} and {rows}"
            )
        self.skip_steps, self.steps, self.rows = skip_steps, steps, rows
        self.start()

    def start(self) -> None:
        """See `Profiler`."""
        self._steps_done, self._running = 0, False
        self._kernels: list[list[str]] | None = None

    @contextmanager
    def observe(self, place: str) -> Iterator[None]:
        """See `Profiler`."""
        # A step begins with the first batch that is asked for after the one before.
        if place == "train_next_batch":
            self._begin_or_end()
        yield
        self._steps_done += place == "optimizer_step"

    def _begin_or_end(self) -> None:
        if self._running and self._steps_done >= self.skip_steps + self.steps:
            self._end()
        elif self._kernels is None and not self._running and self._steps_done >= self.skip_steps:
            jt.profiler.start(0, 0)  # no warm-up and no repetition: both would run a kernel twice
            self._running = True

    def _end(self) -> None:
        jt.profiler.stop()
        self._running = False
        self._kernels = jt.profiler.report()[1:]

    def report(self) -> str:
        """See `Profiler`."""
        if self._running:
            self._end()
        if self._kernels is None:
            return f"no kernel was measured: the run ended within the first {self.skip_steps} steps"
        # Name, file, count, total, mean, min, max in ns, ...; an operation that another kernel
        # computes for it has no time of its own.
        # Numbers are text, long ones as 1.6e+07.
        timed = [row for row in self._kernels if float(row[3]) > 0]
        whole = max(sum(float(row[3]) for row in timed), 1.0)
        cells = [
            (
                kernel_name(row[0]),
                row[2],
                f"{float(row[3]) / 1e6:.3f}",
                f"{float(row[4]) / 1e3:.1f}",
                f"{100 * float(row[3]) / whole:.1f}",
            )
            for row in timed[: self.rows]
        ]
        steps = min(self._steps_done - self.skip_steps, self.steps)
        title = f"{whole / 1e6:.3f} ms in {len(timed)} kernels, {steps} steps"
        return _table(title, ("kernel", "count", "total ms", "mean us", "%"), cells)


def make_profiler(profiler: Profiler | Literal["simple", "kernels"] | None) -> Profiler | None:
    """What `Trainer(profiler=)` stands for.

    Raises:
        ValueError: A name is unknown.
    """
    if profiler is None or isinstance(profiler, Profiler):
        return profiler
    kinds = {"simple": SimpleProfiler, "kernels": KernelProfiler}
    if profiler not in kinds:
        raise ValueError(
            f"profiler is {profiler!r}; choose simple or kernels, or pass a jtlightning.Profiler"
        )
    return kinds[profiler]()


def kernel_name(key: str) -> str:
    """The operations in a kernel's key: `broadcast_to, binary.multiply, reduce.add`."""
    operations = re.findall(r"«opkey\d+:([^«]*)((?:«(?!opkey)[^«]*)*)", f"«{key.lstrip('«')}")
    if not operations:
        return key.split("«")[0]
    kinds = [(name, re.search(r"«OP:([^«]*)", rest)) for name, rest in operations]
    return ", ".join(f"{name}.{kind[1]}" if kind else name for name, kind in kinds)


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column, justify="right" if index else "left", overflow="fold", no_wrap=bool(index)
        )
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=_WIDTH)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines).strip("\n")
