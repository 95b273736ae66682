"""Bad data: every way a sample can fail, with 0, 1 and 4 workers, ends quickly and says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning import signals
from tests.torture.data_cases import FILES, make_pictures
from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 90.0
TRAINING_WATCHDOG_S = 240.0  # kernels may have to be compiled
HANG_S = 1.0  # the time-out that is set for hangs
ASKED_S = 5.0

#: A process of its own cannot outlive the death of its only process, nor watch its own hang.
KINDS = (*FILES, "exception", "killed", "hung")
CASES = [
    (kind, workers)
    for kind in KINDS
    for workers in (0, 1, 4)
    if workers or kind not in ("killed", "hung")
]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    errors: str
    told: dict[str, Any]

    @property
    def seconds(self) -> float:
        """From the moment the bad sample was asked for to the error."""
        return float(self.told["seconds"])


def run(
    folder: Path, wrong: dict[int, str], workers: int, *, trainer: bool = False, **loader: Any
) -> Outcome:
    """One process over the pictures; what hangs is killed and fails the test."""
    folder.mkdir()
    make_pictures(folder, wrong)
    options = {"wrong": wrong, "workers": workers, "shuffle": not trainer, "trainer": trainer}
    options["loader"] = {"timeout_s": HANG_S if "hung" in wrong.values() else 60, **loader}
    signals.reclaim()  # where another test has imported Jittor, a killed child would end us
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.torture.data_program", str(folder), json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    limit_s = TRAINING_WATCHDOG_S if trainer else WATCHDOG_S
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        pytest.fail(f"{wrong} with {workers} workers hung for {limit_s} s: {errors[-2000:]}")
    assert not left_behind(process.pid), f"{wrong} with {workers} workers left processes"
    told: dict[str, Any] = {}
    for line in out.splitlines():
        told.update(json.loads(line))
    return Outcome(process.returncode, errors, told)


def left_behind(group: int) -> list[str]:
    """Living processes of a group, given a second to go."""
    deadline = time.monotonic() + 1
    while found := living(group):
        if time.monotonic() > deadline:
            break
    return found


def living(group: int) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(process.name)
    return found


def assert_explained(outcome: Outcome, folder: Path, kind: str, index: int) -> None:
    """The message has index, file and original traceback, and the code is not 0."""
    sample = f"sample {index} ({folder / f'{index}.jpg'})"
    expected = {
        "missing": (f"{sample} failed", "read_grey", "jpg: the file is missing"),
        "unreadable": (f"{sample} failed", "read_grey", "copy or create the file again"),
        "truncated": (f"{sample} failed", "read_grey", "cut short"),
        "shape": (f"{sample} does not collate", f"[0] is (20,) float32 in sample {index}"),
        "exception": (f"{sample} failed", "__getitem__", "RuntimeError: an accident"),
        "killed": ("loader worker", f"was killed by SIGKILL while it loaded {sample}"),
        "hung": (f"{sample} hangs", "threading.py", "in __getitem__"),
    }[kind]
    missing = [part for part in expected if part not in outcome.errors]
    assert not missing, f"{kind}: no {missing} in {outcome.errors}"
    assert outcome.code == 1
    assert "skipped" not in outcome.told or not outcome.told["skipped"]
    allowed_s = ASKED_S + (HANG_S if kind == "hung" else 0)
    assert outcome.seconds < allowed_s, f"{kind} told after {outcome.seconds} s"
    if kind == "hung":
        assert outcome.seconds >= HANG_S


def test_every_kind_ends_the_run_with_its_reason_and_none_hangs(tmp_path: Path) -> None:
    runs = count(20, 100)
    rng = np.random.default_rng(7)
    slowest: dict[str, float] = {}
    for number in range(runs):
        kind, workers = CASES[number % len(CASES)]
        index = int(rng.integers(24))
        folder = tmp_path / f"{number}"
        outcome = run(folder, {index: kind}, workers)
        assert_explained(outcome, folder, kind, index)
        over = outcome.seconds - (HANG_S if kind == "hung" else 0)
        slowest[kind] = max(slowest.get(kind, 0.0), over)
    told = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in slowest.items())
    report(
        "bad data",
        "original traceback with the index within 5 s (hang: the set time-out); no hang in 100",
        f"{runs} of {runs} runs ended with it, none hung; slowest: {told} (hang: past its 1 s)",
    )


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("missing", 0),
        ("unreadable", 4),
        ("truncated", 1),
        ("shape", 4),
        ("exception", 0),
        ("killed", 4),
        ("hung", 1),
    ],
)
def test_training_ends_with_the_reason(tmp_path: Path, kind: str, workers: int) -> None:
    folder = tmp_path / "data"
    outcome = run(folder, {2: kind}, workers, trainer=True)
    assert_explained(outcome, folder, kind, 2)


WRONG = {3: "missing", 9: "truncated", 14: "shape", 20: "exception"}


def test_skip_counts_and_gives_the_same_batches_for_any_number_of_workers(tmp_path: Path) -> None:
    outcomes = [
        run(tmp_path / f"{n}", WRONG, n, on_bad_sample="skip", max_skipped=4) for n in (0, 1, 4)
    ]
    for outcome in outcomes:
        assert outcome.code == 0, outcome.errors
        assert sorted(map(int, outcome.told["skipped"])) == sorted(WRONG)
        assert outcome.errors.count("left out and replaced") == len(WRONG), "once per sample"
        assert outcome.told["batches"] == outcomes[0].told["batches"]
    report(
        "bad data, skip",
        "counts and caps",
        "4 of 24 bad: 4 counted and logged once, same batches with 0, 1 and 4 workers",
    )


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_skip_ends_above_its_cap(tmp_path: Path, workers: int) -> None:
    outcome = run(tmp_path / "data", WRONG, workers, on_bad_sample="skip", max_skipped=3)
    assert outcome.code == 1
    assert "4 samples were left out, and max_skipped allows 3 of 24; the last: " in outcome.errors
    assert sorted(map(int, outcome.told["skipped"])) == sorted(WRONG)


@pytest.mark.parametrize("kind", ["killed", "hung"])
def test_skip_does_not_hide_a_lost_worker(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    outcome = run(folder, {5: kind}, 2, on_bad_sample="skip", max_skipped=4)
    assert_explained(outcome, folder, kind, 5)


def test_training_over_skipped_samples_goes_on(tmp_path: Path) -> None:
    options = {"on_bad_sample": "skip", "max_skipped": 4}
    outcome = run(tmp_path / "data", WRONG, 2, trainer=True, **options)
    assert outcome.code == 0, outcome.errors
    assert outcome.told["steps"] == 6
    assert sorted(map(int, outcome.told["skipped"])) == sorted(WRONG)
