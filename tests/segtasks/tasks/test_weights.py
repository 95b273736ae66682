"""What a detector can start from, on a network with the official names and few numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import WeightsError
from segtasks.models.rtdetr.renames import CLASS_PARTS, official_name
from segtasks.tasks.weights import start_detector

#: Name in a network -> shape; the class heads have 3 classes.
NAMES = {
    "backbone.conv1.conv1_1.conv.weight": (4, 3),
    "backbone.conv1.conv1_1.norm.running_mean": (4,),
    "backbone.res_layers.0.blocks.0.branch2a.conv.weight": (4, 4),
    "encoder.input_proj.0.0.weight": (4, 4),
    "encoder.input_proj.0.1.weight": (4,),
    "decoder.input_proj.0.conv.weight": (4, 4),
    "decoder.enc_output.0.weight": (4, 4),
    "decoder.enc_output.1.weight": (4,),
    "decoder.enc_score_head.bias": (3,),
    "decoder.dec_score_head.0.bias": (3,),
    "decoder.denoising_class_embed.weight": (4, 4),
}


class Network(nn.Module):
    """Modules nested as the names say."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        for name, shape in NAMES.items():
            if any(name.startswith(part) for part in CLASS_PARTS):
                shape = (classes + 1, 4) if len(shape) == 2 else (classes,)
            *path, last = name.split(".")
            module: Any = self
            for part in path:
                if not hasattr(module, part):
                    setattr(module, part, nn.Module())
                module = getattr(module, part)
            setattr(module, last, jt.zeros(shape))


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.random(shape, np.float32) for name, shape in NAMES.items()}


def values(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.named_parameters()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def loaded(path: Path, tree: Any, skip: tuple[str, ...] = (), classes: int = 3) -> Network:
    write_torch(path, tree)
    network = Network(classes)
    start_detector(network, str(path), skip)
    return network


def test_the_average_of_an_official_file_is_preferred(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    counter = {"backbone.conv1.conv1_1.norm.num_batches_tracked": np.array(7, np.int64)}
    other = {name: array + 1 for name, array in arrays.items()}
    moments = {"state": {0: {"step": 1.0, "exp_avg": np.ones(4, np.float32)}}}
    ema = {"module": {**arrays, **counter}, "updates": 72, "warmups": 2000}
    official = {"model": {**other, **counter}, "optimizer": moments, "last_epoch": 71}
    path = tmp_path / "official.pth"
    assert_equal(values(loaded(path, {**official, "ema": ema})), arrays)
    assert_equal(values(loaded(path, official)), other)
    assert_equal(values(loaded(path, {"ema": ema})), arrays)


def test_a_state_dict_alone_is_enough(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    assert_equal(values(loaded(tmp_path / "plain.pth", arrays)), arrays)


def test_a_pre_trained_backbone_leaves_the_rest_as_it_is(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    prefix = "backbone."
    backbone = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    path = tmp_path / "resnet.pth"
    found = values(loaded(path, backbone, ("encoder", "decoder")))
    assert_equal(found, {prefix + name: array for name, array in backbone.items()})
    rest = [name for name in NAMES if not name.startswith(prefix)]
    assert_equal(found, {name: np.zeros(NAMES[name], np.float32) for name in rest})
    with pytest.raises(WeightsError, match=r"missing[^$]*pre-trained backbone \[encoder, decoder]"):
        start_detector(Network(), str(path))


def test_other_classes_keep_their_own_heads(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "coco.pth"
    found = values(loaded(path, arrays, CLASS_PARTS, classes=5))
    kept = {n: a for n, a in arrays.items() if not n.startswith(CLASS_PARTS)}
    assert_equal(found, kept)
    assert found["decoder.enc_score_head.bias"].tolist() == [0] * 5
    with pytest.raises(WeightsError, match=r"different shape[^$]*decoder\.denoising_class_embed"):
        start_detector(Network(5), str(path))


def test_with_parts_skipped_a_file_may_hold_more(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "more.pth"
    more = {**arrays, "decoder.tgt_embed.weight": np.ones((4, 4), np.float32)}
    skip = ("decoder.enc_score_head",)
    kept = {name: array for name, array in arrays.items() if not name.startswith(skip)}
    assert_equal(values(loaded(path, more, skip)), kept)
    with pytest.raises(WeightsError, match=r"unknown to the model: decoder\.tgt_embed\.weight"):
        start_detector(Network(), str(path))


def test_the_second_version_s_names_are_understood(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    second = dict(arrays)
    for old, new in {
        "encoder.input_proj.0.0.weight": "encoder.input_proj.0.conv.weight",
        "encoder.input_proj.0.1.weight": "encoder.input_proj.0.norm.weight",
        "decoder.enc_output.0.weight": "decoder.enc_output.proj.weight",
        "decoder.enc_output.1.weight": "decoder.enc_output.norm.weight",
    }.items():
        second[new] = second.pop(old)
    second["decoder.anchors"] = np.ones((1, 8, 4), np.float32)
    second["decoder.valid_mask"] = np.ones((1, 8, 1), bool)
    second["decoder.decoder.layers.0.cross_attn.num_points_scale"] = np.ones(12, np.float32)
    assert_equal(values(loaded(tmp_path / "second.pth", {"model": second})), arrays)


def test_the_first_version_s_names_are_their_own() -> None:
    assert [official_name(name) for name in NAMES] == list(NAMES)
