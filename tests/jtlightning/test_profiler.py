"""Times by place and by kernel, and that measuring changes nothing."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.profiler import (
    KernelProfiler,
    Profiler,
    SimpleProfiler,
    kernel_name,
    make_profiler,
)
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def rows(report: str) -> dict[str, list[str]]:
    """The first cell of every row of a table -> the others."""
    lines = [line.split() for line in report.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def test_every_place_has_count_total_mean_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, profiler = Clock(monkeypatch), SimpleProfiler()
    profiler.start()
    for seconds in (0.5, 1.5):
        with profiler.observe("outer"):
            clock.now += seconds
            with profiler.observe("inner"):
                clock.now += 0.25
    clock.now += 1.5
    report = profiler.report()
    assert "4.000 s in all" in report.splitlines()[0]
    found = rows(report)
    assert found["outer"] == ["2", "2.500", "1250.000", "62.5"]
    assert found["inner"] == ["2", "0.500", "250.000", "12.5"]
    assert found["elsewhere"] == ["1.500", "37.5"]
    assert report.index("outer") < report.index("inner") < report.index("elsewhere")
    profiler.start()
    clock.now += 1.0
    assert "outer" not in profiler.report()


def test_a_place_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, profiler = Clock(monkeypatch), SimpleProfiler()

    def fail() -> None:
        with profiler.observe("fails"):
            clock.now += 1.0
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fail()
    assert rows(profiler.report())["fails"][:2] == ["1", "1.000"]


def run_steps(profiler: KernelProfiler, steps: int, window: int = 1) -> None:
    """The places of a loop around steps that each execute one kernel."""
    x = jt.array(np.ones((8, 8), np.float32))
    for _ in range(steps):
        for _ in range(window):
            with profiler.observe("train_next_batch"):
                pass
        with profiler.observe("optimizer_step"):
            (x * 3.0 + 1.0).sync()


def test_kernels_are_measured_inside_the_window_only() -> None:
    profiler = KernelProfiler(skip_steps=3, steps=5)
    run_steps(profiler, 20, window=2)
    assert not jt.flags.profiler_enable
    report = profiler.report()
    assert "kernels, 5 steps" in report.splitlines()[0]
    (count,) = [c[-4] for c in map(str.split, report.splitlines()) if "binary.add" in " ".join(c)]
    assert count == "5"


def test_a_run_that_ends_inside_the_window_is_reported() -> None:
    profiler = KernelProfiler(skip_steps=3, steps=5)
    run_steps(profiler, 5)
    assert jt.flags.profiler_enable
    assert ", 2 steps" in profiler.report().splitlines()[0]
    assert not jt.flags.profiler_enable
    profiler.start()
    run_steps(profiler, 2)
    assert profiler.report() == "no kernel was measured: the run ended within the first 3 steps"


def test_a_kernel_is_named_by_its_operations() -> None:
    fused = (
        "«opkey0:broadcast_to«Tx:float32«DIM=3«BCAST=1«opkey1:binary«Tx:float32«OP:multiply"
        "«opkey2:reduce«Tx:float32«OP:add«DIM=3«JIT:1«graph:0400,"
    )
    assert kernel_name(fused) == "broadcast_to, binary.multiply, reduce.add"
    assert kernel_name("mkl_matmul«T:float32«Trans_a:N«JIT:1") == "mkl_matmul"


def test_names_and_objects_become_profilers() -> None:
    own = Profiler()
    assert make_profiler(None) is None
    assert make_profiler(own) is own
    assert type(make_profiler("simple")) is SimpleProfiler
    assert type(make_profiler("kernels")) is KernelProfiler
    with pytest.raises(ValueError, match="profiler is 'advanced'; choose simple or kernels"):
        make_profiler("advanced")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps >= 1"):
        KernelProfiler(steps=0)


def test_the_report_goes_to_the_folder_and_without_one_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = SimpleProfiler()
    with profiler.observe("somewhere"), caplog.at_level(logging.INFO):
        pass
    with caplog.at_level(logging.INFO):
        profiler.finish(tmp_path)
    path = tmp_path / "profile.txt"
    assert "somewhere" in path.read_text(encoding="utf-8")
    assert "s in all; the table is in" in caplog.text
    assert str(path) in caplog.text
    assert "somewhere" not in caplog.text
    with caplog.at_level(logging.INFO):
        profiler.finish(None)
    assert caplog.text.count("somewhere") == 1


@pytest.mark.parametrize("kind", ["simple", "kernels", "own"])
def test_a_run_with_a_profiler_has_the_same_bits(tmp_path: Path, kind: Any) -> None:
    class Own(Profiler):
        """Writes down the places."""

        def start(self) -> None:
            self.places: set[str] = set()

        @contextmanager
        def observe(self, place: str) -> Any:
            self.places.add(place)
            yield

        def report(self) -> str:
            return " ".join(self.places)

    weights = []
    for profiler in (None, KernelProfiler(2, 5) if kind == "kernels" else kind):
        trainer = make_trainer(
            tmp_path / str(profiler is None),
            max_epochs=2,
            profiler=Own() if profiler == "own" else profiler,
        )
        task = TinyTask()
        trainer.fit(task, datamodule=TinyData())
        weights.append(parameters_of(task))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)
    text = (trainer.run.path / "profile.txt").read_text(encoding="utf-8")
    assert ("%" if kind == "kernels" else "TinyTask.training_step") in text
    assert "5 steps" in text or kind != "kernels"
