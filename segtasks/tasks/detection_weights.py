"""Weights that a detector starts from: official files, pre-trained backbones, earlier runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from jittor import nn

from jtlightning.checkpoint.weights import load_weights, read_weights
from segtasks.models.dformer.renames import plan_loading

_log = logging.getLogger(__name__)

#: What a name looks like -> what it becomes, as `re.sub` takes them. The first is that of a
#: backbone that was pre-trained alone; the others are the second version's names of parts that
#: are the same in both.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(?=(conv1|res_layers)\.)", "backbone."),
    (r"^(encoder\.input_proj\.\d+)\.conv\.", r"\1.0."),
    (r"^(encoder\.input_proj\.\d+)\.norm\.", r"\1.1."),
    (r"^decoder\.enc_output\.proj\.", "decoder.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "decoder.enc_output.1."),
)
#: Constants that the second version saves, which are computed here.
DROPPED = r"^decoder\.(anchors|valid_mask)$|\.cross_attn\.num_points_scale$"
#: The parts whose shapes depend on the number of classes.
CLASS_PARTS = ("decoder.enc_score_head", "decoder.dec_score_head", "decoder.denoising_class_embed")

_REMEDY = (
    "To keep the network's own values for a part, name it in `skip_weights`: of a pre-trained "
    "backbone [encoder, decoder], for other classes [{}].".format(", ".join(CLASS_PARTS))
)


def official_name(name: str) -> str | None:
    """The name in the first version's networks, or None for a constant that nothing reads."""
    if re.search(DROPPED, name):
        return None
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def start_detector(model: nn.Module, file: str, skip: Sequence[str] = ()) -> None:
    """Load a file's weights into a detector; what was renamed and left out goes to the log.

    Args:
        model: Takes all of the weights, or stays as it is.
        file: A .ckpt of this trainer, .safetensors, .pth of PyTorch or .pkl of Jittor. An average
            in it (official files: `ema.module`) is preferred to what was trained (`model`).
        skip: Parts of the network that keep their own values; the file may then hold more than
            the network, too.

    Raises:
        CheckpointError: The file cannot be read.
        WeightsError: Weights do not fit; the message lists them.
    """
    found = read_weights(file, weights="auto")
    plan = plan_loading({n: v.shape for n, v in model.named_parameters()}, found, official_name)
    load_weights(
        model,
        found,
        source=found.describe(),
        rename=plan.rename if skip else official_name,
        skip=skip,
        remedy=_REMEDY,
    )
    _log.info("%s\n%s", found.describe(), plan.describe())
