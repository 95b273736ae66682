"""Weights that a network starts from: official files, pre-trained backbones, earlier runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jittor import nn

from jtlightning.checkpoint.plan import plan_loading
from jtlightning.checkpoint.weights import load_weights, read_weights
from segtasks.models.dformer import renames as dformer_names
from segtasks.models.dformer.segmenter import DFormerSegmenter
from segtasks.models.rtdetr import RTDETR
from segtasks.models.rtdetr import renames as rtdetr_names

_log = logging.getLogger(__name__)

Rename: TypeAlias = Callable[[str], "str | None"]
"""From a name in a file to the network's; None for what nothing reads."""

_REMEDY = "To keep the network's own values for a part, name it in `skip_weights`"


def official_form(
    model: nn.Module, weights: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, np.ndarray], Rename]:
    """What a file holds for a network, as far as its class tells, and how names become official.

    Args:
        model: The network.
        weights: Arrays by name.

    Returns:
        The arrays, under the names they had, and the function for their names.
    """
    if isinstance(model, DFormerSegmenter):
        return dformer_names.fold_head_biases(weights), dformer_names.official_name
    if isinstance(model, RTDETR):
        return weights, rtdetr_names.official_name
    return weights, str


def start_segmenter(model: nn.Module, file: str, skip: Sequence[str] = ()) -> None:
    """Load a file's weights into a segmenter; what was renamed and left out goes to the log.

    Args:
        model: Takes all of the weights, or stays as it is.
        file: As `SegmentationTask.weights`.
        skip: As `SegmentationTask.skip_weights`.

    Raises:
        CheckpointError: The file cannot be read.
        WeightsError: Weights do not fit; the message lists them.
    """
    _start(model, file, skip, f"{_REMEDY}.")


def start_detector(model: nn.Module, file: str, skip: Sequence[str] = ()) -> None:
    """The same for a detector, which may be of another class that has RT-DETR's names."""
    remedy = (
        f"{_REMEDY}: of a pre-trained backbone [encoder, decoder], for other classes "
        f"[{', '.join(rtdetr_names.CLASS_PARTS)}]."
    )
    _start(model, file, skip, remedy, rtdetr_names.official_name)


def _start(
    model: nn.Module, file: str, skip: Sequence[str], remedy: str, rename: Rename | None = None
) -> None:
    found = read_weights(file, weights="auto")
    arrays, known = official_form(model, found)
    rename = rename or known
    plan = plan_loading({n: v.shape for n, v in model.named_parameters()}, arrays, rename)
    load_weights(
        model,
        arrays,
        source=found.describe(),
        rename=plan.rename if skip else rename,
        skip=skip,
        remedy=remedy,
    )
    _log.info("%s\n%s", found.describe(), plan.describe())
