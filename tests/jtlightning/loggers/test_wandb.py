from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb

from jtlightning.loggers.wandb import WandbLogger
from jtlightning.loggers.wandb_file import logged_steps
from jtlightning.signals import reclaim

BLOCK = 32768


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    reclaim()  # once imported, Jittor ends the process when a child is killed
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def records(path: Path) -> list[Any]:
    """The messages of an offline file, a LevelDB log behind seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message, found = path.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            found.append(Record.FromString(message))
            message = b""
    return found


def history(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def begun(path: Path) -> Any:
    """The record that opens a run."""
    return next(r.run for r in records(path) if r.WhichOneof("record_type") == "run")


def summary(path: Path) -> dict[str, Any]:
    return {
        u.key or "/".join(u.nested_key): json.loads(u.value_json)
        for r in records(path)
        if r.WhichOneof("record_type") == "summary"
        for u in r.summary.update
    }


def files(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def run_of(folder: Path) -> SimpleNamespace:
    path = folder / "experiment" / "run-00"
    path.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(path=path)


def test_an_offline_run_is_complete_and_resume_continues_its_id(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger()
    logger.log_config({"model": {"depth": 3}})
    logger.start(run, resumed_step=None)
    logger.log_metrics({"train/loss": 0.5, "lr/decay": 0.1}, step=10, epoch=0)
    logger.log_metrics({"val/miou": 0.25}, step=10, epoch=0)
    image = np.full((4, 6, 3), 200, np.uint8)
    logger.log_image("predictions", image, step=20)
    state = logger.state_dict()
    logger.finish("finished")
    wandb.teardown()  # the service writes in the background: wait for it
    (path,) = files(run.path)
    first, second = history(path)
    assert (first["_step"], first["trainer/global_step"], first["epoch"]) == (10, 10, 0)
    assert (first["train/loss"], first["lr/decay"], first["val/miou"]) == (0.5, 0.1, 0.25)
    assert second["_step"] == 20
    media = path.parent / "files" / second["predictions/path"]
    assert media.is_file()
    opened = begun(path)
    config = {u.key: json.loads(u.value_json) for u in opened.config.update}
    assert config["model"] == {"depth": 3}
    assert (opened.project, opened.display_name, opened.run_id) == (
        "experiment",
        "run-00",
        state["id"],
    )
    assert summary(path)["status"] == "finished"

    resumed = WandbLogger()
    resumed.load_state_dict(state)
    resumed.start(run, resumed_step=20)
    resumed.log_metrics({"train/loss": 0.4}, step=30, epoch=1)
    resumed.finish("finished")
    wandb.teardown()
    (new,) = set(files(run.path)) - {path}
    assert new.stem == f"run-{state['id']}"
    assert [row["_step"] for row in history(new)] == [30]


def test_a_run_is_called_what_it_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger("rooms", "first try", id="abc123", tags=["tiny", "cpu"], group="g")
    logger.start(run, resumed_step=None)
    logger.finish("failed")
    wandb.teardown()
    (path,) = files(run.path)
    opened = begun(path)
    assert (opened.project, opened.display_name, opened.run_id) == ("rooms", "first try", "abc123")
    assert (list(opened.tags), opened.run_group) == (["tiny", "cpu"], "g")
    assert summary(path)["status"] == "failed"
    (ended,) = [r.exit for r in records(path) if r.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 1


def test_what_a_killed_run_had_logged_after_the_checkpoint_is_not_doubled(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    first = WandbLogger()
    first.start(run, resumed_step=None)
    for step in (10, 20, 30):
        first.log_metrics({"loss": step / 10}, step=step, epoch=0)
    first.log_image("room", np.zeros((2, 2, 3), np.uint8), step=30)
    state = first.state_dict()  # of a checkpoint at step 10; validation at 30 was not reached
    first.finish("failed")
    wandb.teardown()
    (path,) = files(run.path)
    resumed = WandbLogger()
    resumed.load_state_dict(state)
    resumed.start(run, resumed_step=10)
    for step in (20, 30, 40):
        resumed.log_metrics({"loss": step / 10}, step=step, epoch=0)
        if step == 30:
            resumed.log_metrics({"val": 7.0}, step=30, epoch=0)
            resumed.log_image("room", np.zeros((2, 2, 3), np.uint8), step=30)
    resumed.finish("finished")
    wandb.teardown()
    (new,) = set(files(run.path)) - {path}
    rows = [(r["_step"], r.get("loss"), r.get("val")) for r in history(path) + history(new)]
    assert rows == [(10, 1.0, None), (20, 2.0, None), (30, 3.0, None), (30, None, 7.0),
                    (40, 4.0, None)]  # fmt: skip
    assert sum("room/path" in row for row in history(path) + history(new)) == 1


KILLED = """
    import json, os, signal, sys, time
    from pathlib import Path
    from types import SimpleNamespace
    from jtlightning.loggers.wandb import WandbLogger
    from jtlightning.loggers.wandb_file import logged_steps

    folder, state = Path(sys.argv[1]), Path(sys.argv[2])
    logger = WandbLogger()
    logger.start(SimpleNamespace(path=folder), resumed_step=None)
    step = 0
    while not logged_steps(folder / "wandb", logger.run_id):  # until the client has written some
        step += 1
        logger.log_metrics({"loss": step / 4}, step=step, epoch=0)
        time.sleep(0.05)
    logger.log_metrics({"loss": (step + 1) / 4}, step=step + 1, epoch=0)
    state.write_text(json.dumps([step + 1, logger.state_dict()]))
    for later in range(step + 2, step + 9):
        logger.log_metrics({"loss": later / 4}, step=later, epoch=0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_row_of_before_the_checkpoint(tmp_path: Path) -> None:
    run, kept = run_of(tmp_path), tmp_path / "state.json"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), run.path, kept],
        env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    checkpoint_step, state = json.loads(kept.read_text())
    (path,) = files(run.path)
    lost = checkpoint_step - len(history(path))
    assert lost > 0  # else this shows nothing
    resumed = WandbLogger()
    resumed.load_state_dict(state)
    resumed.start(run, resumed_step=checkpoint_step)
    resumed.log_metrics({"loss": 0.0}, step=checkpoint_step + 1, epoch=0)
    resumed.finish("finished")
    wandb.teardown()
    (new,) = set(files(run.path)) - {path}
    rows = [(row["_step"], row["loss"]) for row in history(path) + history(new)]
    assert rows == [
        *((step, step / 4) for step in range(1, checkpoint_step + 1)),
        (checkpoint_step + 1, 0.0),
    ]


def test_a_file_cut_short_is_read_up_to_its_end(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger()
    logger.start(run, resumed_step=None)
    for step in range(1, 1201):  # more than one block of the file
        logger.log_metrics({"loss": 1.0, "a-metric-with-a-long-name": 2.0}, step=step, epoch=0)
    logger.finish("finished")
    wandb.teardown()
    (path,) = files(run.path)
    steps = logged_steps(run.path / "wandb", logger.state_dict()["id"])
    assert steps["loss"] == steps["a-metric-with-a-long-name"] == 1200
    data = path.read_bytes()
    assert len(data) > 2 * BLOCK
    cuts = []
    for length in range(len(data) - BLOCK, len(data), 997):
        path.write_bytes(data[:length])
        cuts.append(logged_steps(run.path / "wandb", logger.state_dict()["id"])["loss"])
    assert cuts == sorted(cuts)
    assert 600 < cuts[0] < cuts[-1] <= 1200


def test_the_summary_has_the_newest_and_the_best_values(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger(best={"val/miou": "max", "val/loss": "min"})
    logger.start(run, resumed_step=None)
    for step, miou in ((5, float("nan")), (10, 0.5), (20, 0.75), (30, float("nan"))):
        logger.log_metrics({"val/miou": miou, "val/loss": step / 10}, step=step, epoch=0)
    state = json.loads(json.dumps(logger.state_dict()))
    logger.finish("stopped")
    wandb.teardown()
    (path,) = files(run.path)
    written = summary(path)
    assert (written["best/val/miou"], written["best/val/miou_step"]) == (0.75, 20)
    assert (written["best/val/loss"], written["best/val/loss_step"]) == (0.5, 5)
    assert written["val/loss"] == 3.0
    assert written["status"] == "stopped"

    resumed = WandbLogger(best={"val/miou": "max"})
    resumed.load_state_dict(state)
    resumed.start(run, resumed_step=30)
    resumed.log_metrics({"val/miou": 0.6}, step=40, epoch=1)
    resumed.finish("finished")
    wandb.teardown()
    (new,) = set(files(run.path)) - {path}
    assert summary(new)["best/val/miou"] == 0.75
    with pytest.raises(ValueError, match=r"'val/miou'.*'highest'"):
        WandbLogger(best={"val/miou": "highest"})  # type: ignore[dict-item]


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    logger = WandbLogger()
    logger.start(run, resumed_step=None)
    logger.log_metrics(
        {"nan": float("nan"), "inf": float("inf"), "low": -float("inf")}, step=1, epoch=0
    )
    logger.finish("finished")
    wandb.teardown()
    (row,) = history(files(run.path)[0])
    assert np.isnan(float(row["nan"]))
    assert (float(row["inf"]), float(row["low"])) == (float("inf"), -float("inf"))


def test_an_error_of_the_client_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = WandbLogger()
    logger.start(run_of(tmp_path), resumed_step=None)
    assert logger.shows_pictures
    monkeypatch.setattr(logger._run, "log", lambda *_, **__: 1 / 0)
    for step in (1, 2, 3):
        logger.log_metrics({"loss": 1.0}, step=step, epoch=0)
    assert not logger._client.run(lambda: None, timeout_s=30)
    assert not logger.shows_pictures
    logger.finish("finished")
    assert [r.getMessage() for r in caplog.records if r.name.startswith("jtlightning")] == [
        "WandbLogger stops, training goes on: ZeroDivisionError: division by zero"
    ]


def test_a_checkpoint_in_another_folder_begins_another_run(tmp_path: Path) -> None:
    logger = WandbLogger()
    logger.load_state_dict({"id": "older123"})
    logger.start(run_of(tmp_path), resumed_step=20)
    assert logger.state_dict()["id"] != "older123"
    logger.finish("finished")


SCRIPT = """
    import logging, os, signal, sys, time
    from pathlib import Path
    from types import SimpleNamespace
    from jtlightning.loggers.wandb import WandbLogger

    logging.basicConfig(level=logging.WARNING)
    logger = WandbLogger()
    logger.start(SimpleNamespace(path=Path(sys.argv[1])), resumed_step=None)
    logger.timeout_s = 2.0  # not before: a busy machine may need longer to start the service
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
    parents = {s.split()[0]: s.rpartition(")")[2].split()[1] for s in stats}
    children = [child for child, parent in parents.items() if parent == str(os.getpid())]
    quiet = [b"--no-observability" in Path(f"/proc/{c}/cmdline").read_bytes() for c in children]
    for child in children:
        os.kill(int(child), getattr(signal, sys.argv[2]))
        if sys.argv[2] == "SIGKILL":
            os.waitid(os.P_PID, int(child), os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    for step in range(1, int(sys.argv[3])):
        logger.log_metrics({"loss": 1.0}, step=step, epoch=0)
    slowed = time.monotonic() - began > 1.0
    logger.finish("finished")
    print("killed", len(children), "quiet", quiet, "slowed", slowed)
"""


@pytest.mark.parametrize(
    ("kind", "steps", "reason"),
    [
        ("SIGKILL", 200, ""),
        ("SIGSTOP", 200, "has not answered for 2 s"),
    ],
)
def test_a_killed_or_hanging_service_does_not_end_training(
    tmp_path: Path, kind: str, steps: int, reason: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), run_of(tmp_path).path, kind, str(steps)],
        # Not the service of this process, which an earlier test may have started.
        env={
            name: value
            for name, value in os.environ.items()
            if name not in ("WANDB_SERVICE", "WANDB_ERROR_REPORTING")
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "killed 1 quiet [True] slowed False\n"
    assert done.returncode == 0
    assert done.stderr.count("WandbLogger stops, training goes on") == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_online_without_a_key_warns_and_never_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    logger = WandbLogger(mode="online")
    logger.start(run_of(tmp_path), resumed_step=None)
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    logger.finish("finished")
    assert [r.getMessage() for r in caplog.records if r.name == "jtlightning.loggers.wandb"] == [
        "WandbLogger stops, training goes on: UsageError: No API key configured. "
        "Use `wandb login` to log in."
    ]


def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cloud'"):
        WandbLogger(mode="cloud")  # type: ignore[arg-type]
    monkeypatch.setenv("WANDB_MODE", "cloud")
    with pytest.raises(ValueError, match="WANDB_MODE"):
        WandbLogger().start(run_of(tmp_path), resumed_step=None)
