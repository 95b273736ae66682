"""Which parameters an optimiser gets, and which of them decay."""

from __future__ import annotations

from typing import Any, Literal

import jittor as jt
from jittor import nn

from segtasks.models.dformer.encoder_v2 import DFormerV2Encoder
from segtasks.models.dformer.segmenter import DFormerSegmenter
from segtasks.models.layers import BatchNorm2d, LayerNorm2d


def parameter_groups(
    model: DFormerSegmenter,
    mode: Literal["official", "all"] = "official",
    weight_decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay.

    "official" repeats the fine-tuning recipe of the official code, which collects parameters by
    the kind of their module. What it misses keeps its pre-trained value for good: layer scales
    and, in v1, the layer norms (a class of its own there); in v2 the geometry weights and gammas.
    "all" takes every trainable parameter, without decay for one-axis tensors and layer scales.
    Training without pre-trained weights needs it: layer scales of 1e-6 switch every block off.

    Args:
        model: the network.
        mode: "official" for fine-tuning or "all" for training from scratch.
        weight_decay: decay of the first group.

    Returns:
        Dicts with "name" ("decay" or "no_decay"), "params" and "weight_decay".
    """
    if mode == "official":
        decay, no_decay = _official(model)
    elif mode == "all":
        decay, no_decay = _all(model)
    else:
        raise ValueError(f'mode must be "official" or "all", got {mode!r}')
    return [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": no_decay, "weight_decay": 0.0},
    ]


def _official(model: DFormerSegmenter) -> tuple[list[jt.Var], list[jt.Var]]:
    with_layer_norms = isinstance(model.backbone, DFormerV2Encoder)
    decay: list[jt.Var] = []
    no_decay: list[jt.Var] = []
    for _, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            decay.append(module.weight)
            if module.bias is not None:
                no_decay.append(module.bias)
        elif isinstance(module, BatchNorm2d) or (
            with_layer_norms and isinstance(module, LayerNorm2d)
        ):
            no_decay += [module.weight, module.bias]
    return decay, no_decay


def _all(model: DFormerSegmenter) -> tuple[list[jt.Var], list[jt.Var]]:
    decay: list[jt.Var] = []
    no_decay: list[jt.Var] = []
    for name, parameter in model.named_parameters():
        if parameter.is_stop_grad():
            continue
        scale = name.rsplit(".", 1)[-1].startswith(("layer_scale", "gamma")) or ".Geo." in name
        (no_decay if parameter.ndim == 1 or scale else decay).append(parameter)
    return decay, no_decay
