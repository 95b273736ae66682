"""Detection in two processes is detection in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.several_processes import needs_mpi, run

PROGRAM = Path(__file__).with_name("detection_program.py")


@needs_mpi
@pytest.mark.slow
def test_two_processes_train_and_score_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    first, second = run(PROGRAM, 2, "shared", tmp_path / "shared")
    (alone,) = run(PROGRAM, 1, "alone", tmp_path / "alone")
    for name in ("logits", "box"):
        assert first[name] == second[name]
        # Boxes differ in number between the processes: each loss is over the mean of both.
        np.testing.assert_allclose(first[name], alone[name], atol=1e-6, err_msg=name)
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"])
    assert 0 < alone["metrics"]["test/ap50"] < 1
    (found,), (expected,) = first["detections"], alone["detections"]
    assert [record["image_id"] for record in found] == [r["image_id"] for r in expected]
    assert len(found) == 5 * 2 * 2  # images, queries, classes
