from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jtlightning.loggers.mlflow import MLflowLogger

installed = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="the extra mlflow is not installed"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def run_of(folder: Path) -> SimpleNamespace:
    path = folder / "experiment" / "run-00"
    path.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(path=path)


def store(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=(folder / "experiment" / "mlruns").as_uri())


def points(folder: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in store(folder).get_metric_history(run_id, name)]


def open_logger(folder: Path, **arguments: Any) -> MLflowLogger:
    logger = MLflowLogger(**arguments)
    logger.start(run_of(folder), resumed_step=None)
    return logger


def test_without_mlflow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'segtasks\[mlflow\]'"):
        MLflowLogger()


@installed
def test_a_run_is_complete(tmp_path: Path) -> None:
    logger = MLflowLogger(tags={"kind": "tiny"}, best={"val/miou": "max"})
    logger.log_config({"model": {"depth": 3}, "data": {"scales": [1, 2], "empty": {}}})
    logger.start(run_of(tmp_path), resumed_step=None)
    for step, miou in ((10, 0.5), (20, 0.75), (30, 0.25)):
        logger.log_metrics({"val/miou": miou, "lr/decay": 0.1}, step=step, epoch=step // 10)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    logger.log_image("predictions/room", image, step=20)
    run_id = logger.state_dict()["id"]
    logger.finish("finished")
    client = store(tmp_path)
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "experiment"
    assert (run.info.run_name, run.info.status) == ("run-00", "FINISHED")
    assert run.data.tags["kind"] == "tiny"
    assert run.data.params == {"model.depth": "3", "data.scales": "[1, 2]", "data.empty": "{}"}
    assert points(tmp_path, run_id, "val/miou") == [(10, 0.5), (20, 0.75), (30, 0.25)]
    assert points(tmp_path, run_id, "lr/decay") == [(10, 0.1), (20, 0.1), (30, 0.1)]
    assert points(tmp_path, run_id, "epoch") == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert points(tmp_path, run_id, "best/val/miou") == [(10, 0.5), (20, 0.75)]
    artifacts = tmp_path / "experiment/mlruns" / run.info.experiment_id / run_id / "artifacts"
    assert json.loads((artifacts / "config.json").read_text())["model"] == {"depth": 3}
    (picture,) = (artifacts / "images").glob("predictions*room*step*20*.png")
    with Image.open(picture) as read:
        np.testing.assert_array_equal(np.asarray(read), image)


@installed
@pytest.mark.parametrize(("status", "expected"), [("stopped", "KILLED"), ("failed", "FAILED")])
def test_the_status_tells_how_a_run_ended(tmp_path: Path, status: str, expected: str) -> None:
    logger = open_logger(tmp_path)
    run_id = logger.state_dict()["id"]
    assert store(tmp_path).get_run(run_id).info.status == "RUNNING"
    logger.finish(status)
    assert store(tmp_path).get_run(run_id).info.status == expected


@installed
def test_resume_continues_the_run_without_doubling_points(tmp_path: Path) -> None:
    first = MLflowLogger()
    first.log_config({"lr": 1.0})
    first.start(run_of(tmp_path), resumed_step=None)
    for step in (10, 20, 30):
        first.log_metrics({"loss": step / 10}, step=step, epoch=0)
    state = json.loads(json.dumps(first.state_dict()))
    first.finish("failed")
    resumed = MLflowLogger()
    resumed.load_state_dict(state)
    resumed.start(run_of(tmp_path), resumed_step=10)
    assert store(tmp_path).get_run(state["id"]).info.status == "RUNNING"
    resumed.log_config({"lr": 2.0, "new": 1})
    for step in (20, 30, 40):
        resumed.log_metrics({"loss": step / 10, "val": 1.0}, step=step, epoch=0)
    resumed.finish("finished")
    assert resumed.state_dict()["id"] == state["id"]
    assert points(tmp_path, state["id"], "loss") == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
    assert [step for step, _ in points(tmp_path, state["id"], "val")] == [20, 30, 40]
    run = store(tmp_path).get_run(state["id"])
    assert run.data.params == {"lr": "1.0", "new": "1"}
    (later,) = (tmp_path / "experiment/mlruns").glob("*/*/artifacts/config-10.json")
    assert json.loads(later.read_text())["lr"] == 2.0


@installed
def test_points_that_a_kill_has_torn_are_logged_again(tmp_path: Path) -> None:
    first = open_logger(tmp_path)
    first.log_metrics({"loss": 1.0}, step=10, epoch=0)
    state = json.loads(json.dumps(first.state_dict()))
    first.log_metrics({"loss": 2.0, "val/loss": 3.0}, step=20, epoch=0)
    first.finish("failed")
    (metrics,) = (tmp_path / "experiment/mlruns").glob(f"*/{state['id']}/metrics")
    loss = (metrics / "loss").read_text()
    (metrics / "loss").write_text(loss[:-3])
    (metrics / "val/loss").write_text("")
    resumed = MLflowLogger()
    resumed.load_state_dict(state)
    resumed.start(run_of(tmp_path), resumed_step=10)
    resumed.log_metrics({"loss": 2.0, "val/loss": 3.0}, step=20, epoch=0)
    resumed.finish("finished")
    assert points(tmp_path, state["id"], "loss") == [(10, 1.0), (20, 2.0)]
    assert points(tmp_path, state["id"], "val/loss") == [(20, 3.0)]


@installed
def test_a_checkpoint_in_another_folder_begins_another_run(tmp_path: Path) -> None:
    first = open_logger(tmp_path)
    state = first.state_dict()
    first.finish("finished")
    other = MLflowLogger()
    other.load_state_dict(state)
    other.start(SimpleNamespace(path=tmp_path / "experiment" / "run-01"), resumed_step=10)
    other.finish("finished")
    assert other.state_dict()["id"] not in (None, state["id"])


@installed
def test_names_and_values_beyond_the_limits_are_shortened(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    run_id = logger.state_dict()["id"]
    many = {f"p{number}": number for number in range(250)}  # a request takes 100
    logger.log_config({"long": "x" * 7000, "k" * 300: 1, "../a b(c)": 2, "many": many})
    logger.log_metrics({"iou/wall, left": 1.0, "//x": 2.0}, step=1, epoch=0)
    logger.finish("finished")
    run = store(tmp_path).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["long"] == "x" * 5997 + "..."
    assert run.data.params["k" * 247 + "..."] == "1"
    assert run.data.params["a b_c_"] == "2"
    assert {name: run.data.params[f"many.{name}"] for name in many} == {
        name: str(value) for name, value in many.items()
    }
    assert (run.data.metrics["iou/wall_ left"], run.data.metrics["x"]) == (1.0, 2.0)


@installed
def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    run_id = logger.state_dict()["id"]
    logger.log_metrics({"nan": float("nan"), "inf": float("inf")}, step=1, epoch=0)
    logger.finish("finished")
    assert np.isnan(points(tmp_path, run_id, "nan")[0][1])
    assert points(tmp_path, run_id, "inf") == [(1, float("inf"))]


@installed
def test_a_store_that_cannot_be_reached_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    logger = open_logger(tmp_path, tracking_uri=(tmp_path / "file" / "mlruns").as_uri())
    logger.log_config({"a": 1})
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    logger.log_image("b", np.zeros((2, 2, 3), np.uint8), step=1)
    logger.finish("finished")
    assert logger.state_dict()["id"] is None
    (record,) = [r for r in caplog.records if r.name.startswith("jtlightning")]
    assert record.levelno == logging.WARNING
    assert "MLflowLogger stops, training goes on: NotADirectoryError" in record.getMessage()
