"""Official weights and those of the earlier port, in files of PyTorch and of Jittor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from jtlightning.checkpoint.plan import LoadPlan, plan_loading
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import WeightsError, match_weights, read_weights
from segtasks.models.dformer.renames import fold_head_biases, official_name

RECORDED = Path(__file__).parents[2] / "reference" / "dformer"
#: Official name -> the port's.
NAMES = {
    "backbone.layers.2.blocks.0.gamma_1": "backbone.layers.2.blocks.0.gamma1",
    "backbone.layers.2.blocks.0.gamma_2": "backbone.layers.2.blocks.0.gamma2",
    "backbone.layers.0.downsample.norm.weight": "backbone.layers.0.downsample.norm.weight",
    "backbone.stages.1.0.attn.norm.weight": "backbone.stages.1.0.attn.norm.weight",
    "backbone.extra_norms.0.bias": "backbone.extra_norms.0.bias",
    "decode_head.squeeze.conv.weight": "decode_head.squeeze.conv.weight",
    "decode_head.squeeze.bn.weight": "decode_head.squeeze.norm.weight",
    "decode_head.squeeze.bn.running_mean": "decode_head.squeeze.norm.running_mean",
    "decode_head.hamburger.ham_in.conv.bias": "decode_head.hamburger.ham_in.conv.bias",
    "decode_head.hamburger.ham_out.bn.bias": "decode_head.hamburger.ham_out.norm.bias",
    "decode_head.conv_seg.weight": "decode_head.cls_seg.weight",
    "decode_head.conv_seg.bias": "decode_head.cls_seg.bias",
}
OLD_NORMS = [f"backbone.norm{i}.{part}" for i in range(4) for part in ("weight", "bias")]
TARGETS = dict.fromkeys(NAMES, ((3,), "float32"))


def values() -> dict[str, np.ndarray]:
    """A different array under each official name."""
    return {name: np.full(3, i, np.float32) for i, name in enumerate(NAMES)}


def official_file(path: Path, training: bool) -> Path:
    """As the official programs write v1: with norms that nothing reads and PyTorch's counters."""
    state = values() | {name: np.ones(3, np.float32) for name in OLD_NORMS}
    state["decode_head.squeeze.bn.num_batches_tracked"] = np.array(7)
    if not training:
        write_torch(path, {"model": state})
        return path
    moments = {"state": {0: {"step": 3.0, "exp_avg": np.ones(3, np.float32)}}}
    state = {f"module.{name}": array for name, array in state.items()}
    write_torch(path, {"model": state, "optimizer": moments, "epoch": 7, "iteration": 123})
    return path


def port_file(path: Path, training: bool) -> Path:
    import jittor as jt

    state = {NAMES[name]: jt.array(array) for name, array in values().items()}
    rest = {"epoch": 7, "options": argparse.Namespace(lr=1.0)}
    moments = {"defaults": {"m": [np.ones(3, np.float32)]}}
    jt.save({"model": state, "optimizer": moments, **rest} if training else state, str(path))
    return path


@pytest.mark.parametrize("training", [False, True], ids=["model_only", "training_state"])
@pytest.mark.parametrize("kind", ["official_pth", "jittor_pkl"])
def test_every_kind_of_file_fits_strictly(tmp_path, kind, training):
    make = official_file if kind == "official_pth" else port_file
    path = make(tmp_path / ("a.pth" if kind == "official_pth" else "a.pkl"), training)
    weights = read_weights(path)
    found = match_weights(TARGETS, weights, source=str(path), model="Net", rename=official_name)
    assert found.keys() == NAMES.keys()
    for name, array in values().items():
        np.testing.assert_array_equal(found[name], array)
    plan = plan_loading(dict.fromkeys(NAMES, (3,)), weights, official_name)
    assert plan.exact
    # Of a training state the weights are taken; the optimizer is told to be left alone.
    assert any(place.startswith("optimizer") for place in weights.others) == training
    assert len(plan.renamed) == (0 if kind == "official_pth" else 7)
    assert len(plan.skipped) == (len(OLD_NORMS) + 1 if kind == "official_pth" else 0)
    assert (set(weights.skipped.values()) == {"argparse.Namespace"}) == (
        kind == "jittor_pkl" and training
    )


def test_without_the_table_strict_loading_refuses_both_and_changes_nothing(tmp_path):
    for path in (
        official_file(tmp_path / "a.pth", False),
        port_file(tmp_path / "a.pkl", False),
    ):
        with pytest.raises(WeightsError, match="nothing was loaded"):
            match_weights(TARGETS, read_weights(path), source=str(path), model="Net")


def test_norms_outside_of_the_head_keep_their_names():
    for name in NAMES:
        assert official_name(name) == name
    assert official_name("backbone.norm4.weight") == "backbone.norm4.weight"
    assert official_name("backbone.norm3.weight") is None
    assert official_name("decode_head.norm.weight") == "decode_head.bn.weight"


@pytest.mark.parametrize(
    "variant", ["DFormer-Tiny", "DFormer-Tiny_MLPDecoder", "DFormer-Small", "DFormerv2-S"]
)
def test_official_names_of_whole_networks_stay(variant):
    with np.load(RECORDED / f"{variant}.npz") as file:
        manifest = json.loads(file["meta"].tobytes())["manifest"]
    names = [entry[0] for entry in manifest]
    assert len(names) > 500
    assert [official_name(name) for name in names] == names


@pytest.mark.parametrize(
    ("bare", "name"),
    [
        ("downsample_layers.0.0.weight", "backbone.downsample_layers.0.0.weight"),
        ("downsample_layers_e.1.0.bias", "backbone.downsample_layers_e.1.0.bias"),
        ("stages.0.0.attn.norm.weight", "backbone.stages.0.0.attn.norm.weight"),
        ("patch_embed.proj.0.weight", "backbone.patch_embed.proj.0.weight"),
        ("layers.3.blocks.0.gamma2", "backbone.layers.3.blocks.0.gamma_2"),
        ("extra_norms.2.weight", "backbone.extra_norms.2.weight"),
        ("norm2.weight", None),
        # Of a classifier for pre-training: it is for the caller to drop.
        ("head.weight", "head.weight"),
        ("norm.weight", "norm.weight"),
    ],
)
def test_backbone_of_its_own_finds_its_place(bare, name):
    assert official_name(bare) == name


def partial() -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray], LoadPlan]:
    targets = {"a.gamma_1": (3,), "b": (2,), "decode_head.conv_seg.weight": (5, 4), "c": ()}
    weights = {
        "a.gamma1": np.arange(3.0),
        "b": np.ones(2),
        "decode_head.cls_seg.weight": np.ones((6, 4)),
        "head.weight": np.ones(1),
        "backbone.norm0.bias": np.ones(3),
    }
    return targets, weights, plan_loading(targets, weights, official_name)


def test_plan_tells_every_fate():
    _, _, plan = partial()
    assert plan.loaded == ("a.gamma_1", "b")
    assert plan.renamed == {
        "a.gamma1": "a.gamma_1",
        "decode_head.cls_seg.weight": "decode_head.conv_seg.weight",
    }
    assert plan.skipped == ("backbone.norm0.bias",)
    assert plan.unknown == ("head.weight",)
    assert plan.missing == ("c",)
    assert plan.misshaped == {"decode_head.conv_seg.weight": ((6, 4), (5, 4))}
    assert not plan.exact
    assert plan.describe().splitlines() == [
        "loaded: 2 tensors",
        "renamed: a.gamma1 -> a.gamma_1, decode_head.cls_seg.weight -> decode_head.conv_seg.weight",
        "skipped: backbone.norm0.bias",
        "unknown to the model: head.weight",
        "missing in the file: c",
        "different shape: decode_head.conv_seg.weight (file (6, 4), model (5, 4))",
    ]


def test_plan_loads_what_fits_and_leaves_the_rest():
    targets, weights, plan = partial()
    described = {name: (shape, "float64") for name, shape in targets.items()}
    found = match_weights(
        described, weights, source="a", model="Net", rename=plan.rename, skip=plan.skip
    )
    assert found.keys() == {"a.gamma_1", "b"}
    np.testing.assert_array_equal(found["a.gamma_1"], weights["a.gamma1"])


def test_two_names_for_one_tensor_are_refused():
    weights = {"a.gamma1": np.ones(1), "a.gamma_1": np.ones(1)}
    with pytest.raises(ValueError, match=r"'a.gamma1' and 'a.gamma_1' are both named 'a.gamma_1'"):
        plan_loading({}, weights, official_name)


def test_folded_biases_leave_the_output_of_the_norm_as_it_was():
    rng = np.random.default_rng(0)
    x, bias, mean, scale = rng.normal(size=(4, 5, 3))[..., 0:3].reshape(4, 15)[:, :15]
    prefix = "decode_head.squeeze."
    weights = {
        f"{prefix}conv.bias": bias,
        f"{prefix}norm.running_mean": mean,
        "decode_head.hamburger.ham_in.conv.bias": scale,
    }
    folded = fold_head_biases(weights)
    assert list(folded) == [f"{prefix}norm.running_mean", "decode_head.hamburger.ham_in.conv.bias"]
    np.testing.assert_allclose(x - folded[f"{prefix}norm.running_mean"], x + bias - mean)
    # ham_in has no norm behind it: its bias belongs to the official network.
    np.testing.assert_array_equal(folded["decode_head.hamburger.ham_in.conv.bias"], scale)
    np.testing.assert_array_equal(weights[f"{prefix}norm.running_mean"], mean)
