"""Queries picked from the encoder's tokens and refined layer by layer into boxes.

"DETRs Beat YOLOs on Real-time Object Detection" (Zhao et al., CVPR 2024), section 4.3, with the
iterative refinement of "Deformable DETR" (Zhu et al., ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jittor as jt
import numpy as np
from jittor import init, nn

from segtasks.models.rtdetr.deformable import DeformableAttention
from segtasks.models.rtdetr.denoising import (
    DenoisingSettings,
    NoisedQueries,
    SeededDraws,
    Target,
    noised_queries,
)
from segtasks.models.rtdetr.geometry import make_anchors
from segtasks.models.rtdetr.layers import (
    MLP,
    Activation,
    ConvNorm,
    LayerNorm,
    MultiheadAttention,
    activation,
    identical_layers,
)
from segtasks.models.rtdetr.outputs import Predictions, RTDETROutput
from segtasks.models.rtdetr.selection import best_tokens, gather_tokens
from segtasks.ops.boxes import inverse_sigmoid

#: Activations beyond this were infinite in half precision: the largest finite number there.
LARGEST = 65504.0

Shapes = tuple[tuple[int, int], ...]


@dataclass
class SelectedQueries:
    """What the encoder's head hands to the decoder.

    Attributes:
        content: (B, Q, d), without gradient unless learnt.
        reference: logits of boxes, (B, Q, 4), without gradient.
        predictions: of the encoder's head for the same tokens, with gradient.
        index: the tokens, int32, (B, Q), best first.
    """

    content: jt.Var
    reference: jt.Var
    predictions: Predictions
    index: jt.Var


class DecoderLayer(nn.Module):
    """Self-attention between queries, deformable attention to the memory, feed-forward; post-norm.

    Args:
        dim: features d.
        heads: heads of both attentions.
        levels: levels of the memory.
        points: points per head and level.
        feed_forward: features inside the feed-forward part.
        dropout: probability of dropping a number of a residual branch in training.
        act: activation of the feed-forward part.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        feed_forward: int,
        dropout: float = 0.0,
        act: Activation = "relu",
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, heads, dropout)
        self.norm1 = LayerNorm(dim)
        self.cross_attn = DeformableAttention(dim, heads, levels, points)
        self.norm2 = LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feed_forward)
        self.linear2 = nn.Linear(feed_forward, dim)
        self.norm3 = LayerNorm(dim)
        self.act = activation(act)
        self.dropout = dropout

    def execute(
        self,
        content: jt.Var,
        reference: jt.Var,
        memory: jt.Var,
        shapes: Shapes,
        position: jt.Var,
        blocked: jt.Var | None = None,
    ) -> jt.Var:
        """Refine the queries' content.

        Args:
            content: (B, Q, d).
            reference: boxes in 0..1, (B, Q, 4).
            memory: (B, N, d).
            shapes: (height, width) of each level of the memory.
            position: added to the content wherever a query looks for something, (B, Q, d).
            blocked: bool, (Q, Q), True where a query must not see another.

        Returns:
            (B, Q, d).
        """
        q = content + position
        content = self.norm1(content + self._drop(self.self_attn(q, q, content, blocked)))
        looked_up = self.cross_attn(content + position, reference.unsqueeze(2), memory, shapes)
        content = self.norm2(content + self._drop(looked_up))
        hidden = self.linear2(self._drop(self.act(self.linear1(content))))
        content = content + self._drop(hidden)
        return self.norm3(content.minimum(LARGEST).maximum(-LARGEST))

    def _drop(self, x: jt.Var) -> jt.Var:
        return nn.dropout(x, self.dropout, self.is_training()) if self.dropout else x


class LayerStack(nn.Module):
    """The layers; which of them answers in evaluation is `eval_index`."""

    def __init__(self, layers: nn.ModuleList, eval_index: int) -> None:
        super().__init__()
        self.layers = layers
        self.eval_index = eval_index


class RTDETRTransformer(nn.Module):
    """Query selection and decoder of RT-DETR, under the official names.

    All layers start from the same values. The officially named `position_embed_type` has no
    effect there and is left out.

    Args:
        num_classes: classes C.
        hidden_dim: features d of tokens and queries.
        num_queries: queries Q.
        feat_channels: channels of the maps, fine to coarse.
        num_levels: levels of the memory; those beyond the maps are made by strided convolutions.
        num_decoder_points: points per head and level.
        nhead: heads of the attentions.
        num_decoder_layers: layers.
        dim_feedforward: features inside the feed-forward parts.
        dropout: of residual branches, in training.
        act: activation of the feed-forward parts.
        num_denoising: about how many denoising queries in training; 0 switches them off.
        label_noise_ratio: see DenoisingSettings.
        box_noise_scale: see DenoisingSettings.
        learnt_init_query: start from a learnt content instead of the picked tokens'.
        eval_idx: the layer that answers in evaluation; negative counts from the end.
        eps: anchors closer than this to a border are invalid, and their tokens all alike.
    """

    def __init__(
        self,
        num_classes: int = 80,
        hidden_dim: int = 256,
        num_queries: int = 300,
        feat_channels: Sequence[int] = (512, 1024, 2048),
        num_levels: int = 3,
        num_decoder_points: int = 4,
        nhead: int = 8,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        act: Activation = "relu",
        num_denoising: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        learnt_init_query: bool = False,
        eval_idx: int = -1,
        eps: float = 1e-2,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_queries < 1:
            raise ValueError(
                f"num_classes and num_queries must be at least 1, got {num_classes}, {num_queries}"
            )
        if not -num_decoder_layers <= eval_idx < num_decoder_layers:
            raise ValueError(f"eval_idx {eval_idx} is none of the {num_decoder_layers} layers")
        if num_levels < len(feat_channels):
            raise ValueError(f"num_levels is {num_levels} for {len(feat_channels)} maps")
        self.num_classes, self.num_queries, self.eps = num_classes, num_queries, eps
        self.denoising = DenoisingSettings(num_denoising, label_noise_ratio, box_noise_scale)
        self.draws = SeededDraws()
        self.input_proj = _projections(feat_channels, num_levels, hidden_dim)
        layers = identical_layers(
            lambda: DecoderLayer(
                hidden_dim, nhead, num_levels, num_decoder_points, dim_feedforward, dropout, act
            ),
            num_decoder_layers,
        )
        self.decoder = LayerStack(layers, eval_idx % num_decoder_layers)
        self.denoising_class_embed = (
            ClassEmbedding(num_classes, hidden_dim) if num_denoising > 0 else None
        )
        self.tgt_embed = nn.Embedding(num_queries, hidden_dim) if learnt_init_query else None
        self.query_pos_head = MLP(4, 2 * hidden_dim, hidden_dim, 2)
        self.enc_output = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), LayerNorm(hidden_dim))
        self.enc_score_head = nn.Linear(hidden_dim, num_classes)
        self.enc_bbox_head = MLP(hidden_dim, hidden_dim, 4, 3)
        count = range(num_decoder_layers)
        self.dec_score_head = nn.ModuleList([nn.Linear(hidden_dim, num_classes) for _ in count])
        self.dec_bbox_head = nn.ModuleList([MLP(hidden_dim, hidden_dim, 4, 3) for _ in count])
        self._initialise()

    def execute(
        self, maps: Sequence[jt.Var], targets: Sequence[Target] | None = None
    ) -> RTDETROutput:
        """Predict boxes.

        Args:
            maps: (B, C_l, h_l, w_l) per level, fine to coarse.
            targets: one per image; in training they make denoising queries, otherwise and without
                them there are none.

        Returns:
            In training with all supervised predictions.
        """
        memory, shapes = self.tokens(maps)
        noised = self._noised(targets) if self.is_training() and targets is not None else None
        selected = self.select(memory, shapes)
        content, reference, blocked = selected.content, selected.reference, None
        if noised is not None and self.denoising_class_embed is not None:
            noised_content = self.denoising_class_embed(jt.array(noised.labels.astype(np.int32)))
            content = jt.concat([noised_content, content], 1)
            reference = jt.concat([jt.array(noised.boxes), reference], 1)
            blocked = jt.array(noised.blocked)
        layers = self.refine(content, reference, memory, shapes, blocked)
        if not self.is_training():
            return RTDETROutput(layers[-1].logits, layers[-1].boxes)
        denoising: list[Predictions] = []
        if noised is not None:
            denoising, layers = _split(layers, noised.meta.split[0])
        return RTDETROutput(
            layers[-1].logits,
            layers[-1].boxes,
            auxiliary=[*layers[:-1], selected.predictions],
            denoising=denoising,
            denoising_meta=None if noised is None else noised.meta,
        )

    def tokens(self, maps: Sequence[jt.Var]) -> tuple[jt.Var, Shapes]:
        """The memory (B, N, d), all levels one after the other, and (height, width) of each."""
        if len(maps) > len(self.input_proj):
            raise ValueError(f"{len(maps)} maps for {len(self.input_proj)} levels")
        levels: list[jt.Var] = []
        for i, projection in enumerate(self.input_proj):
            # The first level beyond the maps starts from the last map, not from its projection.
            source = maps[i] if i < len(maps) else maps[-1] if i == len(maps) else levels[-1]
            levels.append(projection(source))
        shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
        flat = [level.reshape(*level.shape[:2], -1).transpose(0, 2, 1) for level in levels]
        return jt.concat(flat, 1), shapes

    def select(self, memory: jt.Var, shapes: Shapes) -> SelectedQueries:
        """Pick the tokens whose best class scores highest."""
        anchors, valid = make_anchors(shapes, self.eps)
        masked = memory * jt.array(valid.astype(np.float32))
        scores = self.enc_score_head(self.enc_output(masked)).max(-1)
        index = best_tokens(scores, self.num_queries)
        # The heads run again on the picked tokens: the same numbers, but all that the backward
        # pass needs of the other tokens (28 times as many at 640 x 640) is never kept.
        features = self.enc_output(gather_tokens(masked, index))
        logits = self.enc_score_head(features)
        reference = self.enc_bbox_head(features) + gather_tokens(jt.array(anchors), index)
        if self.tgt_embed is None:
            content = features.detach()
        else:
            content = self.tgt_embed.weight.unsqueeze(0).expand(features.shape)
        predictions = Predictions(logits, reference.sigmoid())
        return SelectedQueries(content, reference.detach(), predictions, index)

    def refine(
        self,
        content: jt.Var,
        reference: jt.Var,
        memory: jt.Var,
        shapes: Shapes,
        blocked: jt.Var | None = None,
    ) -> list[Predictions]:
        """Predictions of all layers in training, else of the answering one alone.

        Args:
            content: (B, Q, d).
            reference: logits of boxes, (B, Q, 4).
            memory: (B, N, d).
            shapes: (height, width) of each level.
            blocked: bool, (Q, Q), True where a query must not see another.
        """
        training = self.is_training()
        boxes = reference.sigmoid()
        previous = None  # the last layer's boxes with their gradient
        predictions = []
        for i, layer in enumerate(self.decoder.layers):
            position = self.query_pos_head(boxes)
            content = layer(content, boxes, memory, shapes, position, blocked)
            offset = self.dec_bbox_head[i](content)
            refined = (offset + inverse_sigmoid(boxes)).sigmoid()
            if training:
                # Officially the loss of a layer reaches one layer further back than its reference.
                supervised = refined
                if previous is not None:
                    supervised = (offset + inverse_sigmoid(previous)).sigmoid()
                predictions.append(Predictions(self.dec_score_head[i](content), supervised))
            elif i == self.decoder.eval_index:
                return [Predictions(self.dec_score_head[i](content), refined)]
            previous, boxes = refined, refined.detach()
        return predictions

    def _noised(self, targets: Sequence[Target]) -> NoisedQueries | None:
        return noised_queries(
            targets, self.num_classes, self.num_queries, self.denoising, self.draws()
        )

    def _initialise(self) -> None:
        # Every class starts at a probability of 0.01, every box at its reference.
        rare = -math.log((1 - 0.01) / 0.01)
        for head in (self.enc_score_head, *self.dec_score_head):
            head.bias = jt.full((self.num_classes,), rare)
        for box_head in (self.enc_bbox_head, *self.dec_bbox_head):
            last = box_head.layers[-1]
            last.weight, last.bias = jt.zeros(last.weight.shape), jt.zeros(last.bias.shape)
        spread = [self.enc_output[0], *self.query_pos_head.layers]
        if self.tgt_embed is not None:
            spread.append(self.tgt_embed)
        for layer in spread:
            layer.weight = init.xavier_uniform(tuple(layer.weight.shape))


class ClassEmbedding(nn.Module):
    """A content for each class and for padding, which is the last row and gets no gradient.

    Args:
        num_classes: classes C; the weight has C + 1 rows.
        dim: features d.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = jt.concat([init.gauss((num_classes, dim)), jt.zeros((1, dim))], 0)

    def execute(self, labels: jt.Var) -> jt.Var:
        """Labels from 0 to C, integers, any shape -> (..., d)."""
        padding = self.weight[self.num_classes :].detach()
        return jt.concat([self.weight[: self.num_classes], padding], 0)[labels]


def _projections(channels: Sequence[int], levels: int, dim: int) -> nn.ModuleList:
    """A 1x1 convolution per map and a 3x3 one of stride 2 per level beyond."""
    layers = [ConvNorm(width, dim, 1) for width in channels]
    for i in range(levels - len(channels)):
        layers.append(ConvNorm(dim if i else channels[-1], dim, 3, stride=2))
    return nn.ModuleList(layers)


def _split(layers: list[Predictions], noised: int) -> tuple[list[Predictions], list[Predictions]]:
    """Predictions of the first `noised` queries and of the others."""
    first = [Predictions(p.logits[:, :noised], p.boxes[:, :noised]) for p in layers]
    return first, [Predictions(p.logits[:, noised:], p.boxes[:, noised:]) for p in layers]
