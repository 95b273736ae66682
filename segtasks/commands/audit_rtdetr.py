"""Compare RT-DETR with recorded runs of the official code, stage by stage in forward order.

The limits are relative to a stage's largest absolute value. At the default tolerance, 10, they are
those that the recordings' description suggests; rounding alone stays below a tenth of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.commands.audit_rtdetr_parts import (
    audit_backbones,
    audit_decoders,
    audit_encoders,
    check_selection,
)
from segtasks.commands.checks import Check, exact
from segtasks.commands.golden_file import GoldenFileError, array_names
from segtasks.commands.rtdetr_recording import (
    Recording,
    check_stage,
    check_structure,
    distance,
    fill_golden,
    place_of,
    read_recording,
    reorder,
)
from segtasks.golden import golden_input
from segtasks.models import rtdetr

BUILDERS: dict[str, Callable[..., rtdetr.RTDETR]] = {
    "rtdetr_r18vd": rtdetr.rtdetr_r18,
    "rtdetr_r34vd": rtdetr.rtdetr_r34,
    "rtdetr_r50vd_m": rtdetr.rtdetr_r50_m,
    "rtdetr_r50vd": rtdetr.rtdetr_r50,
    "rtdetr_r101vd": rtdetr.rtdetr_r101,
}
ACCEPTED = (
    f"accepted of RT-DETR are .npz files with a `config` of {', '.join(BUILDERS)} (whole models), "
    "or with `cases` of backbones, hybrid encoders or decoders"
)
#: Limits of whole models and of single parts for a tolerance of 1.
WHOLE = 1e-5
PART = 1e-6


def is_rtdetr(path: Path) -> bool:
    """Whether a file looks like a recording of RT-DETR or of a part of it; false if unreadable."""
    try:
        return bool({"config", "cases"} & array_names(path))
    except GoldenFileError:
        return False


def audit_rtdetr(path: Path, tolerance: float) -> Iterator[Check]:
    """Build what the file names, fill it by the golden rule, run it and compare.

    Args:
        path: an .npz file.
        tolerance: factor on all limits.

    Yields:
        Checks in forward order, so that the first that failed names the stage that diverges.

    Raises:
        GoldenFileError: the file is none of those accepted, damaged or incomplete.
    """
    recording = read_recording(path)
    if recording.has("config"):
        yield from audit_model(recording, WHOLE * tolerance)
        return
    if not recording.has("cases"):
        raise GoldenFileError(f"{path}: neither `config` nor `cases` inside; {ACCEPTED}")
    cases = recording.json("cases")
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise GoldenFileError(f"{path}: `cases` is no list of objects; {ACCEPTED}")
    yield from _audit_of(cases, path)(recording, cases, PART * tolerance)


def build(recording: Recording) -> rtdetr.RTDETR:
    """The variant that a file names, of the recorded classes and queries, filled."""
    config = recording.text("config")
    name = re.sub(r"_\dx(_coco)?$|_coco$", "", config)
    if name not in BUILDERS:
        raise GoldenFileError(f"{recording.path}: config is {config!r}; {ACCEPTED}")
    classes, queries = recording.array("pred_logits").shape[-1], recording.array("topk_ind").shape
    denoising = "decoder.denoising_class_embed.weight" in recording.names("sd_keys")
    model = BUILDERS[name](classes, queries[-1], num_denoising=100 if denoising else 0)
    fill_golden(model)
    return model


def audit_model(recording: Recording, limit: float) -> Iterator[Check]:
    """Compare a whole model in evaluation mode."""
    model = build(recording)
    yield from check_structure(model, recording)
    image = golden_input(recording.text("input_name"), recording.array("input_shape").tolist())
    head = recording.array("input_head")
    yield exact("input", distance(image.reshape(-1)[: head.size], head), "first values")
    first = next(iter(model.parameters())).numpy().reshape(-1)
    weights = recording.array("weight_check")
    yield exact("weights", distance(first[: weights.size], weights), "first values")
    model.eval()
    with jt.no_grad():
        output, stages = run(model, jt.array(image))
        yield from _check_stages(model, recording, output, stages, limit)


def run(model: rtdetr.RTDETR, image: jt.Var) -> tuple[rtdetr.RTDETROutput, dict[str, list[Any]]]:
    """The output, and for each named module the outputs of all its calls; "memory" besides."""
    decoder = model.decoder
    modules: dict[str, nn.Module] = {
        "backbone": model.backbone,
        "encoder": model.encoder,
        "enc_output": decoder.enc_output,
        "enc_logits_all": decoder.enc_score_head,
        **{f"dec_layer.{i}": layer for i, layer in enumerate(decoder.decoder.layers)},
    }
    if len(model.encoder.encoder):
        modules["aifi"] = model.encoder.encoder[0]
    stages: dict[str, list[Any]] = {name: [] for name in (*modules, "memory")}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            stages[name].append(output)
            if name == "dec_layer.0":
                stages["memory"] += [inputs[2], inputs[3]]

        return hook

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    try:
        output = model(image)
    finally:
        for module in modules.values():
            module.remove_forward_hook()
    return output, stages


def _check_stages(
    model: rtdetr.RTDETR,
    recording: Recording,
    output: rtdetr.RTDETROutput,
    stages: dict[str, list[Any]],
    limit: float,
) -> Iterator[Check]:
    def compare(name: str, array: jt.Var) -> Check:
        return check_stage(name, array, recording, limit)

    for i, x in enumerate(stages["backbone"][0]):
        yield compare(f"backbone.{i}", x)
    if recording.has("aifi"):
        yield compare("aifi", stages["aifi"][-1])
    for i, x in enumerate(stages["encoder"][0]):
        yield compare(f"encoder.{i}", x)
    memory, shapes = stages["memory"]
    yield compare("memory", memory)
    sizes = np.array(shapes)
    yield exact("spatial shapes", distance(sizes, recording.array("spatial_shapes")), f"{shapes}")
    # Both run on all tokens first and on the picked ones afterwards.
    for name in ("enc_output", "enc_logits_all"):
        yield compare(name, stages[name][0])
    selected = model.decoder.select(memory, shapes)
    scores = stages["enc_logits_all"][0].numpy().max(-1)
    yield from check_selection(recording, selected, scores, shapes, model.decoder.eps, limit)
    place = place_of(selected.index.numpy(), recording.array("topk_ind"))
    layers = [name for name in stages if name.startswith("dec_layer") and stages[name]]
    recorded = sum(recording.has(f"dec_layer.{i}") for i in range(100))
    yield exact("decoder layers run", abs(len(layers) - recorded), f"{len(layers)}")
    for name in layers[:recorded]:
        yield check_stage(name, reorder(stages[name][0], place), recording, limit)
    yield check_stage("pred_logits", reorder(output.logits, place), recording, limit)
    yield check_stage("pred_boxes", reorder(output.boxes, place), recording, limit)
    if recording.has("post.labels"):
        yield from _check_detections(recording.part("post"), output, limit)


def _check_detections(
    recording: Recording, output: rtdetr.RTDETROutput, limit: float
) -> Iterator[Check]:
    """Scores in order, boxes as a set: near-ties swap."""
    labels, sizes = recording.array("labels"), recording.array("orig_size_wh")
    found = rtdetr.top_predictions(output.logits, output.boxes, sizes, len(labels))[0]
    yield check_stage("post.scores", found.scores, recording, limit, "scores")
    apart = np.abs(found.boxes_xyxy[None] - recording.array("boxes")[:, None]).max(-1)
    apart = np.where(found.labels[None] == labels[:, None], apart, np.inf).min(1)
    largest = float(sizes.max())
    worst = float(apart.max())
    yield Check("post.boxes", worst, worst / largest, limit * largest, "px, of the same class")


def _audit_of(cases: list[dict[str, Any]], path: Path) -> Callable[..., Iterator[Check]]:
    keys = set(cases[0]) | set(cases[0].get("kwargs", {})) if cases else set()
    for name, audit in (
        ("depth", audit_backbones),
        ("in_channels", audit_encoders),
        ("num_queries", audit_decoders),
    ):
        if name in keys and ("kwargs" in keys or name == "depth"):
            return audit
    raise GoldenFileError(f"{path}: `cases` describes another part; {ACCEPTED}")
