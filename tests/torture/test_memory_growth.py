"""Thousands of steps with logging, averaged weights, accumulation and validations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

ROOT = Path(__file__).parents[2]


def test_graph_and_memory_do_not_grow() -> None:
    steps = count(2000, 5000)
    # A process of its own: memory that other tests gave back would hide a slope.
    command = [sys.executable, "benchmarks/memory.py", "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout
    operations = re.search(r"live operations: (\d+) .* ([\d.]+) times", text)
    variables = re.search(r"live Vars: (\d+) .* ([\d.]+) times", text)
    slope = re.search(r"slope: (-?[\d.]+) MiB", text)
    assert operations, text
    assert variables, text
    assert slope, text
    report(
        f"memory and graph growth, {steps} steps",
        "live ops within 1.05 of step 50, under 1 MB per 1,000 steps",
        f"{operations[2]} times {operations[1]} operations, {variables[2]} times {variables[1]} "
        f"Vars, {slope[1]} MiB per 1,000 steps",
    )
    assert float(operations[2]) <= 1.05
    assert float(variables[2]) <= 1.05
    assert float(slope[1]) * 1.048576 < 1.0
