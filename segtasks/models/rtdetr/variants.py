"""The published sizes as plain functions; parameters counted for 80 classes.

Every function takes the arguments of `rtdetr_r50`, which describes them; the defaults that differ
are those of the official configurations.
"""

from __future__ import annotations

from dataclasses import dataclass

from segtasks.models.rtdetr.backbone import PResNet
from segtasks.models.rtdetr.decoder import RTDETRTransformer
from segtasks.models.rtdetr.detector import RTDETR
from segtasks.models.rtdetr.encoder import HybridEncoder


def rtdetr_r18(
    num_classes: int = 80,
    num_queries: int = 300,
    *,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    freeze_at: int = -1,
    freeze_norm: bool = False,
    eval_idx: int = -1,
) -> RTDETR:
    """RT-DETR with ResNet-18-vd, 20.2 M parameters, 46.5 AP on COCO val2017.

    Args:
        num_classes: classes to tell apart.
        num_queries: boxes that are predicted per image.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: reach of the noise on their boxes, in half boxes.
        freeze_at: freeze the backbone's stem and its stages 0 to freeze_at - 1; -1: nothing.
        freeze_norm: hold the backbone's norms constant.
        eval_idx: decoder layer, of 3, that answers in evaluation; negative from the end.
    """
    decoder = _Decoder(
        num_classes, num_queries, num_denoising, label_noise_ratio, box_noise_scale, eval_idx
    )
    return _build(18, (freeze_at, freeze_norm), _Size(layers=3, expansion=0.5), decoder)


def rtdetr_r34(
    num_classes: int = 80,
    num_queries: int = 300,
    *,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    freeze_at: int = -1,
    freeze_norm: bool = False,
    eval_idx: int = -1,
) -> RTDETR:
    """RT-DETR with ResNet-34-vd, 31.4 M parameters, 48.9 AP on COCO val2017.

    Args:
        num_classes: classes to tell apart.
        num_queries: boxes that are predicted per image.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: reach of the noise on their boxes, in half boxes.
        freeze_at: freeze the backbone's stem and its stages 0 to freeze_at - 1; -1: nothing.
        freeze_norm: hold the backbone's norms constant.
        eval_idx: decoder layer, of 4, that answers in evaluation; negative from the end.
    """
    decoder = _Decoder(
        num_classes, num_queries, num_denoising, label_noise_ratio, box_noise_scale, eval_idx
    )
    return _build(34, (freeze_at, freeze_norm), _Size(layers=4, expansion=0.5), decoder)


def rtdetr_r50_m(
    num_classes: int = 80,
    num_queries: int = 300,
    *,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    freeze_at: int = 0,
    freeze_norm: bool = True,
    eval_idx: int = 2,
) -> RTDETR:
    """RT-DETR with ResNet-50-vd and a narrower encoder, 36.6 M parameters, 51.3 AP on COCO.

    Args:
        num_classes: classes to tell apart.
        num_queries: boxes that are predicted per image.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: reach of the noise on their boxes, in half boxes.
        freeze_at: freeze the backbone's stem and its stages 0 to freeze_at - 1; -1: nothing.
        freeze_norm: hold the backbone's norms constant.
        eval_idx: decoder layer, of 6, that answers in evaluation; negative from the end.
    """
    decoder = _Decoder(
        num_classes, num_queries, num_denoising, label_noise_ratio, box_noise_scale, eval_idx
    )
    return _build(50, (freeze_at, freeze_norm), _Size(expansion=0.5), decoder)


def rtdetr_r50(
    num_classes: int = 80,
    num_queries: int = 300,
    *,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    freeze_at: int = 0,
    freeze_norm: bool = True,
    eval_idx: int = -1,
) -> RTDETR:
    """RT-DETR with ResNet-50-vd, 42.9 M parameters, 53.1 AP on COCO val2017.

    Args:
        num_classes: classes to tell apart.
        num_queries: boxes that are predicted per image.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: reach of the noise on their boxes, in half boxes.
        freeze_at: freeze the backbone's stem and its stages 0 to freeze_at - 1; -1: nothing.
        freeze_norm: hold the backbone's norms constant.
        eval_idx: decoder layer, of 6, that answers in evaluation; negative from the end.
    """
    decoder = _Decoder(
        num_classes, num_queries, num_denoising, label_noise_ratio, box_noise_scale, eval_idx
    )
    return _build(50, (freeze_at, freeze_norm), _Size(), decoder)


def rtdetr_r101(
    num_classes: int = 80,
    num_queries: int = 300,
    *,
    num_denoising: int = 100,
    label_noise_ratio: float = 0.5,
    box_noise_scale: float = 1.0,
    freeze_at: int = 0,
    freeze_norm: bool = True,
    eval_idx: int = -1,
) -> RTDETR:
    """RT-DETR with ResNet-101-vd and a wider encoder, 76.6 M parameters, 54.3 AP on COCO.

    Args:
        num_classes: classes to tell apart.
        num_queries: boxes that are predicted per image.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: reach of the noise on their boxes, in half boxes.
        freeze_at: freeze the backbone's stem and its stages 0 to freeze_at - 1; -1: nothing.
        freeze_norm: hold the backbone's norms constant.
        eval_idx: decoder layer, of 6, that answers in evaluation; negative from the end.
    """
    decoder = _Decoder(
        num_classes, num_queries, num_denoising, label_noise_ratio, box_noise_scale, eval_idx
    )
    size = _Size(encoder_dim=384, encoder_feed_forward=2048)
    return _build(101, (freeze_at, freeze_norm), size, decoder)


@dataclass(frozen=True)
class _Size:
    """In what the published encoders and decoders differ."""

    layers: int = 6
    expansion: float = 1.0
    encoder_dim: int = 256
    encoder_feed_forward: int = 1024


@dataclass(frozen=True)
class _Decoder:
    """The decoder's arguments that a caller chooses."""

    num_classes: int
    num_queries: int
    num_denoising: int
    label_noise_ratio: float
    box_noise_scale: float
    eval_idx: int


def _build(depth: int, frozen: tuple[int, bool], size: _Size, chosen: _Decoder) -> RTDETR:
    freeze_at, freeze_norm = frozen
    backbone = PResNet(depth, return_idx=(1, 2, 3), freeze_at=freeze_at, freeze_norm=freeze_norm)
    encoder = HybridEncoder(
        backbone.out_channels,
        hidden_dim=size.encoder_dim,
        dim_feedforward=size.encoder_feed_forward,
        expansion=size.expansion,
    )
    decoder = RTDETRTransformer(
        feat_channels=encoder.out_channels, num_decoder_layers=size.layers, **vars(chosen)
    )
    return RTDETR(backbone, encoder, decoder)
