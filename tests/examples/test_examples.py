"""Every example runs as a newcomer runs it: in a process of its own, from any folder."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# What pip writes for the entry point in pyproject.toml. The folder of the script, not the working
# folder, is first on sys.path then.
CONSOLE_SCRIPT = """\
import sys
from segtasks.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a Python command prints; it may write into `folder` only."""
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(name: str, folder: Path) -> str:
    return run([EXAMPLES / name], folder)


def number(pattern: str, printed: str) -> float:
    """The one number that the pattern marks in what was printed."""
    (found,) = re.findall(pattern, printed, re.MULTILINE)
    return float(found)


def test_training_from_scratch_learns_the_circle(tmp_path: Path) -> None:
    printed = run_example("train_from_scratch.py", tmp_path)
    # Always answering the commoner class is right in 0.61 of the cases: the circle has 0.39 of
    # the square.
    assert number(r"^accuracy (\S+);", printed) > 0.9
    assert list(tmp_path.glob("circle-*/*/checkpoints/last.ckpt"))


def test_custom_callback_logs_its_metric(tmp_path: Path) -> None:
    printed = run_example("custom_callback.py", tmp_path)
    assert 0 < number(r"^worst loss of the last epoch (\S+)$", printed) < 1
    (table,) = tmp_path.glob("callback-*/*/metrics.csv")
    assert "train/worst_loss" in table.read_text().splitlines()[0].split(",")


def test_custom_task_data_logger_and_schedule_work_from_python(tmp_path: Path) -> None:
    printed = run_example("custom_task.py", tmp_path)
    assert number(r"^accuracy (\S+);", printed) > 0.9
    (rows,) = tmp_path.glob("task-*/*/metrics.jsonl")
    assert json.loads(rows.read_text().splitlines()[-1])["step"] == 500


@pytest.fixture
def working_folder(tmp_path: Path) -> Path:
    """The user's files, in the folder that the command is typed in."""
    for file in (*EXAMPLES.glob("custom_*.py"), EXAMPLES / "custom.yaml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "segtasks").write_text(CONSOLE_SCRIPT)
    return tmp_path


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    """What the custom logger wrote, by step."""
    merged: dict[int, dict[str, float]] = {}
    for line in (folder / "scalars.jsonl").read_text().splitlines():
        row = json.loads(line)
        merged.setdefault(row["step"], {}).update(row)
    return merged


@pytest.mark.parametrize("command", [["bin/segtasks"], ["-m", "segtasks"]], ids=" ".join)
def test_everything_custom_is_found_from_yaml(working_folder: Path, command: list[str]) -> None:
    fit = [*command, "fit", "--config", "custom.yaml", "--trainer.max_epochs", "4"]
    run([*fit, "--trainer.log_every_n_steps", "10"], working_folder)
    (folder,) = (working_folder / "runs" / "custom").glob("*-*")
    rows = scalars(folder)
    assert rows[200]["val/accuracy"] > 0.9
    assert [step for step, row in rows.items() if "train/worst" in row] == [50, 100, 150, 200]
    with (folder / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(10, 201, 10))
    assert "started: segtasks fit --config custom.yaml" in (folder / "log.txt").read_text()


def test_custom_logger_goes_on_where_a_continued_run_does(working_folder: Path) -> None:
    fit = ["-m", "segtasks", "fit", "--config", "custom.yaml", "--trainer.log_every_n_steps", "10"]
    run([*fit, "--trainer.max_steps", "30"], working_folder)
    (folder,) = (working_folder / "runs" / "custom").glob("*-*")
    kept = scalars(folder)
    with (folder / "scalars.jsonl").open("a") as file:  # as a run that was killed later
        file.write('{"step": 40, "epoch": 0, "train/loss": 9}\n')
    run([*fit, "--trainer.max_steps", "60", "--ckpt_path", "last"], working_folder)
    rows = scalars(folder)
    assert {step: row for step, row in rows.items() if step <= 30} == kept
    assert list(rows) == [10, 20, 30, 40, 50, 60]
    assert rows[40]["train/loss"] < 1


def test_two_optimizers_train_against_each_other(tmp_path: Path) -> None:
    printed = run_example("two_optimizers.py", tmp_path)
    x = number(r"^drawn around \((\S+),", printed)
    y = number(r"^drawn around \(\S+, (\S+)\)", printed)
    # An untrained generator draws around (0, 0).
    assert abs(x - 2) < 0.5
    assert abs(y - 2) < 0.5


def test_ported_script_evaluates_the_checkpoint_that_it_calls_best(tmp_path: Path) -> None:
    printed = run_example("ported.py", tmp_path)
    accuracy = number(r"^accuracy of the best checkpoint (\S+)$", printed)
    files = tmp_path.glob("ported-*/*/checkpoints/epoch=*.ckpt")
    assert accuracy == max(number(r"accuracy=(.*)\.ckpt$", file.name) for file in files) > 0.9
    (table,) = tmp_path.glob("ported-*/*/metrics.csv")
    columns = table.read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/grad_norm", "lr", "val/accuracy"} <= {*columns}


def test_no_example_is_left_out() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    text = Path(__file__).read_text() + (EXAMPLES / "custom.yaml").read_text()
    assert {name for name in scripts if name not in text and f"{name[:-3]}." not in text} == set()
