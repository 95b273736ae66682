"""Predictions as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.prediction_writer import BasePredictionWriter, PredictionWriter
from jtlightning.trainer import Trainer
from tests.jtlightning.fake_trainer import FakeTrainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask


class Lazy(TinyTask):
    """Predicts Vars, not arrays."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.model(batch.x)
        return {"logits": logits, "levels": [logits.sum(1), batch_idx]}


def predict(folder: Path, writer: BasePredictionWriter, task: TinyTask, **options: Any) -> Any:
    trainer = make_trainer(folder, callbacks=[writer])
    return trainer.predict(task, datamodule=TinyData(val=8, batch_size=3), **options)


def files_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for path in sorted(folder.glob("*/predictions/*")):
        with np.load(path, allow_pickle=False) as archive:
            found[path.name] = dict(archive)
    return found


def test_each_batch_becomes_a_file_of_what_was_returned(tmp_path: Path) -> None:
    returned = predict(tmp_path, PredictionWriter(), TinyTask())
    files = files_of(tmp_path)
    assert list(files) == [f"batch-{i:06d}.npz" for i in range(3)]
    for batch, wanted in zip(files.values(), returned, strict=True):
        assert list(batch) == ["prediction"]
        np.testing.assert_array_equal(batch["prediction"], wanted)


def test_both_intervals_hold_the_same_and_nested_names_are_paths(tmp_path: Path) -> None:
    predict(tmp_path, PredictionWriter("both"), Lazy())
    files = files_of(tmp_path)
    joined = files.pop("predictions.npz")
    assert sorted(joined) == ["levels/0", "levels/1", "logits"]
    assert joined["logits"].shape == (8, 3)
    for name in ("logits", "levels/0"):
        np.testing.assert_array_equal(
            joined[name], np.concatenate([f[name] for f in files.values()])
        )
    np.testing.assert_array_equal(joined["levels/1"], [0, 1, 2])


def test_at_the_end_only_one_file_is_written_and_nothing_returned(tmp_path: Path) -> None:
    assert predict(tmp_path, PredictionWriter("epoch"), Lazy(), return_predictions=False) == []
    assert list(files_of(tmp_path)) == ["predictions.npz"]


def test_files_of_an_earlier_longer_prediction_do_not_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("batch-000007.npz", "predictions.npz", "batch-mine.npz"):
        (folder / name).touch()
    predict(tmp_path / "run", PredictionWriter(folder=str(folder)), TinyTask())
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"batch-{i:06d}.npz" for i in range(3)),
        "batch-mine.npz",
    ]


def test_a_subclass_writes_as_it_likes(tmp_path: Path) -> None:
    class Mine(BasePredictionWriter):
        def __init__(self) -> None:
            super().__init__("both")
            self.seen: list[Any] = []

        def write_on_batch_end(
            self, trainer: Trainer, task: Any, prediction: Any, batch: Any, batch_idx: int
        ) -> None:
            self.seen.append((batch_idx, type(prediction["logits"]), type(batch.x)))

        def write_on_epoch_end(self, trainer: Trainer, task: Any, predictions: list[Any]) -> None:
            self.seen.append([type(p["logits"]) for p in predictions])

    mine = Mine()
    predict(tmp_path, mine, Lazy())
    assert mine.seen == [*((i, np.ndarray, jt.Var) for i in range(3)), [np.ndarray] * 3]


@dataclass
class Boxes:
    boxes: np.ndarray


def test_a_dataclass_is_written_by_its_fields(tmp_path: Path) -> None:
    trainer, writer = FakeTrainer(tmp_path), PredictionWriter()
    writer.setup(trainer, None, "predict")
    writer.on_predict_start(trainer, None)
    writer.on_predict_batch_end(trainer, None, Boxes(np.ones((2, 4))), None, 0)
    with np.load(tmp_path / "predictions/batch-000000.npz") as archive:
        assert archive["boxes"].shape == (2, 4)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    trainer, writer = FakeTrainer(tmp_path), PredictionWriter("both")
    writer.setup(trainer, None, "predict")
    writer.on_predict_start(trainer, None)
    with pytest.raises(ValueError, match=r"cannot write a/x of batch 5, a set"):
        writer.on_predict_batch_end(trainer, None, {"a": {"x": {1, 2}}}, None, 5)
    for index, count in enumerate((2, 3)):
        writer.on_predict_batch_end(trainer, None, {"masks": np.zeros((1, count))}, None, index)
    with pytest.raises(ValueError, match=r"cannot join 'masks' of 2 batches.*interval: batch"):
        writer.on_predict_end(trainer, None)


def test_a_run_without_a_folder_needs_an_absolute_one(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.run = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="absolute path"):
        PredictionWriter().setup(trainer, None, "predict")


def test_an_unknown_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="'batches'"):
        PredictionWriter("batches")  # type: ignore[arg-type]
