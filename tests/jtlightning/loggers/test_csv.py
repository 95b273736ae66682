from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from jtlightning.loggers.csv import CSVLogger


def open_logger(folder: Path, resumed_step: int | None = None) -> CSVLogger:
    logger = CSVLogger()
    logger.start(SimpleNamespace(path=folder), resumed_step=resumed_step)
    return logger


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_come_back_exactly_and_are_on_disk_at_once(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    values = {"loss": 0.1 + 0.2, "nan": float("nan"), "inf": -float("inf")}
    logger.log_metrics(values, step=10, epoch=1)
    (row,) = table(tmp_path)
    assert (row["step"], row["epoch"], float(row["loss"])) == ("10", "1", 0.1 + 0.2)
    assert (row["nan"], row["inf"]) == ("nan", "-inf")


def test_a_new_metric_adds_a_column_and_keeps_old_rows(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    logger.log_metrics({"b,c": 2.0}, step=2, epoch=0)
    logger.log_metrics({"a": 3.0}, step=3, epoch=0)
    rows = table(tmp_path)
    assert list(rows[0]) == ["step", "epoch", "a", "b,c"]
    assert [(r["a"], r["b,c"]) for r in rows] == [("1.0", ""), ("", "2.0"), ("3.0", "")]


def test_calls_at_one_step_share_a_row(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"a": 1.0, "b": 123456.0}, step=5, epoch=0)
    logger.log_metrics({"b": 2.0}, step=5, epoch=0)
    assert table(tmp_path) == [{"step": "5", "epoch": "0", "a": "1.0", "b": "2.0"}]
    logger.log_metrics({"c": 3.0}, step=5, epoch=0)
    assert table(tmp_path) == [{"step": "5", "epoch": "0", "a": "1.0", "b": "2.0", "c": "3.0"}]


def test_resume_drops_the_rows_that_will_be_written_again(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    for step in (10, 20, 30, 40):
        logger.log_metrics({"a": step / 2}, step=step, epoch=0)
    logger.finish("failed")
    resumed = open_logger(tmp_path, resumed_step=25)
    assert [row["step"] for row in table(tmp_path)] == ["10", "20"]
    resumed.log_metrics({"a": 7.0, "b": 1.0}, step=30, epoch=1)
    assert [row["step"] for row in table(tmp_path)] == ["10", "20", "30"]
    assert [row["a"] for row in table(tmp_path)] == ["5.0", "10.0", "7.0"]


def test_a_row_of_the_resumed_step_is_completed_not_doubled(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=20, epoch=0)
    logger.finish("stopped")
    open_logger(tmp_path, resumed_step=20).log_metrics({"val": 2.0}, step=20, epoch=0)
    assert table(tmp_path) == [{"step": "20", "epoch": "0", "loss": "1.0", "val": "2.0"}]


def test_a_line_cut_short_by_a_kill_is_dropped_on_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,a\n10,0,1.0\n20,0,2")
    open_logger(tmp_path, resumed_step=100).log_metrics({"a": 3.0}, step=30, epoch=0)
    assert [row["step"] for row in table(tmp_path)] == ["10", "30"]


@pytest.mark.parametrize("spoilt", [b"\0\0\0\0\n", b"\xff\xfe,0,1\n", b"20,0\n"])
def test_lines_spoilt_by_a_power_loss_are_dropped_on_resume(tmp_path: Path, spoilt: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"step,epoch,a\n10,0,1.0\n" + spoilt)
    open_logger(tmp_path, resumed_step=100).log_metrics({"a": 3.0}, step=30, epoch=0)
    assert [row["step"] for row in table(tmp_path)] == ["10", "30"]


def test_a_table_that_cannot_be_read_warns_and_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.csv").write_text("x" * 200_000 + "\n")
    open_logger(tmp_path, resumed_step=100).log_metrics({"a": 3.0}, step=30, epoch=0)
    assert len(caplog.records) == 1
    assert (tmp_path / "metrics.csv").read_text() == "x" * 200_000 + "\n"


def test_steps_going_back_remove_later_rows(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    for step in (1, 2, 3, 2):
        logger.log_metrics({"a": 1.0}, step=step, epoch=0)
    assert [row["step"] for row in table(tmp_path)] == ["1", "2"]


def test_a_folder_that_cannot_be_written_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = open_logger(tmp_path / "missing")
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    logger.finish("finished")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "missing" in caplog.text


def test_a_full_disk_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = open_logger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=1, epoch=0)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    for step in (2, 3):
        logger.log_metrics({"a": 1.0}, step=step, epoch=0)
    logger.finish("finished")
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
