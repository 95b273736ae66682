"""Weights of any file into a network that predicts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jtlightning.checkpoint.weights import load_weights, read_weights
from segtasks.tasks.weights import official_form

if TYPE_CHECKING:
    from jittor import nn

    from jtlightning.checkpoint.state_dict import Which

_log = logging.getLogger(__name__)
_REMEDY = (
    "A network predicts with weights of its own structure: give the configuration that they were"
    " trained with."
)


def load_network(model: nn.Module, path: Path, weights: Which) -> str:
    """Load all weights of a network, or none.

    Args:
        model: The network, without the task around it.
        path: As `ckpt_path` of `load_segmenter`.
        weights: As there.

    Returns:
        What was read, in words.

    Raises:
        CheckpointError: The file is damaged, or has no average where `ema` asks for it.
        WeightsError: Something does not fit; the message lists it.
    """
    found = read_weights(path, weights=weights)
    arrays, rename = official_form(model, found)
    load_weights(model, arrays, source=str(path), rename=rename, remedy=_REMEDY)
    _log.info("%s", found.describe())
    return found.describe()
