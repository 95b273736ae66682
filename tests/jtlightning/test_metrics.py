from __future__ import annotations

from typing import Any

import jittor as jt
import pytest

from jtlightning.metrics import MetricLog, UnknownMetricError


def record(log: MetricLog, name: str, value: Any, **options: Any) -> None:
    defaults = {
        "on_step": True,
        "on_epoch": False,
        "prog_bar": False,
        "weight": 1,
        "scope": "train",
    }
    log.record(name, value, **{**defaults, **options})


def test_nothing_is_visible_before_the_fetch_and_the_newest_value_wins() -> None:
    log = MetricLog()
    record(log, "loss", jt.array([3.0]))
    record(log, "loss", jt.array([2.0]))
    assert "loss" not in log
    assert log.fetch() == {"loss": 2.0}
    assert log["loss"] == 2.0


def test_step_and_epoch_values_go_by_lightnings_names() -> None:
    log = MetricLog()
    for value, weight in ((1.0, 3), (5.0, 1)):
        record(log, "loss", value, on_epoch=True, weight=weight)
    assert log.fetch() == {"loss_step": 5.0}
    assert log.finish_epoch("train") == {"loss_epoch": 2.0}
    assert dict(log) == {"loss": 2.0, "loss_step": 5.0, "loss_epoch": 2.0}


def test_a_validation_leaves_the_open_training_epoch_alone() -> None:
    log = MetricLog()
    record(log, "loss", 1.0, on_step=False, on_epoch=True)
    record(log, "val", 7.0, on_step=False, on_epoch=True, scope="validation")
    assert log.finish_epoch("validation") == {"val": 7.0}
    record(log, "loss", 3.0, on_step=False, on_epoch=True)
    assert log.finish_epoch("train") == {"loss": 2.0}


def test_an_unknown_name_is_answered_with_the_nearest_known_one() -> None:
    log = MetricLog()
    log.update({"val/miou": 0.5, "val/macc": 0.6})
    with pytest.raises(UnknownMetricError, match=r"did you mean 'val/miou'.*val/macc, val/miou"):
        log["val/mIoU"]


def test_only_scalars_are_taken() -> None:
    with pytest.raises(ValueError, match=r"log\('x'\) takes a scalar, got shape \(2,\)"):
        record(MetricLog(), "x", jt.zeros(2))


def test_open_sums_survive_a_restart() -> None:
    log = MetricLog()
    record(log, "loss", jt.array([1.0]), on_epoch=True)
    restored = MetricLog()
    restored.load_state_dict(log.state_dict())
    record(restored, "loss", 4.0, on_epoch=True)
    restored.finish_epoch("train")
    assert restored["loss"] == 2.5


def test_held_values_do_not_keep_the_graph_of_their_step() -> None:
    log, weight = MetricLog(), jt.ones(4)
    weight.start_grad()
    counts = []
    for _ in range(30):
        hidden = (weight * 2).exp()
        record(log, "loss", (hidden * hidden).sum().reshape(1))
        del hidden
        jt.sync_all()
        log.detach()
        counts.append(jt.liveness_info()["lived_ops"])
    assert counts[-1] <= counts[2]


def test_what_is_logged_after_a_step_was_undone_is_cut_from_its_graph_too() -> None:
    log, weight = MetricLog(), jt.ones(4)
    weight.start_grad()
    record(log, "loss", (weight * 2).sum())
    log.detach()
    log.drop_after(0)
    assert log.held == 0
    again = (weight * 3).sum()
    record(log, "loss", again)
    log.detach()
    assert again.is_stop_grad()
