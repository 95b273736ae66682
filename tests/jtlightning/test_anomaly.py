"""The first module with a NaN is named, and the modules are left as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.trainer import NonFiniteLossError
from jtlightning.trainer.anomaly import name_first_non_finite, non_finite_names
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import PointBatch, TinyData, TinyTask

BATCH = PointBatch(jt.array(np.ones((4, 16), np.float32)), jt.array(np.zeros(4, np.int32)))


class Log(nn.Module):
    """Infinite where its input is 0."""

    def execute(self, x: jt.Var) -> dict[str, Any]:
        return {"scale": jt.ones(2), "logs": [jt.log(x)]}


class LogTask(TinyTask):
    """Takes the logarithm of a rectified value between two modules of its network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Relu(), Log())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        hidden = self.blocks(jt.array(np.array([[1, -1, 2], [-3, 4, 5]], np.float32)))
        return {"loss": self.model(batch.x).sum() + hidden["logs"][0].sum()}


def look(task: TinyTask, batch: PointBatch = BATCH) -> str | None:
    task.log = lambda *_, **__: None
    return name_first_non_finite(task, lambda: task.training_step(batch, 0))


def test_the_innermost_first_module_is_named_with_numbers() -> None:
    found = look(LogTask())
    assert found == ("blocks.1 (Log): output 1 has 2 infinite of 6 values; its inputs were finite")


def test_a_batch_that_is_not_finite_is_told_from_a_module_at_fault() -> None:
    x = np.ones((4, 16), np.float32)
    x[2, 3] = np.nan
    found = look(TinyTask(), PointBatch(jt.array(x), BATCH.y))
    assert found == (
        "model.fc1 (Linear): output has 8 NaN of 32 values; "
        "its input has 1 NaN of 64 values already"
    )


def test_parameters_come_before_modules() -> None:
    task = LogTask()
    weight = task.model.fc2.weight.numpy()
    weight[0, :3] = np.inf, -np.inf, np.nan
    task.model.fc2.weight.update(jt.array(weight))
    found = look(task)
    assert found == (
        "parameters or statistics are not finite already: model.fc2.weight "
        "(1 NaN and 2 infinite of 24 values)"
    )


def test_what_arises_behind_the_modules_is_said_to_lie_in_the_step() -> None:
    class Logs(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return jt.log(self.model(batch.x).sum() * 0.0)

    found = look(Logs())
    assert found is not None
    assert "every module's output is finite, so it arises in Logs.training_step" in found


def test_a_second_run_that_is_finite_is_said_to_be() -> None:
    found = look(TinyTask())
    assert found is not None
    assert "a second run of TinyTask.training_step on this batch was finite" in found


def test_nothing_is_said_of_a_finite_forward_pass_where_a_gradient_was_not() -> None:
    task = TinyTask()
    task.log = lambda *_, **__: None
    found = name_first_non_finite(task, lambda: task.training_step(BATCH, 0), loss_was_finite=True)
    assert found is None


def test_hooks_and_own_methods_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = LogTask(), []
    task.model.fc1.register_forward_hook(lambda *_: seen.append("hook"))
    own = task.model.drop.execute
    vars(task.model.drop)["execute"] = own
    look(task)
    assert seen == []  # the log comes before, and ends the run
    look(TinyTask())

    def fails() -> None:
        task.model(BATCH.x)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        name_first_non_finite(task, fails)
    assert seen == ["hook"]
    assert vars(task.model.drop)["execute"] is own
    others = [m for m in task.modules() if m is not task.model.drop]
    assert [m for m in others if "execute" in vars(m)] == []


def test_gradients_are_judged_by_their_values_not_by_a_sum() -> None:
    large, bad = np.full(4, 1e38, np.float32), np.array([1, np.nan], np.float32)
    named = [("large", jt.array(large)), ("bad", jt.array(bad)), ("count", jt.array([1]))]
    assert non_finite_names(named) == "bad (1 NaN of 2 values)"
    assert non_finite_names(named[:1]) == (
        "none by itself, but squares of magnitudes up to 1e+38 overflow"
    )
    many = [(f"g{i}", jt.array(bad)) for i in range(7)]
    assert non_finite_names(many).endswith("g4 (1 NaN of 2 values) and 2 more")


def test_the_trainer_names_the_module(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"First of all: blocks\.1 \(Log\): output 1 has"):
        trainer.fit(LogTask(), datamodule=TinyData())
