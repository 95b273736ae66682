"""ModelSummary on small networks."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import jittor as jt
import numpy as np
import pytest
from jittor import nn
from rich.console import Console

from jtlightning.callbacks.summary import (
    ModelSummary,
    forward_macs,
    hidden_places,
    summarize,
)


class Net(nn.Module):
    def __init__(self) -> None:
        self.first, self.norm, self.second = nn.Linear(4, 8), nn.BatchNorm(8), nn.Linear(8, 2)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.second(nn.relu(self.norm(self.first(x))))


def test_trainable_frozen_and_statistics_are_counted_apart() -> None:
    task = nn.Sequential(Net(), nn.Linear(2, 3))
    trained = {id(p) for p in (task[0].first.weight, task[0].norm.weight, task[1].weight)}
    rows = {row.name: row for row in summarize(task, 2, trained)}
    assert list(rows) == ["0", "0.first", "0.norm", "0.second", "1", "total"]
    numbers = {n: (r.trainable, r.frozen, r.statistics) for n, r in rows.items()}
    assert numbers["0.norm"] == (8, 8, 16)
    assert numbers["0"] == (32 + 8, 8 + 8 + 18, 16)
    assert numbers["total"] == (32 + 8 + 6, 8 + 8 + 18 + 3, 16)
    assert rows["total"].mib == pytest.approx(4 * (46 + 37 + 16) / 2**20)


def test_frozen_layers_are_told_from_trainable_ones_without_an_optimizer() -> None:
    task = Net()
    task.first.weight.stop_grad()
    total = summarize(task)[-1]
    assert (total.trainable, total.frozen, total.statistics) == (8 + 16 + 18, 32, 16)


def test_registered_buffers_are_statistics() -> None:
    task = nn.Linear(2, 2)
    task.register_buffer("anchors", jt.ones(5).stop_grad())
    assert summarize(task)[-1].statistics == 5


def test_hidden_parameters_are_found_by_path() -> None:
    task = nn.Sequential(Net())
    task[0].heads = [nn.Linear(2, 2), nn.Linear(2, 2)]
    task[0].scales = {"a": (jt.ones(2),)}
    task[0]._bias = jt.ones(3)
    task[0]._fine = nn.Linear(1, 1)  # Jittor does see modules of such names
    assert [place.split(" ")[0] for place in hidden_places(task)] == [
        "0.heads",
        "0.scales",
        "0._bias",
    ]
    assert len(hidden_places(nn.Sequential(nn.ModuleList([Net()]), nn.ParameterList([])))) == 0


def test_the_table_and_a_warning_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, summary = Net(), ModelSummary()
    task.heads = [nn.Linear(2, 2)]
    summary.console = Console(file=io.StringIO(), width=80)
    summary.on_fit_start(SimpleNamespace(optimizer=None), task)
    text = summary.console.file.getvalue()
    assert "BatchNorm" in text
    assert text.rstrip().splitlines()[-1].split() == ["total", "Net", "74", "0", "16", "0.00"]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "heads (list with 1 Vars or modules) is invisible" in caplog.text


def test_multiply_accumulates_are_shown_for_an_example(tmp_path: Path) -> None:
    task, summary = nn.Sequential(Net(), nn.Linear(2, 3)), ModelSummary(2)
    task.example_input = np.zeros((5, 4), np.float32)
    summary.console = Console(file=io.StringIO(), width=100)
    summary.on_fit_start(SimpleNamespace(optimizer=None), task)
    lines = [line.split() for line in summary.console.file.getvalue().splitlines() if line.strip()]
    ends = {cells[0]: cells[-1] for cells in lines if cells[0][0].isalnum()}
    assert ends["module"] == "MACs"
    assert ends["0.first"] == str(5 * 4 * 8)
    assert ends["0.norm"] == "0"
    assert ends["0"] == str(5 * (4 * 8 + 8 * 2))
    assert ends["total"] == str(5 * (4 * 8 + 8 * 2 + 2 * 3))


def test_an_example_leaves_statistics_and_modes_alone() -> None:
    task = nn.Module()
    task.model, task.example_input = Net(), (jt.ones((5, 4)),)
    task.model.norm.is_train = False
    before = task.model.norm.running_mean.numpy()
    count = forward_macs(task)
    assert count is not None
    assert count.by_module["model.first"] == 5 * 4 * 8
    np.testing.assert_array_equal(task.model.norm.running_mean.numpy(), before)
    assert [m.is_training() for m in (task, task.model, task.model.norm)] == [True, True, False]


def test_an_example_that_nothing_takes_is_an_error() -> None:
    task = nn.Module()
    assert forward_macs(task) is None
    task.example_input = jt.ones(3)
    with pytest.raises(ValueError, match="neither execute"):
        forward_macs(task)
