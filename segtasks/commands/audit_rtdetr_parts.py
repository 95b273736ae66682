"""Compare RT-DETR's backbone, hybrid encoder and decoder alone with recorded runs, case by case."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.commands.checks import Check, exact
from segtasks.commands.golden_file import GoldenFileError
from segtasks.commands.rtdetr_recording import (
    Recording,
    check_stage,
    check_structure,
    fill_golden,
    place_of,
    reorder,
)
from segtasks.golden import golden_input
from segtasks.models.rtdetr import HybridEncoder, PResNet, RTDETROutput, RTDETRTransformer
from segtasks.models.rtdetr.decoder import SelectedQueries, Shapes
from segtasks.models.rtdetr.geometry import make_anchors

Case = dict[str, Any]
#: Gradient norms pass through every layer twice and through batch statistics.
GRADIENT_FACTOR = 100
#: Options that have no effect, or none on what is built here.
IGNORED = frozenset({"feat_strides", "position_embed_type", "eval_spatial_size", "aux_loss"})


def audit_backbones(recording: Recording, cases: list[Case], limit: float) -> Iterator[Check]:
    """Maps of each case's residual network."""
    names = ("depth", "variant", "return_idx", "freeze_at", "freeze_norm")
    for case in cases:
        key, shape = _take(recording, case, "key", "input")
        options = dict(zip(names, _take(recording, case, *names), strict=True))
        model = _build(PResNet, options, recording, f"rtdetr.backbone.{key}.")
        part = recording.part(key)
        yield from check_structure(model, part, f"{key}.")
        image = jt.array(golden_input(f"rtdetr.backbone.{key}.input", shape))
        yield from _check_maps(key, _evaluate(model, image), part, limit)


def audit_encoders(recording: Recording, cases: list[Case], limit: float) -> Iterator[Check]:
    """Fused maps of each case's hybrid encoder."""
    for case in cases:
        key, options = _take(recording, case, "key", "kwargs")
        model = _build(HybridEncoder, options, recording, f"rtdetr.encoder.{key}.")
        part = recording.part(key)
        yield from check_structure(model, part, f"{key}.")
        maps = _maps(recording, case, "encoder", options["in_channels"])
        yield from _check_maps(key, _evaluate(model, maps), part, limit)


def audit_decoders(recording: Recording, cases: list[Case], limit: float) -> Iterator[Check]:
    """Each case's decoder in evaluation and, if recorded, in training with its gradients."""
    for case in cases:
        key, options = _take(recording, case, "key", "kwargs")
        model = _build(RTDETRTransformer, options, recording, f"rtdetr.decoder.{key}.")
        part = recording.part(key)
        yield from check_structure(model, part, f"{key}.")
        maps = _maps(recording, case, "decoder", options["feat_channels"])
        for check in _check_decoder(model, maps, part, limit):
            yield _prefixed(check, key)
        if part.has("train.pred_logits"):
            for check in _check_training(model, maps, part.part("train"), key, limit):
                yield _prefixed(check, f"{key}.train")


def check_selection(
    recording: Recording,
    selected: SelectedQueries,
    scores: np.ndarray,
    shapes: Shapes,
    eps: float,
    limit: float,
) -> Iterator[Check]:
    """Anchors, scores, picked tokens and what the encoder's head says about them.

    Args:
        recording: of a whole model or of a decoder.
        selected: what was picked.
        scores: best class logit of every token, (B, N).
        shapes: (height, width) of each level.
        eps: of the anchors.
        limit: relative to a stage's largest value.
    """
    valid = make_anchors(shapes, eps)[1].reshape(-1)
    if recording.has("valid"):
        yield exact("valid anchors", (valid != recording.array("valid")).sum(), f"{valid.sum()}")
    else:
        count = int(recording.array("n_valid_anchors"))
        yield exact("valid anchors", abs(int(valid.sum()) - count), f"{valid.sum()}")
    recorded = recording.array("topk_scores")
    best = -np.sort(-scores, 1)[:, : recorded.shape[1]]
    yield check_stage("topk_scores", best, recording, limit)
    index, wanted = selected.index.numpy(), recording.array("topk_ind")
    if index.shape != wanted.shape:
        raise GoldenFileError(f"{recording.path}: topk_ind is {wanted.shape}, not {index.shape}")
    if wanted.min() < 0 or wanted.max() >= len(valid):
        raise GoldenFileError(f"{recording.path}: topk_ind is not within the {len(valid)} tokens")
    # A token that only one side picked is no miss if it is as good as the last one within limits.
    boundary = np.take_along_axis(scores, index, 1)[:, -1:] - limit * np.abs(scores).max()
    clear = valid[wanted] & (np.take_along_axis(scores, wanted, 1) < boundary)
    yield exact("topk tokens", int(clear.sum()), f"{wanted.size} picked")
    place = place_of(index, wanted)
    for name, array in (
        ("enc_topk_logits", selected.predictions.logits),
        ("enc_topk_boxes", selected.predictions.boxes),
        ("target", selected.content),
    ):
        yield check_stage(name, reorder(array, place), recording, limit)


def _check_decoder(
    model: RTDETRTransformer, maps: list[jt.Var], recording: Recording, limit: float
) -> Iterator[Check]:
    model.eval()
    with jt.no_grad():
        memory, shapes = model.tokens(maps)
        selected = model.select(memory, shapes)
        valid = jt.array(make_anchors(shapes, model.eps)[1].astype(np.float32))
        scores = model.enc_score_head(model.enc_output(memory * valid)).max(-1).numpy()
        output = model(maps)
        yield from check_selection(recording, selected, scores, shapes, model.eps, limit)
        place = place_of(selected.index.numpy(), recording.array("topk_ind"))
        yield check_stage("pred_logits", reorder(output.logits, place), recording, limit)
        yield check_stage("pred_boxes", reorder(output.boxes, place), recording, limit)


def _check_training(
    model: RTDETRTransformer, maps: list[jt.Var], recording: Recording, key: str, limit: float
) -> Iterator[Check]:
    """Outputs of all layers with batch statistics, and gradients of a fixed sum of the last."""
    model.train()
    output = model(maps)
    # Before anything is read: reading a part would run it alone, in kernels of its own.
    gradients = _gradients(model, output, recording, key)
    count = int(recording.array("n_aux"))
    yield exact("auxiliary outputs", abs(count - len(output.auxiliary)), f"{count}")
    for i, layer in enumerate(output.auxiliary[:count]):
        yield check_stage(f"aux{i}.logits", layer.logits, recording, limit)
        yield check_stage(f"aux{i}.boxes", layer.boxes, recording, limit)
    yield check_stage("pred_logits", output.logits, recording, limit)
    yield check_stage("pred_boxes", output.boxes, recording, limit)
    norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in gradients.values()])
    recorded, absent = recording.array("grad_norms"), recording.array("grad_none")
    touched = int((norms[absent] != 0).sum())
    yield exact("gradients that must not be", touched, f"{absent.sum()} tensors")
    # A gradient that is zero up to rounding (a bias in front of a norm) is compared absolutely.
    scale = np.maximum(recorded, 1e-3 * recorded.max(initial=0))
    errors = np.where(absent, 0, np.abs(norms - recorded)) / scale
    worst = int(errors.argmax())
    error = float(errors[worst])
    note = f"worst of {len(errors)}: {list(gradients)[worst]}"
    yield Check("gradient norms, relative", error, error, limit * GRADIENT_FACTOR, note)
    name = "decoder.layers.0.cross_attn.sampling_offsets.weight"
    if recording.has("grad_sampling_offsets_w") and name in gradients:
        stage, factor = "grad_sampling_offsets_w", limit * GRADIENT_FACTOR
        yield check_stage(stage, gradients[name], recording, factor)


def _gradients(
    model: RTDETRTransformer, output: RTDETROutput, recording: Recording, key: str
) -> dict[str, np.ndarray]:
    prefix = f"rtdetr.decoder.{key}."
    up_b = jt.array(golden_input(f"{prefix}up_b", tuple(output.boxes.shape)))
    up_l = jt.array(golden_input(f"{prefix}up_l", tuple(output.logits.shape)))
    loss = (output.boxes * up_b).sum() + (output.logits * up_l).sum()
    tensors = dict(model.named_parameters())
    names = recording.names("grad_names")
    unknown = sorted(set(names) - set(tensors))
    if unknown:
        raise GoldenFileError(f"{recording.path}: grad_names: {unknown[0]} is unknown")
    gradients = jt.grad(loss, [tensors[name] for name in names])
    layers = [(x.logits, x.boxes) for x in output.auxiliary]
    jt.sync([*gradients, output.logits, output.boxes, *chain.from_iterable(layers)])
    return {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}


def _build(kind: type, options: dict[str, Any], recording: Recording, prefix: str) -> nn.Module:
    """A model of that kind with golden weights."""
    chosen = {name: value for name, value in options.items() if name not in IGNORED}
    if kind is HybridEncoder and "feat_strides" in options:
        chosen["feat_strides"] = options["feat_strides"]
    unknown = sorted(set(chosen) - set(inspect.signature(kind).parameters))
    if unknown:
        raise GoldenFileError(f"{recording.path}: {kind.__name__} has no option {unknown[0]!r}")
    try:
        model = kind(**chosen)
    except ValueError as error:
        raise GoldenFileError(f"{recording.path}: {kind.__name__}: {error}") from error
    fill_golden(model, prefix)
    return model


def _maps(recording: Recording, case: Case, kind: str, channels: list[int]) -> list[jt.Var]:
    key, batch, sizes = _take(recording, case, "key", "batch", "feat_hw")
    if len(sizes) != len(channels):
        raise GoldenFileError(f"{recording.path}: case {key}: {len(sizes)} sizes for {channels}")
    return [
        jt.array(golden_input(f"rtdetr.{kind}.{key}.feat{i}", (batch, width, *size)))
        for i, (width, size) in enumerate(zip(channels, sizes, strict=True))
    ]


def _evaluate(model: nn.Module, x: Any) -> list[jt.Var]:
    model.eval()
    with jt.no_grad():
        maps = model(x)
        jt.sync(maps)
        return list(maps)


def _check_maps(
    key: str, maps: list[jt.Var], recording: Recording, limit: float
) -> Iterator[Check]:
    recorded = sum(recording.has(f"out.{i}") for i in range(10))
    yield exact(f"{key}.maps", abs(recorded - len(maps)), f"{recorded}")
    for i, x in enumerate(maps[:recorded]):
        yield check_stage(f"{key}.out.{i}", x, recording, limit, f"out.{i}")


def _take(recording: Recording, case: Case, *names: str) -> list[Any]:
    missing = [name for name in names if name not in case]
    if missing:
        raise GoldenFileError(f"{recording.path}: a case lacks {missing[0]}: {case}")
    return [case[name] for name in names]


def _prefixed(check: Check, key: str) -> Check:
    return Check(f"{key}.{check.name}", check.error, check.relative, check.limit, check.note)
