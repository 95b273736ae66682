"""Every example runs as a newcomer runs it: in a process of its own, from any folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script: Path, folder: Path) -> str:
    """What the script prints; it may write into `folder` only."""
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_from_scratch_learns_the_circle(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "train_from_scratch.py", tmp_path)
    accuracy = re.search(r"^accuracy (\S+);", printed, re.MULTILINE)
    assert accuracy is not None
    # Always answering the commoner class is right in 0.61 of the cases: the circle has 0.39 of
    # the square.
    assert float(accuracy[1]) > 0.9
    assert list(tmp_path.glob("circle-*/*/checkpoints/last.ckpt"))


def test_custom_callback_logs_its_metric(tmp_path: Path) -> None:
    printed = run(ROOT / "examples" / "custom_callback.py", tmp_path)
    worst = re.search(r"^worst loss of the last epoch (\S+)$", printed, re.MULTILINE)
    assert worst is not None
    assert 0 < float(worst[1]) < 1
    (table,) = tmp_path.glob("callback-*/*/metrics.csv")
    assert "train/worst_loss" in table.read_text().splitlines()[0].split(",")


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES} == {"custom_callback.py", "train_from_scratch.py"}
