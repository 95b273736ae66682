"""Every debug configuration through the command line: train, stop, resume, test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint.container import read_checkpoint

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "debug").glob("*.yaml"))

#: Found in the working folder; sends what a scheduler sends.
STOPPER = """
import os, signal
from jtlightning import Callback

class StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def segtasks(folder: Path, *options: str) -> int:
    command = [sys.executable, "-m", "segtasks", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def last_checkpoint(folder: Path, config: Path) -> Path:
    (path,) = (folder / "runs" / config.stem).glob("*/checkpoints/last.ckpt")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_debug_run_stopped_by_sigterm_ends_with_the_same_bits(
    tmp_path: Path, config: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        (folder / "stopper.py").write_text(STOPPER)
    fit = ("fit", "--config", str(config))
    assert segtasks(whole, *fit) == 0
    stop = ("--trainer.callbacks+=stopper.StopAfter", "--trainer.callbacks.step=3")
    assert segtasks(parts, *fit, *stop) == 143
    assert segtasks(parts, *fit, "--ckpt_path", "auto") == 0

    expected = read_checkpoint(last_checkpoint(whole, config))
    resumed = read_checkpoint(last_checkpoint(parts, config))
    assert resumed.metadata["loop"]["global_step"] == expected.metadata["loop"]["global_step"]
    assert resumed.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(resumed.tensors[name], array, err_msg=name)

    # The file knows its configuration, so no --config is given.
    assert segtasks(parts, "test", "--ckpt_path", str(last_checkpoint(parts, config))) == 0
    (results,) = parts.glob("runs/*/*/results.json")
    assert json.loads(results.read_text())["unit"] == "0 to 1"
