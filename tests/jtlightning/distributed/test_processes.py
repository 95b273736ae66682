from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests import several_processes

PROGRAM = Path(__file__).with_name("program.py")

pytestmark = [pytest.mark.slow, several_processes.needs_mpi]

start = partial(several_processes.start, PROGRAM)
run = partial(several_processes.run, PROGRAM)


def test_processes_exchange_values_gradients_and_weights(tmp_path: Path) -> None:
    for report in run(2, "exchange", tmp_path):
        assert report["gathered"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
        assert report["broadcast"] == "from 0"
        assert report["averaged"] == [[[1.5] * 3] * 2, [4.0]]
        assert report["shared"] == [0.0] * 3


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    first, second = run(2, "train", tmp_path)
    assert (first["rank"], second["rank"], first["world"]) == (0, 1, 2)
    assert first["weights"] == second["weights"]  # running statistics, too
    (alone,) = run(1, "twice", tmp_path / "alone")
    assert alone["steps"] == first["steps"] == 12
    # A bias before a batch norm has no gradient but rounding, which Adam makes full steps of.
    for name in sorted(alone["weights"].keys() - {"model.fc1.bias", "model.bn.running_mean"}):
        values = alone["weights"][name]
        np.testing.assert_allclose(first["weights"][name], values, atol=2e-5, err_msg=name)
    means = (np.array(first["losses"]) + second["losses"]) / 2
    np.testing.assert_allclose(means, alone["losses"], rtol=1e-4)
    for name in ("val/loss", "train/loss_epoch"):
        assert first["metrics"][name] == second["metrics"][name]
        np.testing.assert_allclose(first["metrics"][name], alone["metrics"][name], rtol=1e-3)
    assert first["files"] == alone["files"] != []


def test_evaluation_is_divided_without_changing_a_bit(tmp_path: Path) -> None:
    run(1, "half", tmp_path)
    (alone,) = run(1, "validate", tmp_path)
    assert run(2, "validate", tmp_path) == [alone, alone]
    assert run(3, "validate", tmp_path) == [alone, alone, alone]


def test_a_run_is_continued_by_another_number_of_processes(tmp_path: Path) -> None:
    # An epoch has 24 samples: 3 steps of 2 processes with 2 each leave 12 of the first one.
    for report in run(2, "half", tmp_path):
        assert report["steps"] == 3
    (alone,) = run(1, "resume", tmp_path)
    assert (alone["steps"], len(alone["losses"])) == (3 + 6 + 12, 18)
    run(1, "half", tmp_path / "alone")  # 6 samples: one step of two processes, and half a one
    first, second = run(2, "resume", tmp_path / "alone")
    assert first["steps"] == second["steps"] == 3 + 5 + 6
    assert first["weights"] == second["weights"]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    done = start(2, "stop", tmp_path)
    assert done.returncode == 143, done.stderr[-3000:]
    (alone,) = run(1, "validate", tmp_path)  # what they saved is whole
    assert alone["metrics"]["val/loss"] > 0
    assert "step=000003" in " ".join(path.name for path in (tmp_path / "runs").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("scenario", "message"),
    [("killed", "exited on signal 9"), ("error", "KeyError: 'the one that broke'")],
)
def test_a_process_that_ends_badly_is_named_and_ends_the_others(
    tmp_path: Path, scenario: str, message: str
) -> None:
    began = time.monotonic()
    done = start(2, scenario, tmp_path)
    assert time.monotonic() - began < 60  # start included; a rank that waits does so for ever
    assert done.returncode not in (0, 143)
    said = " ".join(done.stderr.split())  # Open MPI 5 breaks its lines
    assert message in said
    assert "rank 1" in said
