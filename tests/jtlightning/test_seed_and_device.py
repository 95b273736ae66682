from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest

from jtlightning.accelerator import select_device
from jtlightning.seed import position_seed, reseed
from jtlightning.trainer.device import to_device
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import PointBatch, TinyData, TinyTask


def test_seeds_depend_on_every_part_of_the_position() -> None:
    positions = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3), (0, "validation", 2)]
    seeds = [position_seed(*position) for position in positions]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert position_seed(0, 1, 2) == 1219604035, "checkpoints of earlier releases rely on it"


def test_reseeding_repeats_what_is_drawn() -> None:
    drawn = []
    for _ in range(2):
        reseed(3, 5, 0)
        drawn.append(jt.rand(4).numpy())
    np.testing.assert_array_equal(*drawn)


def test_arrays_of_a_batch_become_vars_and_the_rest_stays() -> None:
    batch = to_device({"points": PointBatch(np.ones((2, 3), np.float32), np.array([1, 2])), "n": 5})
    assert batch["n"] == 5
    assert batch["points"].x.dtype == "float32"
    np.testing.assert_array_equal(batch["points"].y.numpy(), [1, 2])


def test_integers_that_jittor_would_wrap_are_refused() -> None:
    with pytest.raises(ValueError, match="1099511627781, which does not fit"):
        to_device([np.array([2**40 + 5])])


def test_cuda_without_cuda_is_a_clear_error() -> None:
    if jt.has_cuda:
        pytest.skip("CUDA is there")
    with pytest.raises(ValueError, match="segtasks doctor"):
        select_device("cuda")
    assert select_device("auto") == "cpu"


def test_subnormal_numbers_are_treated_alike_in_every_process() -> None:
    code = (
        "import jtlightning, numpy as np, jittor as jt\n"
        "from jtlightning.accelerator import select_device\n"
        "{more}\n"
        "select_device('cpu')\n"
        "print(np.float64(5e-324) * 1.0)\n"
    )
    seen = set()
    in_this_thread = "with jt.flag_scope(use_parallel_op_compiler=0): (jt.rand(4) + 1).sync()"
    for more in ("", in_this_thread):
        command = [sys.executable, "-c", code.format(more=more)]
        seen.add(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(seen) == 1


def test_detecting_anomalies_executes_at_once_while_the_run_lasts(tmp_path: Path) -> None:
    class Looks(TinyTask):
        # No arithmetic, which would compile a kernel for every operation.
        def predict_step(self, batch: Any, batch_idx: int) -> int:
            return int(jt.flags.lazy_execution)

    for wanted, lazy in ((True, 0), (False, 1)):
        trainer = make_trainer(tmp_path, limit_predict_batches=1, detect_anomaly=wanted)
        assert trainer.predict(Looks(), datamodule=TinyData()) == [lazy]
        assert jt.flags.lazy_execution == 1


def test_deterministic_runs_are_accepted_everywhere(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1, deterministic=True)
    trainer.fit(TinyTask(), datamodule=TinyData())
    assert trainer.global_step == 1
