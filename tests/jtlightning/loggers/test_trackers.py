"""All trackers of one run through the real trainer, read back with the readers of each tool."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from jtlightning.callbacks import ImageLogger, LearningRateMonitor, ModelCheckpoint
from jtlightning.loggers import CSVLogger, Logger, MLflowLogger, TensorBoardLogger, WandbLogger
from tests.jtlightning.callbacks.test_image_logger import DrawnTask
from tests.jtlightning.loggers.test_wandb import files, history, summary
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.test_resume import StopAfter
from tests.jtlightning.tiny import TinyData

pytestmark = pytest.mark.slow
Scalars = dict[tuple[str, int], float]
ROOT = Path(__file__).parents[3]
#: 7 micro-batches an epoch, 4 steps: 12 in all; validation twice an epoch.
SETTINGS = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 4}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def trackers() -> list[Logger]:
    best: Any = {"val/loss": "min"}
    made: list[Logger] = [CSVLogger(), TensorBoardLogger(), WandbLogger(best=best)]
    return [*made, MLflowLogger()] if importlib.util.find_spec("mlflow") else made


def train(folder: Path, *callbacks: Any, loggers: list[Logger] | None = None) -> Path:
    trainer = make_trainer(
        folder,
        callbacks=[LearningRateMonitor(), ImageLogger(limit=1), *callbacks],
        logger=trackers() if loggers is None else loggers,
        log_every_n_steps=1,
        **SETTINGS,
    )
    try:
        trainer.fit(DrawnTask(), datamodule=TinyData(train=28), ckpt_path="auto")
    except SystemExit as stopped:
        assert stopped.code == 143  # noqa: PT017 - only the runs that are told to stop do
    assert trainer.run is not None
    return trainer.run.path


def in_csv(run: Path) -> Scalars:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [row["step"] for row in rows]
    assert len(set(steps)) == len(steps)
    return {
        (name, int(row["step"])): float(cell)
        for row in rows
        for name, cell in row.items()
        if cell and name not in ("step", "epoch")
    }


def in_tensorboard(run: Path) -> Scalars:
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={SCALARS: 0})
    read.Reload()
    points = [(tag, p) for tag in read.Tags()["scalars"] for p in read.Scalars(tag)]
    found = {(tag, p.step): p.value for tag, p in points if tag != "epoch"}
    assert len(found) == sum(tag != "epoch" for tag, _ in points)
    return found


def in_wandb(run: Path) -> Scalars:
    rows = [
        (name, row["_step"], value)
        for path in files(run)
        for row in history(path)
        for name, value in row.items()
        if not name.startswith(("_", "epoch", "trainer/", "logits"))
    ]
    found = {(name, step): float(value) for name, step, value in rows}
    assert len(found) == len(rows)
    return found


def in_mlflow(run: Path) -> Scalars:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run.parent / "mlruns").as_uri())
    title = client.get_experiment_by_name(run.parent.name)
    (found,) = client.search_runs([title.experiment_id])
    assert found.info.status == "FINISHED"
    return {
        (name, point.step): point.value
        for name in found.data.metrics
        if name != "epoch"
        for point in client.get_metric_history(found.info.run_id, name)
    }


def check(run: Path) -> Scalars:
    """All trackers have the same scalars; returns them."""
    wandb.teardown()
    expected = in_csv(run)
    assert {step for _, step in expected} == set(range(1, 13))
    assert {"lr/decay", "lr/no_decay", "val/loss", "train/loss_step"} <= {n for n, _ in expected}
    assert in_wandb(run) == expected
    if importlib.util.find_spec("mlflow"):
        assert in_mlflow(run) == expected
    shown = in_tensorboard(run)
    assert shown.keys() == expected.keys()
    for key, value in expected.items():
        assert shown[key] == np.float32(value)  # TensorBoard's precision
    return expected


def test_a_stopped_and_resumed_run_has_the_same_scalars_everywhere(tmp_path: Path) -> None:
    whole = check(train(tmp_path / "whole"))
    train(tmp_path / "halves", StopAfter(5))
    run = train(tmp_path / "halves")
    assert check(run) == whole
    (first, second) = files(run)
    assert first.stem == second.stem  # the run's id
    assert summary(second)["status"] == "finished"
    assert summary(second)["best/val/loss"] == min(v for (n, _), v in whole.items() if "val/l" in n)
    drawn = [row["_step"] for path in (first, second) for row in history(path) if "logits" in
             str(row)]  # fmt: skip
    assert drawn == sorted({step for name, step in whole if name == "val/loss"})


SCRIPT = """
    import logging, os, signal, sys
    from pathlib import Path
    import jtlightning
    from jtlightning.callbacks import Callback, ModelCheckpoint
    from tests.jtlightning.loggers.test_trackers import children, train

    class Kill(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.at_step_boundary and trainer.global_step == int(sys.argv[3]):
                pids = [os.getpid()] if sys.argv[2] == "trainer" else children("wandb-core")
                assert len(pids) == 1
                os.kill(pids[0], signal.SIGKILL)

    logging.basicConfig(level=logging.WARNING)
    train(Path(sys.argv[1]), ModelCheckpoint(every_n_train_steps=2), Kill())
"""


def children(command: str) -> list[int]:
    """Processes of that name that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        if name == command and rest.split()[1] == str(os.getpid()):
            found.append(int(path.parent.name))
    return found


def train_in_another_process(folder: Path, victim: str, step: int) -> Any:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), victim, str(step)],
        env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_killed_run_has_the_same_scalars_everywhere_after_its_resume(tmp_path: Path) -> None:
    whole = check(train(tmp_path / "whole"))
    done = train_in_another_process(tmp_path / "killed", "trainer", 7)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert check(train(tmp_path / "killed", ModelCheckpoint(every_n_train_steps=2))) == whole


def test_a_killed_service_ends_neither_training_nor_the_other_trackers(tmp_path: Path) -> None:
    whole = in_csv(train(tmp_path / "whole", loggers=[CSVLogger()]))
    done = train_in_another_process(tmp_path / "lonely", "wandb-core", 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WandbLogger stops, training goes on") == 1
    assert "Traceback" not in done.stderr
    (table,) = (tmp_path / "lonely").glob("*/metrics.csv")
    assert in_csv(table.parent) == whole
    assert in_tensorboard(table.parent).keys() == whole.keys()
