"""Names in other files of DFormer: the earlier Jittor port's, and those of pre-trained backbones.

The port kept the official structure, but named layer scales, the head's norms and its classifier
otherwise, and left biases in front of the head's batch norms. Official v1 segmentors hold four
layer norms of an earlier version that no network uses any more. A backbone that was pre-trained
alone may lack the leading `backbone.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

#: What a name looks like -> what it becomes, as `re.sub` takes them, one after the other.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(?=(downsample_layers(_e)?|stages|patch_embed|layers|extra_norms)\.)", "backbone."),
    (r"\.gamma([12])$", r".gamma_\1"),
    (r"^decode_head\.(.+\.)?norm\.", r"decode_head.\1bn."),
    (r"^decode_head\.cls_seg\.", "decode_head.conv_seg."),
)
#: Names that nothing reads: a layer norm per stage, in official v1 files.
DROPPED = r"^(backbone\.)?norm[0-3]\."

_CONV_BIAS = re.compile(r"^(decode_head\..+\.)conv\.bias$")


def official_name(name: str) -> str | None:
    """The official name of a tensor, or None for one that nothing reads; for `load_weights`."""
    if re.match(DROPPED, name):
        return None
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def fold_head_biases(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the biases in front of the head's batch norms into their running means.

    The official head has none there. In evaluation `BN(x + b)` with the mean m is `BN(x)` with the
    mean m - b; in training a batch norm takes its own mean away, so that nothing is lost.

    Args:
        weights: Arrays by name, the port's or the official ones.

    Returns:
        The same without those biases, under the names they had.
    """
    folded = dict(weights)
    for name in weights:
        match = _CONV_BIAS.match(name)
        if match is None:
            continue
        for norm in ("norm", "bn"):
            mean = f"{match[1]}{norm}.running_mean"
            if mean in folded and folded[mean].shape == weights[name].shape:
                folded[mean] = folded[mean] - weights[name].astype(folded[mean].dtype)
                del folded[name]
                break
    return folded
