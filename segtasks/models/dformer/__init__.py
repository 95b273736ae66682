"""DFormer and DFormerv2 for RGB-D segmentation, with the official parameter names."""

from __future__ import annotations

from segtasks.models.dformer.decoder import HamDecoder, MLPDecoder
from segtasks.models.dformer.encoder import DFormerEncoder
from segtasks.models.dformer.encoder_v2 import DFormerV2Encoder
from segtasks.models.dformer.parameter_groups import parameter_groups
from segtasks.models.dformer.segmenter import DFormerSegmenter
from segtasks.models.dformer.variants import (
    dformer_base,
    dformer_large,
    dformer_small,
    dformer_tiny,
    dformerv2_b,
    dformerv2_l,
    dformerv2_s,
)

__all__ = [
    "DFormerEncoder",
    "DFormerSegmenter",
    "DFormerV2Encoder",
    "HamDecoder",
    "MLPDecoder",
    "dformer_base",
    "dformer_large",
    "dformer_small",
    "dformer_tiny",
    "dformerv2_b",
    "dformerv2_l",
    "dformerv2_s",
    "parameter_groups",
]
