"""The training loss of RT-DETR: Hungarian matching, classification and box terms of every layer.

Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024; terms, weights and names
are those of the official code. All layers of a step are matched and scored together: their
predictions are stacked, so the number of operations does not grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jittor as jt
import numpy as np

from segtasks.losses import classification
from segtasks.losses.detection_targets import Target, TargetBatch
from segtasks.losses.matcher import HungarianMatcher, Matches
from segtasks.ops.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou

if TYPE_CHECKING:
    from segtasks.models.rtdetr.outputs import Denoising, Predictions, RTDETROutput

LOSSES = ("vfl", "focal", "bce", "labels", "boxes", "cardinality")

_TERMS = (
    "loss_vfl",
    "loss_focal",
    "loss_bce",
    "loss_ce",
    "class_error",
    "cardinality_error",
    "loss_bbox",
    "loss_giou",
)
_WEIGHTS = {
    "loss_vfl": 1.0,
    "loss_focal": 1.0,
    "loss_bce": 1.0,
    "loss_ce": 1.0,
    "loss_bbox": 5.0,
    "loss_giou": 2.0,
}


@dataclass(frozen=True)
class _Layers:
    """Predictions of L layers that share a shape, and their pairs; R = B * Q queries per layer.

    Attributes:
        logits: (L, B, Q, C).
        matched: predicted boxes of the pairs, (L, P, 4), cxcywh.
        wanted: labelled boxes of the pairs, (L, P, 4), cxcywh.
        labels: (L, R), class of each query's box, `num_classes` without one.
        pair: (L, R), position of each query among the L * P pairs, -1 without one.
        counts: boxes of each image, (B,).
        normaliser: (1,), what sums are divided by.
    """

    logits: jt.Var
    matched: jt.Var
    wanted: jt.Var
    labels: jt.Var
    pair: jt.Var
    counts: jt.Var
    normaliser: jt.Var

    @property
    def flat_logits(self) -> jt.Var:
        """(L, R, C)."""
        L, B, Q, C = self.logits.shape
        return self.logits.reshape(L, B * Q, C)

    @property
    def pairs(self) -> int:
        return self.matched.shape[1]


class RTDETRCriterion:
    """Weighted loss terms of all layers, by their official names.

    `loss_vfl`, `loss_bbox` and `loss_giou` are those of the last layer, `..._aux_0` and so on
    those of the layers before it and, last, of the encoder's head; each is matched on its own.
    `..._dn_0` and so on belong to the denoising queries, which know their box. The total loss is
    the plain sum.

    Sums are divided by the number of boxes, at least 1, averaged over all ranks; those of
    denoising queries by that times the number of groups. Images and whole batches without boxes
    are learnt from as background; their box terms are 0.

    Args:
        num_classes: labels are below it.
        matcher: assigns queries to boxes; by default with the official weights.
        losses: terms to compute, of vfl, focal, bce and labels (for classification), boxes,
            cardinality.
        weights: weight of each term by name; terms without one are left out. By default 1 for
            each classification loss, 5 for `loss_bbox`, 2 for `loss_giou`; `class_error` and
            `cardinality_error`, which carry no gradient, only when named here.
        alpha: weight of the varifocal loss's negatives, or of the focal loss's positives.
            Official configurations use 0.75, the official default is 0.2.
        gamma: exponent of both.
        no_object_weight: weight of queries without a box in `labels`.
        reduce_mean: averages a (1,) array, the number of boxes, over the processes.

    Raises:
        ValueError: `losses` or `weights` name something unknown.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher | None = None,
        losses: Sequence[str] = ("vfl", "boxes"),
        weights: Mapping[str, float] | None = None,
        alpha: float = 0.75,
        gamma: float = 2.0,
        no_object_weight: float = 1e-4,
        reduce_mean: Callable[[np.ndarray], np.ndarray] = lambda count: count,
    ) -> None:
        self.num_classes = num_classes
        self.matcher = matcher or HungarianMatcher()
        self.losses = _known(losses, LOSSES, "losses")
        self.weights = dict(_WEIGHTS if weights is None else weights)
        _known(self.weights, _TERMS, "weights")
        self.alpha, self.gamma, self.no_object_weight = alpha, gamma, no_object_weight
        self.reduce_mean = reduce_mean

    def __call__(self, output: RTDETROutput, targets: Sequence[Target]) -> dict[str, jt.Var]:
        """Compute the loss terms of one batch.

        Args:
            output: what the detector returned, in training for these targets.
            targets: one per image.

        Returns:
            Weighted scalars of shape (1,), layer after layer.

        Raises:
            TargetError: a target is impossible; names image and value.
            DivergedError: a prediction is NaN or infinite; names the layer.
        """
        batch = TargetBatch(targets, self.num_classes)
        if len(batch) != output.logits.shape[0]:
            raise ValueError(
                f"{len(batch)} targets for predictions of {output.logits.shape[0]} images"
            )
        count = np.array([len(batch.labels)], np.float32)
        normaliser = jt.array(np.maximum(self.reduce_mean(count), 1).astype(np.float32))

        terms = self._matched_terms([output, *output.auxiliary], batch, normaliser)
        if output.denoising_meta is not None and output.denoising:
            meta = output.denoising_meta
            terms |= self._denoising_terms(output.denoising, meta, batch, normaliser)
        return terms

    def _matched_terms(
        self,
        predictions: Sequence[Predictions | RTDETROutput],
        batch: TargetBatch,
        normaliser: jt.Var,
    ) -> dict[str, jt.Var]:
        logits = jt.stack([p.logits for p in predictions])
        boxes = jt.stack([p.boxes for p in predictions])
        auxiliary = range(len(predictions) - 1)
        names = ["the last layer", *(f"auxiliary output {i}" for i in auxiliary)]
        matches = self.matcher(logits, boxes, batch, names)
        layers = self._layers(logits, boxes, matches, batch, normaliser)
        return self._terms(layers, ["", *(f"_aux_{i}" for i in auxiliary)])

    def _denoising_terms(
        self,
        predictions: Sequence[Predictions],
        meta: Denoising,
        batch: TargetBatch,
        normaliser: jt.Var,
    ) -> dict[str, jt.Var]:
        logits = jt.stack([p.logits for p in predictions])
        boxes = jt.stack([p.boxes for p in predictions])
        matches = _denoising_matches(meta, batch, len(predictions), logits.shape[2])
        layers = self._layers(logits, boxes, matches, batch, normaliser * float(meta.groups))
        return self._terms(layers, [f"_dn_{i}" for i in range(len(predictions))])

    def _layers(
        self,
        logits: jt.Var,
        boxes: jt.Var,
        matches: Matches,
        batch: TargetBatch,
        normaliser: jt.Var,
    ) -> _Layers:
        L, B, Q, _ = boxes.shape
        P = matches.queries.shape[1]
        layer = np.arange(L)[:, None]
        labels = np.full((L, B * Q), self.num_classes, np.int32)
        labels[layer, matches.queries] = batch.labels[matches.boxes]
        pair = np.full((L, B * Q), -1, np.int32)
        pair[layer, matches.queries] = np.arange(L * P).reshape(L, P)
        queries = jt.array(matches.queries.astype(np.int32))
        return _Layers(
            logits=logits,
            matched=boxes.reshape(L, B * Q, 4).reindex(
                (L, P, 4), ["i0", "@e0(i0, i1)", "i2"], extras=[queries]
            ),
            wanted=jt.array(batch.boxes[matches.boxes]),
            labels=jt.array(labels),
            pair=jt.array(pair),
            counts=jt.array(batch.counts.astype(np.float32)),
            normaliser=normaliser,
        )

    def _terms(self, layers: _Layers, suffixes: Sequence[str]) -> dict[str, jt.Var]:
        """Weighted terms of all layers, named with the layers' suffixes."""
        compute = {
            "vfl": self._vfl,
            "focal": self._focal,
            "bce": self._bce,
            "labels": self._labels,
            "boxes": self._boxes,
            "cardinality": self._cardinality,
        }
        values: dict[str, jt.Var] = {}
        for loss in self.losses:
            values |= compute[loss](layers)
        values = {
            name: value * self.weights[name]
            for name, value in values.items()
            if name in self.weights
        }
        terms = {}
        for i, suffix in enumerate(suffixes):
            for name, value in values.items():
                # The error in percent is reported for the last layer only.
                if name != "class_error" or suffix == "":
                    terms[name + suffix] = value[i]
        return terms

    def _vfl(self, layers: _Layers) -> dict[str, jt.Var]:
        quality = jt.zeros_like(layers.labels).float32()
        if layers.pairs:
            iou = elementwise_iou(cxcywh_to_xyxy(layers.matched), cxcywh_to_xyxy(layers.wanted))
            # Position -1 lies outside of the pairs: such queries get 0.
            quality = (
                iou.detach()
                .reshape(-1)
                .reindex(layers.pair.shape, ["@e0(i0, i1)"], extras=[layers.pair])
            )
        loss = classification.varifocal(
            layers.flat_logits, layers.labels, quality, self.alpha, self.gamma
        )
        return {"loss_vfl": loss / layers.normaliser}

    def _focal(self, layers: _Layers) -> dict[str, jt.Var]:
        loss = classification.focal(layers.flat_logits, layers.labels, self.alpha, self.gamma)
        return {"loss_focal": loss / layers.normaliser}

    def _bce(self, layers: _Layers) -> dict[str, jt.Var]:
        loss = classification.binary_cross_entropy(layers.flat_logits, layers.labels)
        return {"loss_bce": loss / layers.normaliser}

    def _labels(self, layers: _Layers) -> dict[str, jt.Var]:
        logits, labels = layers.flat_logits, layers.labels
        terms = {"loss_ce": classification.cross_entropy(logits, labels, self.no_object_weight)}
        if "class_error" in self.weights:
            right = (jt.argmax(logits, -1)[0] == labels) & (labels < self.num_classes)
            share = right.float32().sum(1) / max(layers.pairs, 1)
            terms["class_error"] = 100 - 100 * share
        return terms

    def _boxes(self, layers: _Layers) -> dict[str, jt.Var]:
        if not layers.pairs:
            zero = jt.zeros(layers.logits.shape[0])
            return {"loss_bbox": zero, "loss_giou": zero}
        matched, wanted = layers.matched, layers.wanted
        giou = elementwise_giou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(wanted))
        return {
            "loss_bbox": (matched - wanted).abs().sum((1, 2)) / layers.normaliser,
            "loss_giou": (1 - giou).sum(1) / layers.normaliser,
        }

    def _cardinality(self, layers: _Layers) -> dict[str, jt.Var]:
        last = layers.logits.shape[3] - 1
        found = (jt.argmax(layers.logits, -1)[0] != last).float32().sum(2)
        return {"cardinality_error": (found - layers.counts.unsqueeze(0)).abs().mean(1)}


def _denoising_matches(meta: Denoising, batch: TargetBatch, layers: int, queries: int) -> Matches:
    """The known pairs: positive query k of an image stands for its box k modulo their number."""
    positions = [q + i * queries for i, q in enumerate(meta.positive)]
    counts = zip(meta.positive, batch.counts, batch.first, strict=True)
    boxes = [first + np.arange(len(q)) % max(n, 1) for q, n, first in counts]
    return Matches(
        np.tile(np.concatenate(positions), (layers, 1)).astype(np.int64),
        np.tile(np.concatenate(boxes), (layers, 1)).astype(np.int64),
    )


def _known(names: Iterable[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    names = tuple(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
    return names
