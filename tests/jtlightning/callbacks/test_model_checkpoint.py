from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint.owner import Owner
from tests.jtlightning.fake_trainer import FakeTrainer


def start(trainer: FakeTrainer, saver: ModelCheckpoint) -> ModelCheckpoint:
    trainer.callbacks = [saver]
    saver.setup(trainer, None, "fit")
    saver.on_fit_start(trainer, None)
    saver.on_train_start(trainer, None)
    return saver


def validate(trainer: FakeTrainer, saver: ModelCheckpoint, values: list[float]) -> None:
    """Ten steps, then a validation, for each value of `val/miou`."""
    for value in values:
        trainer.global_step += 10
        trainer.metrics["val/miou"] = value
        saver.on_validation_end(trainer, None)
        trainer.current_epoch += 1


def step(trainer: FakeTrainer, saver: ModelCheckpoint) -> None:
    trainer.global_step += 1
    saver.on_train_batch_end(trainer, None, None, None, 0)


def names(trainer: FakeTrainer) -> list[str]:
    return sorted(path.name for path in trainer.run.checkpoints.iterdir())


def read(path: Path) -> dict[str, Any]:
    return ast.literal_eval(path.read_text())


def by_step(**options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(filename="{step}", **options)


def test_best_two_are_kept_and_the_older_of_equals_stays(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max", save_top_k=2))
    validate(trainer, saver, [0.2, 0.5, 0.3, 0.3, 0.1])
    assert names(trainer) == ["20.ckpt", "30.ckpt", "last.ckpt"]
    assert saver.best_model_path == trainer.run.checkpoints / "20.ckpt"
    assert saver.best_model_score == 0.5
    assert read(trainer.run.checkpoints / "last.ckpt")["step"] == 50


def test_a_tie_for_the_only_place_keeps_the_older(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="min"))
    validate(trainer, saver, [0.4, 0.4])
    assert names(trainer) == ["10.ckpt", "last.ckpt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_never_ranks(tmp_path: Path, bad: float) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max", save_top_k=2))
    validate(trainer, saver, [bad])
    assert names(trainer) == ["last.ckpt"]
    assert saver.best_model_path is None
    validate(trainer, saver, [0.1, bad])
    assert names(trainer) == ["20.ckpt", "last.ckpt"]


def test_last_shares_its_bytes_with_the_newest_ranked_file(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max"))
    validate(trainer, saver, [0.1, 0.2])
    folder = trainer.run.checkpoints
    assert names(trainer) == ["20.ckpt", "last.ckpt"]
    assert (folder / "last.ckpt").samefile(folder / "20.ckpt")
    validate(trainer, saver, [0.15])
    assert read(folder / "20.ckpt")["step"] == 20
    assert read(folder / "last.ckpt")["step"] == 30


def test_last_is_a_copy_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    trainer = FakeTrainer(tmp_path)
    validate(trainer, start(trainer, by_step(monitor="val/miou", mode="max")), [0.1])
    assert names(trainer) == ["10.ckpt", "last.ckpt"]
    assert read(trainer.run.checkpoints / "last.ckpt")["step"] == 10


def test_an_older_file_goes_only_after_the_new_one_is_written(tmp_path: Path) -> None:
    class Full(FakeTrainer):
        def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
            if self.global_step == 20:
                raise OSError(28, "No space left on device")
            super().save_checkpoint(path, weights_only)

    trainer = Full(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max"))
    validate(trainer, saver, [0.1])
    before = saver.state_dict()
    with pytest.raises(OSError, match="No space"):
        validate(trainer, saver, [0.2])
    assert names(trainer) == ["10.ckpt", "last.ckpt"]
    assert saver.state_dict() == before


def test_the_file_names_itself_as_best(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max"))
    validate(trainer, saver, [0.3])
    state = read(trainer.run.checkpoints / "10.ckpt")["callbacks"]["ModelCheckpoint(val/miou)"]
    assert (state["best_model_path"], state["best_model_score"]) == ("10.ckpt", 0.3)


def test_rotation_goes_on_after_resume_in_a_copied_folder(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path / "a")
    validate(
        trainer,
        start(trainer, by_step(monitor="val/miou", mode="max", save_top_k=2)),
        [0.5, 0.6],
    )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = FakeTrainer(tmp_path / "b")
    copied.global_step = 20
    saver = by_step(monitor="val/miou", mode="max", save_top_k=2)
    saver.load_state_dict(read(copied.run.checkpoints / "last.ckpt")["callbacks"][saver.state_key])
    validate(copied, start(copied, saver), [0.4, 0.7])
    assert names(copied) == ["20.ckpt", "40.ckpt", "last.ckpt"]
    assert names(trainer) == ["10.ckpt", "20.ckpt", "last.ckpt"]


def test_resume_removes_what_a_kill_left_behind(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    validate(trainer, start(trainer, by_step(monitor="val/miou", mode="max")), [0.5])
    shutil.copy(trainer.run.checkpoints / "10.ckpt", tmp_path / "old")
    saver = trainer.callbacks[0]
    validate(trainer, saver, [0.6])
    state = read(trainer.run.checkpoints / "20.ckpt")["callbacks"][saver.state_key]
    # As if the process had died after the write: the old file and a half-made link are there.
    shutil.copy(tmp_path / "old", trainer.run.checkpoints / "10.ckpt")
    host = Owner.current().host
    (trainer.run.checkpoints / f".jtl-4194305-1-01234567-{host}.tmp").touch()
    resumed = by_step(monitor="val/miou", mode="max")
    resumed.load_state_dict(state)
    start(trainer, resumed)
    assert names(trainer) == ["20.ckpt", "last.ckpt"]


@pytest.mark.parametrize("name", ["../precious.ckpt", "/etc/precious.ckpt", "precious"])
def test_a_foreign_state_cannot_remove_files_elsewhere(name: str) -> None:
    saver = ModelCheckpoint()
    with pytest.raises(ValueError, match="precious"):
        saver.load_state_dict({**saver.state_dict(), "retired": [name]})


def test_unknown_monitor_is_an_error_at_the_first_validation(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/mioo", mode="max"))
    with pytest.raises(KeyError, match="known: val/miou"):
        validate(trainer, saver, [0.1])


def test_unknown_name_in_the_template_is_an_error_at_the_first_validation(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, ModelCheckpoint(filename="{step}-{val/loss:.2f}"))
    with pytest.raises(KeyError, match="val/loss"):
        validate(trainer, saver, [0.1])


def test_the_sanity_check_saves_nothing(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.sanity_checking = True
    validate(trainer, start(trainer, by_step(monitor="val/mioo", mode="max")), [0.1])
    assert not trainer.run.checkpoints.exists()


def test_without_monitor_the_newest_are_kept(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(save_top_k=2))
    for _ in range(3):
        trainer.global_step += 5
        saver.on_train_epoch_end(trainer, None)
        trainer.current_epoch += 1
    assert names(trainer) == ["10.ckpt", "15.ckpt", "last.ckpt"]
    assert saver.best_model_path == trainer.run.checkpoints / "15.ckpt"


def test_triggers_by_steps_and_epochs_add_up(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(save_top_k=-1, every_n_train_steps=4, every_n_epochs=2))
    for _ in range(2):
        for _ in range(5):
            step(trainer, saver)
        saver.on_train_epoch_end(trainer, None)
        trainer.current_epoch += 1
    assert names(trainer) == ["10.ckpt", "4.ckpt", "8.ckpt", "last.ckpt"]


def test_a_step_is_saved_once_in_an_accumulation_window(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(save_top_k=-1, every_n_train_steps=1))
    step(trainer, saver)
    (trainer.run.checkpoints / "1.ckpt").unlink()
    saver.on_train_batch_end(trainer, None, None, None, 1)
    assert names(trainer) == ["last.ckpt"]


def test_seconds_since_the_last_save_trigger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(save_top_k=-1, train_time_interval=60.0))
    for now[0] in (130.0, 161.0, 200.0, 222.0):
        step(trainer, saver)
    assert names(trainer) == ["2.ckpt", "4.ckpt", "last.ckpt"]


def test_saves_between_validations_go_to_last_only(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max", every_n_train_steps=3))
    for _ in range(3):
        step(trainer, saver)
    assert names(trainer) == ["last.ckpt"]


def test_the_end_of_training_saves_only_an_unsaved_step(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, by_step(monitor="val/miou", mode="max"))
    validate(trainer, saver, [0.1])
    written = (trainer.run.checkpoints / "last.ckpt").stat().st_ino
    saver.on_train_end(trainer, None)
    assert (trainer.run.checkpoints / "last.ckpt").stat().st_ino == written
    trainer.global_step += 1
    saver.on_train_end(trainer, None)
    assert read(trainer.run.checkpoints / "last.ckpt")["step"] == 11


def test_template_takes_metrics_and_makes_slashes_safe(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    template = "epoch={epoch:03d}-step={step:06d}-val/miou={val/miou:.4f}"
    saver = ModelCheckpoint("val/miou", "max", filename=template, save_last=False)
    validate(trainer, start(trainer, saver), [0.51234])
    assert names(trainer) == ["epoch=000-step=000010-val_miou=0.5123.ckpt"]


def test_default_name_shows_epoch_step_and_monitor(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    validate(trainer, start(trainer, ModelCheckpoint("val/miou", "max", save_last=False)), [0.5])
    assert names(trainer) == ["epoch=000-step=000010-val_miou=0.5000.ckpt"]


def test_files_of_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = ModelCheckpoint("val/miou", "max", filename="{val/miou:.1f}", save_top_k=2)
    validate(trainer, start(trainer, saver), [0.50, 0.51])
    assert names(trainer) == ["0.5-v1.ckpt", "0.5.ckpt", "last.ckpt"]
    assert saver.best_model_path == trainer.run.checkpoints / "0.5-v1.ckpt"


def test_a_constant_name_is_replaced_in_place(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, ModelCheckpoint("val/miou", "max", filename="best", save_last=False))
    validate(trainer, saver, [0.1, 0.3, 0.2])
    assert names(trainer) == ["best.ckpt"]
    assert read(trainer.run.checkpoints / "best.ckpt")["step"] == 20


def test_a_second_save_of_one_step_replaces_the_first(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    saver = start(trainer, ModelCheckpoint(filename="{step}-{loss:.1f}", every_n_epochs=1))
    trainer.global_step, trainer.metrics["loss"] = 5, 1.0
    saver.on_train_epoch_end(trainer, None)
    trainer.metrics["loss"] = 2.0
    saver.on_train_epoch_end(trainer, None)
    assert names(trainer) == ["5-2.0.ckpt", "last.ckpt"]


def test_keeping_none_leaves_only_last(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    validate(trainer, start(trainer, by_step(monitor="val/miou", save_top_k=0)), [0.1, 0.2])
    assert names(trainer) == ["last.ckpt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "'best'"),
        ({"save_top_k": -2}, "-2"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
        ({"train_time_interval": -1.0}, "train_time_interval"),
        ({"filename": "{step"}, "braces"),
        ({"filename": "{step:q}"}, "'q'"),
        ({"filename": "best", "save_top_k": 3}, "field"),
        ({"filename": "last"}, "field"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelCheckpoint(**options)


@pytest.mark.parametrize("options", [{"monitor": "val/miuo"}, {"filename": "{step}-{val/miuo}"}])
def test_misspelt_metric_is_refused_before_training(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.metrics["val/miou"] = 0.5
    ModelCheckpoint("val/miou").on_sanity_check_end(trainer, None)
    with pytest.raises(KeyError, match="val/miuo"):
        ModelCheckpoint(**options).on_sanity_check_end(trainer, None)
