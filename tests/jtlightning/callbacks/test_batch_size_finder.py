"""The largest batch that fits, and the run after its search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.batch_size_finder import BatchSizeFinder
from jtlightning.data.datamodule import DataModule
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of


class Limited(TinyTask):
    """Has no memory for batches beyond a size."""

    def __init__(self, largest: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.largest, self.error = largest, error or MemoryError("none left")
        self.sizes: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch.x.shape[0] not in self.sizes:
            self.sizes.append(batch.x.shape[0])
        if batch.x.shape[0] > self.largest:
            raise self.error
        return super().training_step(batch, batch_idx)


def fit(
    folder: Path,
    *callbacks: Callback,
    task: TinyTask | None = None,
    batch_size: int = 4,
    **arguments: Any,
) -> tuple[dict[str, Any], Trainer]:
    trainer = make_trainer(folder, callbacks=list(callbacks), **{"max_epochs": 2, **arguments})
    task = task or Limited(13)
    data = TinyData(batch_size, 48)
    trainer.fit(task, train_dataloaders=None, datamodule=data, ckpt_path="auto")
    state = {**parameters_of(task), **trainer.drivers[0].state_tensors()}
    return {**state, "loss": trainer.metrics["train/loss"]}, trainer


@pytest.mark.parametrize(("mode", "size"), [("power", 8), ("binsearch", 13)])
def test_the_size_is_the_largest_that_fits(tmp_path: Path, mode: Any, size: int) -> None:
    callback = BatchSizeFinder(mode)
    _, trainer = fit(tmp_path, callback)
    assert callback.optimal_batch_size == size
    assert trainer.datamodule.batch_size == size
    assert trainer.num_training_batches == -(-48 // size)


@pytest.mark.parametrize("text", ["CUDA out of memory", "Unable to allocate 512 MiB", "bad_alloc"])
def test_errors_of_allocation_count_and_others_are_raised(tmp_path: Path, text: str) -> None:
    callback = BatchSizeFinder()
    fit(tmp_path / "memory", callback, task=Limited(4, RuntimeError(text)))
    assert callback.optimal_batch_size == 4
    # What Jittor says wherever a compiler fails is no refusal of memory.
    for other in ("shapes differ", "might be an overcommit issue or out of memory"):
        with pytest.raises(RuntimeError, match=other):
            fit(tmp_path / other[:6], BatchSizeFinder(), task=Limited(4, RuntimeError(other)))


@pytest.mark.parametrize(("options", "size"), [({"max_val": 20}, 16), ({}, 32)])
def test_the_cap_and_the_data_set_end_the_search(
    tmp_path: Path, options: dict[str, Any], size: int
) -> None:
    callback, task = BatchSizeFinder(**options), Limited(10**6)
    fit(tmp_path, callback, task=task)
    assert callback.optimal_batch_size == size
    assert max(task.sizes) == size


def test_a_limit_of_memory_ends_the_search(tmp_path: Path) -> None:
    class Hungry(TinyTask):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # 1 MiB for each sample of the batch, freed at the end of the step
            jt.zeros((batch.x.shape[0], 2**18)).sync()
            return super().training_step(batch, batch_idx)

    jt.gc()
    held = jt.get_mem_info().total_cpu_used / 2**20
    callback = BatchSizeFinder(memory_limit_mb=held + 12)
    fit(tmp_path, callback, task=Hungry())
    assert callback.optimal_batch_size == 8


def test_the_run_is_the_one_that_had_started_with_the_size(tmp_path: Path) -> None:
    found, _ = fit(tmp_path / "finder", BatchSizeFinder("binsearch"))
    plain, _ = fit(tmp_path / "plain", batch_size=13)
    np.testing.assert_equal(found, plain)


def test_a_resumed_run_keeps_the_size_and_makes_no_trial(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = fit(tmp_path / "whole", BatchSizeFinder())
    with pytest.raises(SystemExit):
        fit(tmp_path / "parts", BatchSizeFinder(), StopAfter(4))
    task = Limited(13)
    resumed, trainer = fit(tmp_path / "parts", BatchSizeFinder(), task=task)
    np.testing.assert_equal(resumed, whole)
    assert task.sizes == [8]
    assert trainer.datamodule.batch_size == 8
    assert "batches per epoch" not in caplog.text


def test_nothing_fits_is_an_error_and_the_size_stays(tmp_path: Path) -> None:
    data = TinyData(4)
    trainer = make_trainer(tmp_path, callbacks=[BatchSizeFinder()])
    with pytest.raises(RuntimeError, match="not even a batch of 2 can be trained"):
        trainer.fit(Limited(1), datamodule=data)
    assert data.batch_size == 4


def test_a_fast_run_makes_no_trial(tmp_path: Path) -> None:
    callback = BatchSizeFinder()
    fit(tmp_path, callback, fast_dev_run=True)
    assert callback.optimal_batch_size is None


def test_a_data_module_without_the_attribute_is_an_error(tmp_path: Path) -> None:
    class Other(DataModule):
        def train_dataloader(self) -> Any:
            return TinyData().train_dataloader()

    for data in ({"datamodule": Other()}, {"train_dataloaders": TinyData().train_dataloader()}):
        trainer = make_trainer(tmp_path, callbacks=[BatchSizeFinder()])
        with pytest.raises(ValueError, match=r"'batch_size' of the data module"):
            trainer.fit(TinyTask(), **data)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "grow"},
        {"steps_per_trial": 0},
        {"init_val": 9, "max_val": 8},
        {"memory_limit_mb": 0},
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BatchSizeFinder(**options)
