from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jtlightning import Trainer
from jtlightning.trainer.arguments import validates

PROTOCOL = Path(__file__).parents[1] / "reference" / "protocol" / "protocol.npz"


def epochs(cadence: int | list[tuple[int, int]], last: int) -> list[int]:
    return [epoch for epoch in range(1, last + 1) if validates(cadence, epoch)]


def test_the_recorded_epochs_of_the_official_training_can_be_said() -> None:
    with np.load(PROTOCOL) as arrays:
        recorded = json.loads(arrays["meta"].tobytes())["eval_epochs"]
    cadence = [(1, 1), (2, 10), (recorded["checkpoint_start_epoch"] + 1, 1)]
    assert epochs(cadence, recorded["last_epoch"]) == recorded["epochs"]


def test_stages_begin_at_their_epochs_and_none_comes_before_the_first() -> None:
    assert epochs([(12, 5), (30, 10), (50, 3)], 57) == [15, 20, 25, 30, 40, 51, 54, 57]
    assert epochs(3, 10) == [3, 6, 9]
    assert epochs([(1, 2), (5, 0), (9, 2)], 11) == [2, 4, 10]


@pytest.mark.parametrize(
    "cadence", [0, -1, [], [(0, 1)], [(5, 1), (5, 2)], [(3, 1), (1, 1)], [(1, -1)]]
)
def test_a_cadence_without_a_meaning_is_refused(cadence: int | list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="check_val_every_n_epoch is"):
        Trainer(check_val_every_n_epoch=cadence)
