from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jtlightning.callbacks.early_stopping import EarlyStopping
from tests.jtlightning.fake_trainer import FakeTrainer


def feed(trainer: FakeTrainer, stopper: EarlyStopping, values: list[float]) -> int:
    """Validate with each value until a stop is asked for; return how many were needed."""
    for count, value in enumerate(values, start=1):
        trainer.metrics["val/loss"] = value
        stopper.on_validation_end(trainer, None)
        if trainer.should_stop:
            return count
    return 0


@pytest.mark.parametrize(
    ("options", "values", "stopped_at", "reason"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.0, 1.0, 1.0, 1.5], 6, "stayed at 1 for 2 validations"),
        ({"mode": "max", "patience": 2}, [1.0, 2.0, 3.0, 2.9, 2.8], 5, "stayed at 3"),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.6, 2.5, 2.4], 3, "stayed at 3"),
        ({"stopping_threshold": 0.1}, [0.5, 0.1, 0.09], 3, "reached 0.09"),
        ({"mode": "max", "divergence_threshold": 0.5}, [0.6, 0.5, 0.4], 3, "diverged to 0.4"),
        ({}, [1.0, float("nan")], 2, "is nan"),
        ({}, [1.0, float("inf")], 2, "is inf"),
        ({"check_finite": False, "patience": 2}, [float("nan")] * 3, 2, "stayed without a value"),
        ({"check_finite": False, "patience": 2}, [1.0, float("nan"), 0.5, 0.6, 0.6], 5, "at 0.5"),
        ({"patience": 9}, [1.0, 1.0, 1.0], 0, None),
    ],
)
def test_training_stops_when_it_should(
    tmp_path: Path,
    options: dict[str, Any],
    values: list[float],
    stopped_at: int,
    reason: str | None,
) -> None:
    trainer = FakeTrainer(tmp_path)
    assert feed(trainer, EarlyStopping("val/loss", **options), values) == stopped_at
    assert reason is None or reason in str(trainer.stop_reason)


def test_patience_survives_a_restart(tmp_path: Path) -> None:
    first = EarlyStopping("val/loss", patience=3)
    assert feed(FakeTrainer(tmp_path), first, [1.0, 2.0, 2.0]) == 0
    second = EarlyStopping("val/loss", patience=3)
    second.load_state_dict(first.state_dict())
    assert feed(FakeTrainer(tmp_path), second, [1.5]) == 1


def test_sanity_check_and_plain_validation_do_not_count(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    stopper = EarlyStopping("val/loss", patience=1)
    trainer.sanity_checking = True
    assert feed(trainer, stopper, [1.0, 1.0, 1.0]) == 0
    trainer.sanity_checking, trainer.stage = False, "validate"
    assert feed(trainer, stopper, [1.0, 1.0, 1.0]) == 0


def test_epochs_count_where_there_is_no_validation(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.metrics["val/loss"] = 1.0
    stopper = EarlyStopping("val/loss", patience=1)
    for _ in range(2):
        stopper.on_train_epoch_end(trainer, None)
    assert not trainer.should_stop
    trainer.num_val_batches = 0
    for _ in range(2):
        stopper.on_train_epoch_end(trainer, None)
    assert trainer.should_stop


def test_unknown_monitor_lists_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="known: val/loss"):
        feed(FakeTrainer(tmp_path), EarlyStopping("val/los"), [1.0])


@pytest.mark.parametrize("options", [{"mode": "up"}, {"patience": 0}, {"min_delta": -1.0}])
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EarlyStopping("val/loss", **options)


def test_misspelt_metric_is_refused_before_training(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.metrics["val/loss"] = 1.0
    EarlyStopping("val/loss").on_sanity_check_end(trainer, None)
    EarlyStopping("train/loss").on_sanity_check_end(trainer, None)  # cannot be known yet
    with pytest.raises(KeyError, match="val/los"):
        EarlyStopping("val/los").on_sanity_check_end(trainer, None)
