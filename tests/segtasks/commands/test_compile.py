"""`segtasks compile`: what it asks for, and that a run after it finds every kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jittor as jt
import pytest

from jtlightning.runtime.kernels import added, stamps
from segtasks.commands import compile as command
from segtasks.commands.assembly import Assembly

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "debug").glob("*.yaml"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and the folder for temporary files in it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(command, "capture_chatter", lambda folder: None)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "dformer_t.yaml"], "datasets/NYUDepthv2: the folder of the data set"),
        (["--config", "no_such.yaml"], "there is no configuration file no_such.yaml"),
        (["--config", "demo.yaml", "--trainer.max_step", "1"], "unknown key trainer.max_step"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    temporary: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options) == 2

    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith("segtasks: error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not list(temporary.iterdir())


def test_files_are_not_verified_one_by_one(tmp_path: Path) -> None:
    # Twice, even: the data are set up here and again by the trainer.
    run = command._prepare([str(ROOT / "configs" / "debug" / "dformer_tiny.yaml")], [], tmp_path)
    assert run.data.check_files is False


def test_only_limits_and_outputs_differ_from_the_run(tmp_path: Path) -> None:
    overrides = ["--trainer.accumulate_grad_batches", "4", "--trainer.gradient_clip_val", "0.1"]
    overrides += ["--task.weights", "not_here.pth"]
    assembly = Assembly(["dformer_t.yaml"], overrides)
    trainer_before = dict(assembly.config.values["trainer"])
    command._shorten(assembly, tmp_path)

    trainer = assembly.config.values["trainer"]
    assert trainer["limit_train_batches"] == 12  # three windows of four
    for name in ("accumulate_grad_batches", "gradient_clip_val", "callbacks"):
        assert trainer[name] == trainer_before[name]
    assert "weights" not in assembly.config.get("task.init_args")


def test_each_step_uses_another_input_size() -> None:
    task = SimpleNamespace(multi_scale=[64, 96, 64])
    callback: Any = command._Sides([64, 96])
    used = []
    for step in range(3):
        callback.on_train_batch_start(SimpleNamespace(global_step=step), task, None, 0)
        used.append(task.multi_scale)
    assert used == [[64], [96], [64]]


def test_a_task_of_one_size_is_left_alone() -> None:
    task = SimpleNamespace()
    command._Sides([]).on_train_batch_start(SimpleNamespace(global_step=0), task, None, 0)
    assert not vars(task)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((3, 1_200), "compiled 3 kernels in 4.5 s; 1,200 are in the cache now; 20.0 s in all\n"),
        ((0, 9), "no kernel was missing; 9 are in the cache now; 20.0 s in all\n"),
    ],
)
def test_the_last_line(
    counts: tuple[int, int], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command._report(*counts, 4.5, 20.0)
    assert capsys.readouterr().out == said


def segtasks(folder: Path, *options: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    result = subprocess.run(
        [sys.executable, "-m", "segtasks", *options],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_run_after_it_compiles_nothing(tmp_path: Path, config: Path) -> None:
    cache = Path(jt.flags.cache_path)
    printed = segtasks(tmp_path, "compile", "--config", str(config))

    assert re.fullmatch(
        r"(compiled [\d,]+ kernels in [\d.]+ s|no kernel was missing); "
        r"[\d,]+ are in the cache now; [\d.]+ s in all\n",
        printed,
    )
    assert not list(tmp_path.iterdir())

    before = stamps(cache)
    segtasks(tmp_path, "fit", "--config", str(config))
    (last,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    segtasks(tmp_path, "test", "--ckpt_path", str(last))
    assert not added(before, stamps(cache))
