"""Statistics of weights, updates and gradients."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.weight_stats import WeightStats
from jtlightning.optim import SGD
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class Plain(TinyTask):
    """Plain SGD, whose update is known from the gradient."""

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if not p.is_stop_grad()]
        return SGD(lr=0.5, momentum=0.0).build([{"params": trained}])


class Weights(Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, np.ndarray]] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self.after.append(parameters_of(task))


def fit(folder: Path, task: TinyTask, *callbacks: Callback, **arguments: Any) -> Trainer:
    settings = {"max_epochs": 2, "accumulate_grad_batches": 2, "num_sanity_val_steps": 0}
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**settings, **arguments})
    trainer.fit(task, datamodule=TinyData(4, 24), ckpt_path="auto")
    return trainer


def rows_of(folder: Path) -> dict[int, dict[str, float]]:
    (path,) = folder.glob("*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {int(r["step"]): {k: float(v) for k, v in r.items() if v != ""} for r in rows}


def logged(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith(("weight_", "grad_norm", "update_"))}


def norm(*arrays: np.ndarray) -> float:
    return float(np.sqrt(sum(np.sum(a.astype(np.float64) ** 2) for a in arrays)))


def test_values_are_those_of_the_weights_around_the_step(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, Plain(), WeightStats(2), weights)
    rows = rows_of(tmp_path)
    assert [step for step, row in rows.items() if logged(row)] == [2, 4, 6]
    before, after = weights.after[2], weights.after[3]
    names = ["model.fc1.weight", "model.fc1.bias"]
    change = norm(*(after[n] - before[n] for n in names))
    every = np.concatenate([after[n].ravel() for n in names])
    row = rows[4]
    # float32 arithmetic of the update behind some of them
    assert row["weight_norm/model.fc1"] == pytest.approx(norm(every), rel=1e-9)
    assert row["weight_mean/model.fc1"] == pytest.approx(every.mean(), rel=1e-5)
    assert row["weight_std/model.fc1"] == pytest.approx(every.std(), rel=1e-5)
    assert row["update_ratio/model.fc1"] == pytest.approx(
        change / norm(*(before[n] for n in names)), rel=1e-9
    )
    assert row["grad_norm/model.fc1"] == pytest.approx(change / 0.5, rel=1e-5)


def test_the_gradient_is_the_one_that_was_used(tmp_path: Path) -> None:
    weights = Weights()
    task, limit = Plain(), 0.01
    fit(tmp_path, task, WeightStats(3, "parameter"), weights, gradient_clip_val=limit)
    row = rows_of(tmp_path)[3]
    used = [v for k, v in row.items() if k.startswith("grad_norm/")]
    assert norm(np.array(used)) == pytest.approx(limit, rel=1e-3)


def test_training_is_bit_for_bit_the_one_without_it(tmp_path: Path) -> None:
    ends = []
    for name, callbacks in (("without", []), ("with", [WeightStats(1)])):
        trainer = make_trainer(tmp_path / name, max_epochs=2, callbacks=callbacks)
        task = TinyTask()
        trainer.fit(task, datamodule=TinyData(4, 24))
        ends.append({**parameters_of(task), **trainer.drivers[0].state_tensors()})
    np.testing.assert_equal(ends[1], ends[0])


def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    fit(tmp_path / "whole", TinyTask(), WeightStats(2))
    # Stopped at 3, so that the weights before step 4 are those of the checkpoint.
    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", TinyTask(), WeightStats(2), StopAfter(3))
    fit(tmp_path / "parts", TinyTask(), WeightStats(2))
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    for step in (2, 4, 6):
        assert logged(parts[step]) == logged(whole[step])


def test_frozen_weights_are_left_out_and_a_pattern_chooses(tmp_path: Path) -> None:
    task = TinyTask()
    task.model.fc1.weight.stop_grad()
    fit(tmp_path, task, WeightStats(6, "parameter", r"fc\d\.weight"))
    names = {k.partition("/")[2] for k in logged(rows_of(tmp_path)[6])}
    assert names == {"model.fc2.weight"}


def test_zero_weights_have_no_ratio() -> None:
    from jtlightning.callbacks.weight_stats import _Sums

    sums = _Sums()
    sums.add(np.ones(2), np.zeros(2), np.ones(2))
    assert "update_ratio" not in sums.values()


def test_nothing_is_held_between_steps(tmp_path: Path) -> None:
    class Live(Callback):
        def __init__(self) -> None:
            self.held: list[int] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.held.append(jt.liveness_info()["hold_vars"])

    without, along = Live(), Live()
    fit(tmp_path / "without", TinyTask(), without)
    fit(tmp_path / "with", TinyTask(), WeightStats(1), along)
    growth = [[count - live.held[0] for count in live.held] for live in (without, along)]
    assert growth[1] == growth[0]


@pytest.mark.parametrize(
    "options",
    [{"every_n_steps": 0}, {"by": "layer"}, {"pattern": "("}],
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        WeightStats(**options)


def test_a_pattern_that_finds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'backbone'.*model\.fc1\.weight"):
        fit(tmp_path, TinyTask(), WeightStats(pattern="backbone"))
