"""Averages of the last epochs: their values, their statistics, and a run that is left alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.ema import EMA
from jtlightning.callbacks.save_on_exception import SaveOnException
from jtlightning.callbacks.swa import StochasticWeightAveraging
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.data.loader import Loader
from jtlightning.optim import ConstantSchedule
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter, flatten
from tests.jtlightning.tiny import TinyData, TinyTask, parameters_of

#: 28 samples in batches of 8 (the last has 4): steps of 2 micro-batches, 2 an epoch.
SETTINGS = {"max_epochs": 4, "accumulate_grad_batches": 2}
RATE = 0.01


class Constant(TinyTask):
    def configure_optimizers(self) -> Any:
        return super().configure_optimizers()[0], ConstantSchedule()


class Watch(Callback):
    """Weights at the end of each epoch, rates of each step, and validations."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []
        self.rates: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self.rates.append(trainer.learning_rates()["lr/decay"])
        if trainer.batch_idx == trainer.num_training_batches:
            self.weights.append(parameters_of(task))

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        self.validated.append(trainer.metrics["val/loss"])


class Data(TinyData):
    def __init__(self, workers: int = 0) -> None:
        super().__init__(8, 28)
        self.workers = workers

    def train_dataloader(self) -> Loader:
        loader = super().train_dataloader()
        loader.num_workers = self.workers
        return loader


def swa(**options: Any) -> StochasticWeightAveraging:
    # Epochs 3 and 4 of 4; the schedule's own rate, so that the run is the one without averaging.
    return StochasticWeightAveraging(**{"swa_lrs": RATE, "swa_epoch_start": 3, **options})


def fit(
    folder: Path, *callbacks: Callback, kind: type[TinyTask] = Constant, **arguments: Any
) -> tuple[TinyTask, Trainer]:
    workers = arguments.pop("workers", 0)
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**SETTINGS, **arguments})
    task = kind(RATE)  # after the trainer, which seeds
    trainer.fit(task, datamodule=Data(workers), ckpt_path="auto")
    return task, trainer


def state_of(task: TinyTask, trainer: Trainer) -> dict[str, Any]:
    return {**parameters_of(task), **trainer.drivers[0].state_tensors()}


def exported(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("*/checkpoints/swa.ckpt")
    tensors = read_checkpoint(path).tensors
    return {name.removeprefix("model/"): array for name, array in tensors.items()}


def test_the_average_counts_the_chosen_epochs_alike(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, watch, swa())
    assert len(watch.weights) == 4
    average = exported(tmp_path)
    assert average.keys() == watch.weights[0].keys()
    for name, value in average.items():
        if "running" not in name:
            wanted = np.mean([w[name].astype(np.float64) for w in watch.weights[2:]], 0)
            # Two roundings of numbers around 1.
            np.testing.assert_allclose(value, wanted, atol=3e-7, err_msg=name)


def test_statistics_are_those_of_the_average_over_the_training_data(tmp_path: Path) -> None:
    fit(tmp_path, swa())
    average = exported(tmp_path)
    weight, bias = average["model.fc1.weight"], average["model.fc1.bias"]
    batches = list(Data().train_dataloader().batches(3, 0, seed=0))
    means, variances, sizes = [], [], []
    for batch in batches:
        features = batch.x.astype(np.float64) @ weight.T.astype(np.float64) + bias
        means.append(features.mean(0))
        variances.append(features.var(0))
        sizes.append(len(features))
    assert sizes == [8, 8, 8, 4]
    # The variance is E[x^2] - E[x]^2 in float32, of features around 5.
    np.testing.assert_allclose(
        average["model.bn.running_mean"], np.average(means, 0, sizes), atol=1e-5
    )
    np.testing.assert_allclose(
        average["model.bn.running_var"], np.average(variances, 0, sizes), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_run_itself_is_bit_for_bit_the_one_without_it(tmp_path: Path, workers: int) -> None:
    without = state_of(*fit(tmp_path / "without"))
    along = state_of(*fit(tmp_path / "with", swa(), workers=workers))
    np.testing.assert_equal(along, without)


def test_the_last_validation_measures_what_is_exported(tmp_path: Path) -> None:
    watch, raw = Watch(), Watch()
    fit(tmp_path / "swa", swa(), watch)
    fit(tmp_path / "raw", raw)
    assert watch.validated[:3] == raw.validated[:3], "sanity check and epochs before the average"
    assert watch.validated[4] != raw.validated[4]
    (path,) = (tmp_path / "swa").glob("*/checkpoints/swa.ckpt")
    trainer = make_trainer(tmp_path / "alone")
    # The same kernels on the same numbers.
    assert trainer.validate(Constant(), datamodule=Data(), ckpt_path=path) == {
        "val/loss": watch.validated[4]
    }
    trainer = make_trainer(tmp_path / "swa", callbacks=[swa()])
    metrics = trainer.test(Constant(), datamodule=Data(), ckpt_path="last")
    assert metrics == {"val/loss": watch.validated[4]}


@pytest.mark.parametrize("step", [3, 4, 5, 6, 7, 8])
def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, step: int) -> None:
    options = {"swa_lrs": 0.03, "swa_epoch_start": 0.75, "annealing_epochs": 1}
    ends = []
    for name in ("whole", "parts"):
        folder = tmp_path / name
        if name == "parts":
            with pytest.raises(SystemExit):
                fit(folder, swa(**options), StopAfter(step))
            assert not list(folder.glob("*/checkpoints/swa.ckpt"))
        averaging = swa(**options)
        end = state_of(*fit(folder, averaging))
        assert averaging.count == 2
        ends.append({**end, **flatten(averaging.state_dict()), **exported(folder)})
    np.testing.assert_equal(ends[1], ends[0])


@pytest.mark.parametrize("strategy", ["linear", "cos"])
def test_the_rate_goes_from_the_schedule_to_the_averaged_epochs(
    tmp_path: Path, strategy: str
) -> None:
    watch = Watch()
    options = {"swa_lrs": 0.05, "annealing_epochs": 1, "annealing_strategy": strategy}
    fit(tmp_path, watch, swa(**options))
    half = 0.5 if strategy == "linear" else (1 - math.cos(math.pi / 2)) / 2
    wanted = [RATE] * 4 + [RATE, RATE + 0.04 * half, 0.05, 0.05]
    assert watch.rates == pytest.approx(wanted)


def test_each_group_may_have_its_own_rate(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, swa(swa_lrs=[0.03, 0.02], annealing_epochs=0))
    assert trainer.learning_rates() == pytest.approx({"lr/decay": 0.03, "lr/no_decay": 0.02})


def test_statistics_may_come_from_fewer_batches(tmp_path: Path) -> None:
    class Counting(Constant):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls += 1
            return super().training_step(batch, batch_idx)

    task, trainer = fit(tmp_path, swa(statistics_batches=1), kind=Counting)
    assert task.calls == 4 * 4 + 2
    assert "train/loss" in trainer.metrics.progress_bar()


def test_statistics_that_an_error_cut_short_are_computed_on_resuming(tmp_path: Path) -> None:
    class Failing(Constant):
        calls = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls += 1
            if self.calls == 4 * 4 + 4 + 2:  # within the statistics of the last epoch
                raise RuntimeError("the first error")
            return super().training_step(batch, batch_idx)

    fit(tmp_path / "whole", swa())
    with pytest.raises(RuntimeError, match="the first error"):
        fit(tmp_path / "parts", swa(), SaveOnException(), kind=Failing)
    fit(tmp_path / "parts", swa())
    np.testing.assert_equal(exported(tmp_path / "parts"), exported(tmp_path / "whole"))


def test_a_run_that_ends_early_says_that_nothing_was_averaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, swa(), max_steps=3)
    assert "training ended in epoch 2, swa_epoch_start is epoch 3" in caplog.text
    assert not list(tmp_path.glob("*/checkpoints/swa.ckpt"))


def test_two_averages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="StochasticWeightAveraging and EMA"):
        fit(tmp_path, swa(), EMA())


def test_rates_must_fit_the_groups(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 3 rates, the optimizer 2 .*lr/decay"):
        fit(tmp_path, swa(swa_lrs=[0.1, 0.1, 0.1]))


def test_a_fraction_needs_a_number_of_epochs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.8, a fraction of max_epochs"):
        fit(tmp_path, swa(swa_epoch_start=0.8), max_epochs=None, max_steps=4)


@pytest.mark.parametrize(
    "options",
    [
        {"swa_lrs": 0.0},
        {"swa_lrs": []},
        {"swa_epoch_start": 0},
        {"swa_epoch_start": 1.5},
        {"annealing_epochs": -1},
        {"annealing_strategy": "step"},
        {"statistics_batches": 0},
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        swa(**options)
