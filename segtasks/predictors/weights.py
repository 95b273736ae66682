"""Weights of any file into a network that predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jtlightning.checkpoint.weights import load_weights, read_weights
from segtasks.models.dformer import renames
from segtasks.models.dformer.renames import fold_head_biases
from segtasks.models.dformer.segmenter import DFormerSegmenter
from segtasks.models.rtdetr import RTDETR
from segtasks.tasks import detection_weights

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
    arrays: Mapping[str, np.ndarray] = found
    rename: Callable[[str], str | None] | None = None
    if isinstance(model, DFormerSegmenter):
        arrays, rename = fold_head_biases(found), renames.official_name
    elif isinstance(model, RTDETR):
        rename = detection_weights.official_name
    load_weights(model, arrays, source=str(path), rename=rename, remedy=_REMEDY)
    _log.info("%s", found.describe())
    return found.describe()
