from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_page

STEP = {
    "steps": 50, "ms_per_step": 200.0, "samples_per_s": 40.0, "check_ms": [1.0, 2.0, 2.0, 3.0, 4.0],
    "read_us": 20.0, "peak_mib": 1000.0, "tflop_per_s": 1.5, "first_step_s": 9.0,
    "parameters": 6, "date": "2026-01-01", "machine": "a card",
}  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "cell"),
    [
        ([1.0, 2.0, 2.0, 3.0, 4.0], "2.0 (1.0 to 4.0)"),
        ([-1.0, 2.0, 2.0, 3.0, 4.0], "within noise (-1.0 to +4.0)"),
        ([-4.0, -3.0, -3.0, -3.0, -2.0], "within noise (-4.0 to -2.0)"),
        ([5.0, 6.0, 6.0, 7.0], "too few steps"),
    ],
)
def test_a_cost_is_a_number_only_where_every_round_shows_one(
    differences: list[float], cell: str
) -> None:
    assert gpu_page.check_cost(differences) == cell


def test_a_row_that_failed_is_named_with_its_reason() -> None:
    failed = {**STEP, "failed": "exit code 1: out of memory"}
    text = gpu_page.page({"steps": {"tiny": failed, "large": STEP}})

    assert "* steps, tiny: exit code 1: out of memory" in text
    assert "* steps, large" not in text


def test_only_what_is_between_the_marks_of_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    begin, end = gpu_page.MARKS
    path.write_text(f"before\n{begin}\nold\n{end}\nbehind\n", encoding="utf-8")

    gpu_page.write(path, "new\n")

    assert path.read_text(encoding="utf-8") == f"before\n{begin}\nnew\n{end}\nbehind\n"


@pytest.mark.parametrize(
    ("twin", "cells"),
    [
        ({**STEP, "ms_per_step": 300.0}, "300.0 | 1.50 |"),
        ({**STEP, "parameters": 7}, "7 parameters, ours 6 |  |"),
        ({**STEP, "failed": "no answer"}, "|  |  |  |"),
    ],
)
def test_a_step_stands_beside_that_of_pytorch_if_the_networks_are_alike(
    twin: dict[str, Any], cells: str
) -> None:
    text = gpu_page.page({"steps": {"tiny": STEP}, "torch": {"tiny": twin}})

    row = next(line for line in text.splitlines() if line.startswith("| tiny"))
    assert cells in row
    assert ("* torch, tiny: no answer" in text) == ("failed" in twin)
