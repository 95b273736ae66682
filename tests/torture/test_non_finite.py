"""NaN and infinity in loss, gradient, sample and metric leave the state of the step before.

Run as a module, this file trains once and goes wrong: `python -m tests.torture.test_non_finite
FOLDER WHAT NUMBER`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jtlightning import runtime

runtime.prepare()

import jittor as jt  # noqa: E402 - after the environment is prepared
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jittor import nn  # noqa: E402

from jtlightning.callbacks import EMA, EarlyStopping, ModelCheckpoint, NaNGuard  # noqa: E402
from jtlightning.callbacks.base import Callback  # noqa: E402
from jtlightning.callbacks.nan_guard import NonFiniteError  # noqa: E402
from jtlightning.data.loader import Loader  # noqa: E402
from jtlightning.trainer import NonFiniteGradientError, NonFiniteLossError  # noqa: E402
from tests.jtlightning.test_fit import make_trainer  # noqa: E402
from tests.jtlightning.tiny import Points, TinyData, TinyTask, jitter, parameters_of  # noqa: E402
from tests.torture.scale import report  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.torture]

BAD_BATCH = 5  # the sixth micro-batch of the first epoch
NUMBERS = {"nan": float("nan"), "inf": float("inf")}
ERRORS = {
    "loss": NonFiniteLossError,
    # A rectifier takes NaN for 0 under fast-math: the gradient alone may tell.
    "sample": (NonFiniteLossError, NonFiniteGradientError),
    "gradient": NonFiniteGradientError,
}
ROOT = Path(__file__).parents[2]
PASSED: list[str] = []  # what has been seen to hold, for the row at the end


@dataclass(frozen=True)
class NamedBatch:
    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]


class NamedPoints(Points):
    """Points with their index."""

    def __getitem__(self, index: int) -> Any:
        return (*super().__getitem__(index), f"point-{index}")


def jitter_named(sample: Any, rng: np.random.Generator) -> Any:
    return (*jitter(sample[:2], rng), sample[2])


def collate(samples: list[Any]) -> NamedBatch:
    x = np.stack([s[0] for s in samples])
    return NamedBatch(x, np.array([s[1] for s in samples], np.int32), tuple(s[2] for s in samples))


@dataclass(frozen=True)
class Poison:
    """Spoil the sample of one name before it is moved."""

    name: str
    number: float

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        x, y, name = jitter_named(sample, rng)
        if name == self.name:
            x[3] = self.number
        return x, y, name


class NamedData(TinyData):
    """Batches that know their samples; the fourth of batch `BAD_BATCH` may be spoiled."""

    def __init__(self, number: float | None = None) -> None:
        super().__init__()
        self.train, self.transform = NamedPoints(24), jitter_named
        *_, bad = itertools.islice(self.train_dataloader().batches(0, 0, seed=0), BAD_BATCH + 1)
        self.bad_names = bad.names
        if number is not None:
            self.transform = Poison(bad.names[3], number)

    def train_dataloader(self) -> Loader:
        return Loader(
            self.train, self.batch_size, collate=collate, transform=self.transform, shuffle=True
        )


class BadGradient(jt.Function):
    """The identity, whose gradient is `number`."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def execute(self, x: jt.Var) -> jt.Var:
        return x * 1

    def grad(self, grad: jt.Var) -> jt.Var:
        return grad * self.number


class Spoilt(TinyTask):
    """Goes wrong in micro-batch `BAD_BATCH`, in its loss or only in its gradient."""

    def __init__(self, what: str, number: float) -> None:
        super().__init__()
        self.what, self.number, self.validations = what, number, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        bad = batch_idx == BAD_BATCH
        logits = self.model(batch.x)
        if bad and self.what == "gradient":
            logits = BadGradient(self.number)(logits)
        loss = nn.cross_entropy_loss(logits, batch.y)
        self.log("train/loss", loss)
        return loss * self.number if bad and self.what == "loss" else loss

    def on_validation_epoch_end(self) -> None:
        self.validations += 1
        bad = self.what == "metric" and self.validations == 3
        self.log("val/score", self.number if bad else 1.0 / self.validations)


class State(Callback):
    """Copies of everything at the last step boundary, and again when the error arrives."""

    def __init__(self) -> None:
        self.at_boundary: dict[str, np.ndarray] = {}
        self.at_exit: dict[str, np.ndarray] = {}

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        if trainer.at_step_boundary:
            self.at_boundary = state_of(trainer, task)

    def teardown(self, trainer: Any, task: Any, stage: str) -> None:
        self.at_exit = state_of(trainer, task)


def state_of(trainer: Any, task: TinyTask) -> dict[str, np.ndarray]:
    """Parameters and statistics, moments, averages, counters."""
    state = parameters_of(task)
    for index, group in enumerate(trainer.optimizer.param_groups):
        for key in ("m", "values"):
            state |= {f"{index}/{key}/{i}": v.numpy() for i, v in enumerate(group[key])}
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            state |= {f"ema/{name}": v for name, v in flat(callback.state_dict())}
    state["step"] = np.array(trainer.global_step)
    return state


def flat(state: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    pairs = []
    for name, value in state.items():
        pairs += flat(value) if isinstance(value, dict) else [(name, np.array(value))]
    return pairs


def fit(folder: Path, what: str, number: float, **settings: Any) -> tuple[Any, NamedData]:
    data = NamedData(number if what == "sample" else None)
    trainer = make_trainer(folder, max_epochs=4, logger=False, **settings)
    trainer.fit(Spoilt(what, number), datamodule=data)
    return trainer, data


@pytest.mark.parametrize(
    "clip",
    [
        {},
        {"gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    ],
    ids=["no-clip", "norm", "value"],
)
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("what", ERRORS)
def test_the_state_at_exit_is_that_of_the_step_before(
    tmp_path: Path, what: str, number: str, accumulate: int, clip: dict[str, Any]
) -> None:
    state, names = State(), NamedData().bad_names
    with pytest.raises(ERRORS[what]) as error:
        fit(
            tmp_path,
            what,
            NUMBERS[number],
            accumulate_grad_batches=accumulate,
            callbacks=[EMA(0.9), state],
            **clip,
        )
    steps = BAD_BATCH // accumulate
    assert state.at_exit["step"] == state.at_boundary["step"] == steps
    assert set(state.at_exit) == set(state.at_boundary)
    assert len(state.at_exit) > 20
    for name, array in state.at_boundary.items():
        np.testing.assert_array_equal(state.at_exit[name], array, err_msg=name)
        assert np.isfinite(array).all(), name
    text = str(error.value)
    assert f"epoch 0, batch {BAD_BATCH}, at step {steps}" in text
    assert f"(samples {', '.join(names)})" in text
    PASSED.append("case")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_metric_that_is_not_a_number_never_ranks(tmp_path: Path, number: str) -> None:
    best = ModelCheckpoint(monitor="val/score", mode="max", save_top_k=2)
    patient = EarlyStopping("val/score", "max", patience=100)
    trainer = make_trainer(
        tmp_path, max_epochs=3, logger=False, callbacks=[best, patient], num_sanity_val_steps=0
    )
    # 1, 0.5 and then NaN; of infinity the largest value wins in mode max, -inf never does
    value = float("nan") if number == "nan" else float("-inf")
    trainer.fit(Spoilt("metric", value), datamodule=NamedData())
    kept = sorted(path.name for path in trainer.run.checkpoints.glob("*.ckpt"))
    assert trainer.global_step == 18
    assert best.best_model_score == 1.0
    assert len([name for name in kept if "last" not in name]) == 2
    assert not [name for name in kept if "nan" in name or "inf" in name]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_guard_ends_a_run_with_a_bad_metric(tmp_path: Path, number: str) -> None:
    state = State()
    with pytest.raises(NonFiniteError, match=f"val/score is {number} at the validation after"):
        fit(tmp_path, "metric", NUMBERS[number], callbacks=[NaNGuard(), state])
    for name, array in state.at_boundary.items():
        np.testing.assert_array_equal(state.at_exit[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("what", "number"), [("loss", "nan"), ("gradient", "inf"), ("sample", "nan"), ("metric", "nan")]
)
def test_a_real_process_ends_with_an_error(tmp_path: Path, what: str, number: str) -> None:
    command = [sys.executable, "-m", "tests.torture.test_non_finite", str(tmp_path), what, number]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert ("val/score is nan" if what == "metric" else f"batch {BAD_BATCH}, at step") in last
    saved = [p.name for p in tmp_path.rglob("*.ckpt")]
    assert bool(saved) == (what == "metric"), saved  # of the first epoch's end
    PASSED.append("process")


def test_the_row_is_reported() -> None:
    report(
        "NaN and Inf in loss, gradient, sample, metric",
        "parameters of the step before; code not 0; batch named; NaN never ranks",
        f"{PASSED.count('case')} of {len(ERRORS) * len(NUMBERS) * 9} cases bit-equal, "
        f"{PASSED.count('process')} of 4 processes with code 1",
    )


if __name__ == "__main__":
    fit(Path(sys.argv[1]), sys.argv[2], NUMBERS[sys.argv[3]], callbacks=[NaNGuard()])
