"""The published sizes as plain functions; parameters counted for 40 classes and LightHam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segtasks.models.dformer.decoder import HamDecoder, MLPDecoder
from segtasks.models.dformer.encoder import DFormerEncoder
from segtasks.models.dformer.encoder_v2 import DFormerV2Encoder
from segtasks.models.dformer.segmenter import DFormerSegmenter

DecoderName = Literal["ham", "mlp"]


def dformer_tiny(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.1,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormer-Tiny, 6.0 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.1.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerEncoder((32, 64, 128, 256), (3, 3, 5, 2), drop_path=drop_path)
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformer_small(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.1,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormer-Small, 18.7 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.1.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerEncoder((64, 128, 256, 512), (2, 2, 4, 2), drop_path=drop_path)
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformer_base(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.1,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormer-Base, 29.5 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.1.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerEncoder((64, 128, 256, 512), (3, 3, 12, 2), drop_path=drop_path)
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformer_large(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.15,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormer-Large, 39.0 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.15.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerEncoder((96, 192, 288, 576), (3, 3, 12, 2), drop_path=drop_path)
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformerv2_s(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.25,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormerv2-S, 26.7 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.25.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerV2Encoder(
        (64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16), (4, 4, 6, 6), drop_path=drop_path
    )
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformerv2_b(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 512,
    drop_path: float = 0.2,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormerv2-B, 53.9 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.2.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerV2Encoder(
        (80, 160, 320, 512),
        (4, 8, 25, 8),
        (5, 5, 10, 16),
        (5, 5, 6, 6),
        layer_scale=True,
        drop_path=drop_path,
    )
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


def dformerv2_l(
    num_classes: int,
    *,
    decoder: DecoderName = "ham",
    decoder_embed_dim: int = 1024,
    drop_path: float = 0.3,
    head_dropout: float = 0.1,
    bn_eps: float = 1e-3,
    bn_momentum: float = 0.1,
    nmf_seed: int | None = None,
) -> DFormerSegmenter:
    """DFormerv2-L, 95.5 M parameters.

    Args:
        num_classes: classes to tell apart, without the ignored one.
        decoder: "ham" (LightHam, all official configurations) or "mlp".
        decoder_embed_dim: channels in front of the classifier.
        drop_path: drop path rate of the encoder's last block; official on NYUDepthv2: 0.3.
        head_dropout: probability of dropping a channel in front of the classifier.
        bn_eps: eps of the decoder's batch norms; the encoder's is 1e-5.
        bn_momentum: momentum of the decoder's batch norms.
        nmf_seed: fixes the random start of LightHam's factorisation in evaluation mode; None
            draws a new one for every batch as the official code does.
    """
    encoder = DFormerV2Encoder(
        (112, 224, 448, 640),
        (4, 8, 25, 8),
        (7, 7, 14, 20),
        (6, 6, 6, 6),
        layer_scale=True,
        drop_path=drop_path,
    )
    settings = _Head(decoder, decoder_embed_dim, head_dropout, bn_eps, bn_momentum, nmf_seed)
    return _segmenter(encoder, num_classes, settings)


@dataclass(frozen=True)
class _Head:
    decoder: str
    embed_dim: int
    dropout: float
    bn_eps: float
    bn_momentum: float
    nmf_seed: int | None


def _segmenter(
    encoder: DFormerEncoder | DFormerV2Encoder, num_classes: int, head: _Head
) -> DFormerSegmenter:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if head.decoder == "ham":
        decoder = HamDecoder(
            encoder.dims[1:],
            num_classes,
            head.embed_dim,
            dropout=head.dropout,
            bn_eps=head.bn_eps,
            bn_momentum=head.bn_momentum,
            nmf_seed=head.nmf_seed,
        )
    elif head.decoder == "mlp":
        decoder = MLPDecoder(
            encoder.dims,
            num_classes,
            head.embed_dim,
            dropout=head.dropout,
            bn_eps=head.bn_eps,
            bn_momentum=head.bn_momentum,
        )
    else:
        raise ValueError(f'decoder must be "ham" or "mlp", got {head.decoder!r}')
    return DFormerSegmenter(encoder, decoder)
