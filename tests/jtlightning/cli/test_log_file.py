"""What `log.txt` in a run's folder holds."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jtlightning.cli.log_file import RunLog


def lines(folder: Path) -> list[str]:
    """The file's lines without time, level and logger."""
    return [re.sub(r"^.{23} \w+ +\S+: ", "", line) for line in read(folder).splitlines()]


def read(folder: Path) -> str:
    return (folder / "log.txt").read_text()


@pytest.fixture
def package() -> logging.Logger:
    """A logger as the command line sets it."""
    logger = logging.getLogger("jtlightning")
    logger.setLevel(logging.INFO)
    return logger


def test_messages_have_time_level_and_logger(tmp_path: Path, package: logging.Logger) -> None:
    with RunLog(lambda: tmp_path, "segtasks fit"):
        package.getChild("trainer").info("loaded %s", "a.ckpt")
        logging.getLogger("my_task").warning("odd")
        package.debug("not this")
    assert lines(tmp_path)[1:] == ["loaded a.ckpt", "odd", "done"]
    assert lines(tmp_path)[0].startswith("started: segtasks fit (process ")
    line = read(tmp_path).splitlines()[1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    jtlightning.*", line)


def test_what_comes_before_the_folder_waits(tmp_path: Path, package: logging.Logger) -> None:
    run = SimpleNamespace(path=None)
    with RunLog(lambda: run.path, "segtasks fit"):
        package.info("early")
        assert not list(tmp_path.iterdir())
        run.path = tmp_path
        package.info("late")
        assert lines(tmp_path)[1:] == ["early", "late"]


def test_run_without_a_folder_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: logging.Logger
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(lambda: None, "segtasks fit"):
        package.warning("nowhere")
    assert not list(tmp_path.iterdir())


def test_error_is_kept_with_its_traceback(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no good") from KeyError("why")

    with pytest.raises(ValueError, match="no good"), RunLog(lambda: tmp_path, "segtasks fit"):
        fail()
    text = read(tmp_path)
    assert "KeyError: 'why'" in text
    assert "in fail\n    raise ValueError" in text
    assert text.endswith("ValueError: no good\n")


@pytest.mark.parametrize(("error", "code"), [(SystemExit(143), 143), (KeyboardInterrupt(), 130)])
def test_leaving_after_a_signal_is_no_failure(
    tmp_path: Path, error: BaseException, code: int
) -> None:
    with pytest.raises(type(error)), RunLog(lambda: tmp_path, "segtasks fit"):
        raise error
    assert lines(tmp_path)[1:] == [f"left with exit code {code}"]


def test_continued_run_appends(tmp_path: Path) -> None:
    for command in ("segtasks fit", "segtasks test"):
        with RunLog(lambda: tmp_path, command):
            pass
    assert [line.split(" (")[0] for line in lines(tmp_path)] == [
        "started: segtasks fit",
        "done",
        "started: segtasks test",
        "done",
    ]


def test_file_that_cannot_be_written_is_one_warning(
    tmp_path: Path, package: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log.txt").mkdir()
    with RunLog(lambda: tmp_path, "segtasks fit"):
        package.info("one")
        package.info("two")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"{tmp_path}/log.txt cannot be written (Is a directory); it ends here"]


def test_handler_is_gone_afterwards(tmp_path: Path, package: logging.Logger) -> None:
    before = logging.getLogger().handlers[:]
    with RunLog(lambda: tmp_path, "segtasks fit"):
        pass
    package.info("after")
    assert logging.getLogger().handlers == before
    assert lines(tmp_path)[-1] == "done"


def test_command_line_logs_into_the_run_s_folder(
    run: Callable[..., int],
    standins: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fit(self: Any, *_: Any, **__: Any) -> None:
        self.run = SimpleNamespace(path=tmp_path)
        raise RuntimeError("in the user's own code")

    monkeypatch.setattr(standins.Trainer, "fit", fit)
    with pytest.raises(RuntimeError):
        run("fit", "--config", "demo.yaml", "--task.lr", "0.5")
    assert lines(tmp_path)[0].startswith(
        "started: segtasks fit --config demo.yaml --task.lr 0.5 (process "
    )
    assert read(tmp_path).endswith("RuntimeError: in the user's own code\n")
