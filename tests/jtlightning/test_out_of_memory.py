"""What refused memory is told from, and what the message says."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.trainer.out_of_memory import (
    OutOfMemoryError,
    check_allocations,
    explain_out_of_memory,
)
from tests.jtlightning.fake_trainer import FakeTrainer
from tests.jtlightning.tiny import TinyTask

JITTOR = """\x1b[38;5;1m[f 1121 12:43:50.859078 76 executor.cc:686]
Execute fused operator(2/3) failed.
[OP TYPE]: fused_op:( array, broadcast_to, binary.multiply,)
[Input]: float32[1,],
[Output]: float32[20000,20000,],
[Reason]: Unable to allocate 1526 MiB\x1b[m
**********
Async error was detected."""
CUDA = (
    "CUDA error at cuda_device_allocator.cc:24 code=2( cudaErrorMemoryAllocation ) cudaMalloc(..)"
)


@pytest.fixture
def trainer(tmp_path: Path) -> FakeTrainer:
    trainer = FakeTrainer(tmp_path)
    trainer.current_epoch, trainer.global_step = 3, 70
    return trainer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(JITTOR),
            "Unable to allocate 1526 MiB in fused_op:( array, broadcast_to, binary.multiply,) with "
            "the result float32[20000,20000,].",
        ),
        (RuntimeError(CUDA), "cudaErrorMemoryAllocation"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (MemoryError(), "Python had no memory for an object"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_refusals_are_recognised(trainer: Any, error: Exception, reason: str) -> None:
    explained = explain_out_of_memory(error, trainer, TinyTask())
    assert isinstance(explained, OutOfMemoryError)
    assert str(explained).startswith("out of memory at epoch 3, step 70: ")
    assert reason in str(explained)
    assert "\n" not in str(explained)


def test_a_refusal_is_found_behind_another_error(trainer: Any) -> None:
    outer = ValueError("sample 3 failed")
    outer.__cause__ = MemoryError("Unable to allocate 3 GiB for an array")
    assert "3 GiB" in str(explain_out_of_memory(outer, trainer, TinyTask()))


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError("no such file")]
)
def test_other_errors_are_left_alone(trainer: Any, error: Exception) -> None:
    assert explain_out_of_memory(error, trainer, TinyTask()) is None


def test_holders_sizes_and_checkpoints_are_named(trainer: Any, tmp_path: Path) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.kept = [jt.zeros((1024, 1024)), jt.zeros((1024, 1024))]

    few, task = Keeper(), TinyTask()
    many = [jt.zeros(1) for _ in range(50)]
    trained = [p for p in task.parameters() if not p.is_stop_grad()]
    trainer.optimizer = jt.optim.AdamW(trained, lr=0.1)
    text = str(explain_out_of_memory(MemoryError(), trainer, task))
    assert "Largest other holders: Keeper.kept: list of 2 Vars, 8.0 MiB; " in text
    assert len(few.kept) < len(many)
    assert "No checkpoint has been written yet" in text
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    text = str(explain_out_of_memory(MemoryError(), trainer, task))
    assert f"continue with ckpt_path last. Checkpoints: {tmp_path / 'checkpoints'}" in text


def test_an_explanation_is_not_explained_again(trainer: Any) -> None:
    once = explain_out_of_memory(MemoryError(), trainer, TinyTask())
    assert once is not None
    assert explain_out_of_memory(once, trainer, TinyTask()) is None


def test_checked_allocations_compute_the_same() -> None:
    check_allocations()
    check_allocations()
    values = np.arange(300_000, dtype=np.float32)
    doubled = jt.array(values) * 2
    np.testing.assert_array_equal(doubled.numpy(), 2 * values)
    jt.gc()


def test_a_compiler_that_fails_is_no_refusal(trainer: Any) -> None:
    error = RuntimeError("Run cmd failed, might be an overcommit issue or out of memory")
    assert explain_out_of_memory(error, trainer, TinyTask()) is None
