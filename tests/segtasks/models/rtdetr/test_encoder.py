from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.models.rtdetr.encoder import EncoderLayer, HybridEncoder, upsample
from segtasks.models.rtdetr.geometry import position_embedding
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    assert_names_and_shapes,
    check_sample,
    count_learnable,
    count_trained,
    golden_manifest,
    load_golden_weights,
    read_golden,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "hybrid_encoder.npz")


@pytest.mark.parametrize("index", [0, 1, 2], ids="abc")
def test_fused_maps_equal_the_recorded_ones(golden: dict[str, Any], index: int) -> None:
    case = golden["cases"][index]
    key, channels = case["key"], case["kwargs"]["in_channels"]
    model = HybridEncoder(**case["kwargs"])
    assert_names_and_shapes(model, golden_manifest(golden, key))
    assert count_trained(model) == count_learnable(model) == golden[f"{key}.n_params"]
    load_golden_weights(model, f"rtdetr.encoder.{key}.")
    model.eval()
    shapes = [(case["batch"], c, *hw) for c, hw in zip(channels, case["feat_hw"], strict=True)]

    with jt.no_grad():
        fused = model(
            [
                jt.array(golden_input(f"rtdetr.encoder.{key}.feat{i}", shape))
                for i, shape in enumerate(shapes)
            ]
        )

    for i, x in enumerate(fused):
        check_sample(x, golden, f"{key}.out.{i}", 1e-5)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"in_channels": (128, 256, 512), "expansion": 0.5}, 4_965_120),
        ({"expansion": 0.5}, 5_653_248),
        ({}, 11_950_848),
        ({"hidden_dim": 384, "dim_feedforward": 2048}, 26_577_536),
    ],
    ids=["r18 and r34", "r50_m", "r50", "r101"],
)
def test_published_sizes_have_the_published_number_of_parameters(
    arguments: dict[str, Any], count: int
) -> None:
    assert count_learnable(HybridEncoder(**arguments)) == count


@pytest.mark.parametrize("before", [False, True])
def test_attention_block_equals_the_recorded_one(golden: dict[str, Any], before: bool) -> None:
    layer = EncoderLayer(16, 2, 32, normalize_before=before)
    load_golden_weights(layer, "rtdetr.aifi.")
    layer.eval()

    tokens = jt.array(golden_input("rtdetr.aifi.src", (2, 20, 16)))
    x = layer(tokens, jt.array(position_embedding(5, 4, 16)))

    check_sample(x, golden, f"aifi.prenorm_{int(before)}", 1e-5)


def test_dropout_acts_in_training_only() -> None:
    tokens, position = jt.randn(2, 20, 16), jt.array(position_embedding(5, 4, 16))
    plain, dropping = EncoderLayer(16, 2, 32), EncoderLayer(16, 2, 32, dropout=0.5)
    load_golden_weights(plain)
    load_golden_weights(dropping)

    def distance() -> float:
        return float(np.abs((dropping(tokens, position) - plain(tokens, position)).numpy()).max())

    assert distance() > 0.1
    dropping.eval()
    assert distance() < 1e-6


def test_attention_blocks_start_alike_and_share_nothing() -> None:
    arguments = {"use_encoder_idx": (1, 2), "num_encoder_layers": 2, "nhead": 2}
    model = HybridEncoder((4, 4, 4), hidden_dim=16, dim_feedforward=8, **arguments)
    layers = [layer for stack in model.encoder for layer in stack.layers]

    assert len(layers) == 4
    assert len({id(tensor) for layer in layers for tensor in layer.parameters()}) == 4 * 12
    for layer in layers[1:]:
        for own, first in zip(layer.parameters(), layers[0].parameters(), strict=True):
            np.testing.assert_array_equal(own.numpy(), first.numpy())
    assert float(layers[0].linear1.weight.numpy().std()) > 0


def test_upsampling_repeats_cells(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 2, 5)).astype(np.float32)

    np.testing.assert_array_equal(upsample(jt.array(x)).numpy(), x.repeat(2, 2).repeat(2, 3))


def test_maps_that_do_not_halve_are_refused() -> None:
    model = HybridEncoder((4, 4, 4), hidden_dim=16, nhead=2)
    sizes = [(10, 12), (5, 6), (3, 3)]

    with pytest.raises(ValueError, match=r"10x12, 5x6, 3x3 .* multiples of 32"):
        model([jt.zeros((1, 4, *size)) for size in sizes])
    with pytest.raises(ValueError, match="takes 3 maps, got 2"):
        model([jt.zeros((1, 4, *size)) for size in sizes[:2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feat_strides": (8, 16)}, r"feat_strides .* 3 maps, got \[8, 16\]"),
        ({"use_encoder_idx": (3,)}, r"maps from 0 to 2, got \[3\]"),
        ({"num_encoder_layers": -1}, "num_encoder_layers must be 0 or more, got -1"),
        ({"nhead": 7}, "heads must divide the 256 features, got 7"),
        ({"hidden_dim": 6, "nhead": 2}, "hidden_dim must be a multiple of 4, got 6"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridEncoder(**arguments)
