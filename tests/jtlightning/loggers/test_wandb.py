from __future__ import annotations

import json
import os
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

BLOCK = 32768


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
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
    (begun,) = [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]
    config = {u.key: json.loads(u.value_json) for u in begun.config.update}
    assert config["model"] == {"depth": 3}
    assert (begun.project, begun.display_name, begun.run_id) == (
        "experiment",
        "run-00",
        state["id"],
    )
    summary = {
        u.key: json.loads(u.value_json)
        for r in records(path)
        if r.WhichOneof("record_type") == "summary"
        for u in r.summary.update
    }
    assert summary["status"] == "finished"

    resumed = WandbLogger()
    resumed.load_state_dict(state)
    resumed.start(run, resumed_step=20)
    resumed.log_metrics({"train/loss": 0.4}, step=30, epoch=1)
    resumed.finish("finished")
    wandb.teardown()
    (new,) = set(files(run.path)) - {path}
    assert new.stem == f"run-{state['id']}"
    assert [row["_step"] for row in history(new)] == [30]


def test_a_checkpoint_in_another_folder_begins_another_run(tmp_path: Path) -> None:
    logger = WandbLogger()
    logger.load_state_dict({"id": "older123"})
    logger.start(run_of(tmp_path), resumed_step=20)
    assert logger.state_dict()["id"] != "older123"
    logger.finish("finished")


def test_a_killed_service_does_not_end_training(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    script = f"""
        import logging, os, signal
        from pathlib import Path
        from types import SimpleNamespace
        from jtlightning.loggers.wandb import WandbLogger

        logging.basicConfig(level=logging.WARNING)
        logger = WandbLogger()
        logger.start(SimpleNamespace(path=Path({str(run.path)!r})), resumed_step=None)
        stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat")]
        parents = {{s.split()[0]: s.rpartition(")")[2].split()[1] for s in stats}}
        children = [child for child, parent in parents.items() if parent == str(os.getpid())]
        for child in children:
            os.kill(int(child), signal.SIGKILL)
            os.waitid(os.P_PID, int(child), os.WEXITED | os.WNOWAIT)
        for step in range(1, 200):
            logger.log_metrics({{"loss": 1.0}}, step=step, epoch=0)
        logger.finish("finished")
        print("trained to the end after killing", len(children))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        # Not the service of this process, which an earlier test may have started.
        env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "trained to the end after killing 1\n"
    assert done.returncode == 0
    assert done.stderr.count("WandbLogger stops, training goes on") == 1
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
