from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.models.rtdetr.backbone import PResNet, average_pool
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

SLOW = pytest.mark.slow
KEYS = ("r18a", "r18d", "r34b", "r50a", "r50b", "r50c", "r50d", "r101d")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "backbone_variants.npz")


def build(golden: dict[str, Any], key: str) -> PResNet:
    case = next(case for case in golden["cases"] if case["key"] == key)
    names = ("depth", "variant", "return_idx", "freeze_at", "freeze_norm")
    return PResNet(**{name: case[name] for name in names})


@pytest.mark.parametrize("key", KEYS)
def test_tensors_have_the_official_names_and_the_recorded_counts(
    golden: dict[str, Any], key: str
) -> None:
    case = next(case for case in golden["cases"] if case["key"] == key)
    model = build(golden, key)

    assert_names_and_shapes(model, golden_manifest(golden, key))
    assert count_learnable(model) == golden[f"{key}.n_params"]
    assert count_trained(model) == golden[f"{key}.n_trainable"]
    assert (model.out_channels, model.out_strides) == (case["out_channels"], case["out_strides"])


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=SLOW if key in KEYS[2:5] + KEYS[7:] else ()) for key in KEYS]
)
def test_maps_equal_the_recorded_ones(golden: dict[str, Any], key: str) -> None:
    case = next(case for case in golden["cases"] if case["key"] == key)
    model = build(golden, key)
    load_golden_weights(model, f"rtdetr.backbone.{key}.")
    model.eval()

    with jt.no_grad():
        maps = model(jt.array(golden_input(f"rtdetr.backbone.{key}.input", case["input"])))

    assert len(maps) == len(case["return_idx"])
    for i, x in enumerate(maps):
        check_sample(x, golden, f"{key}.out.{i}", 1e-5)


@pytest.mark.parametrize("key", ["r50c", "r101d"])
def test_what_is_frozen_stays_so_when_the_mode_changes(golden: dict[str, Any], key: str) -> None:
    recorded = dict(zip(golden[f"{key}.sd_keys"], golden[f"{key}.sd_requires_grad"], strict=True))
    model = build(golden, key)
    model.eval()
    model.train()

    for name, tensor in model.named_parameters():
        assert (not tensor.is_stop_grad()) == recorded[name], name


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 4), (5, 7)])
def test_average_pooling_counts_only_cells_inside(
    size: tuple[int, int], rng: np.random.Generator
) -> None:
    x = rng.standard_normal((2, 3, *size)).astype(np.float32)
    h, w = (side + 1 for side in size)
    expected = [
        [x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in range(0, w - 1, 2)]
        for i in range(0, h - 1, 2)
    ]

    pooled = average_pool(jt.array(x)).numpy()

    np.testing.assert_allclose(pooled, np.moveaxis(expected, (0, 1), (2, 3)), atol=1e-6)


def test_any_image_from_seven_pixels_on_has_maps() -> None:
    model = PResNet(18, return_idx=(0, 3), freeze_norm=False)
    model.eval()

    assert [x.shape[2:] for x in model(jt.zeros((1, 3, 7, 41)))] == [[2, 11], [1, 2]]
    with pytest.raises(ValueError, match="6x41 pixels is too small"):
        model(jt.zeros((1, 3, 6, 41)))


def test_fewer_stages_are_built_on_request() -> None:
    model = PResNet(18, num_stages=2, return_idx=(1,))

    assert len(model.res_layers) == 2
    assert (model.out_channels, model.out_strides) == ([128], [8])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth must be one of 18, 34, 50, 101, got 19"),
        ({"depth": 18, "variant": "e"}, "variant must be \"a\".*got 'e'"),
        ({"depth": 18, "num_stages": 5}, "num_stages must be from 1 to 4, got 5"),
        ({"depth": 18, "num_stages": 2}, r"stages from 0 to 1, got \[0, 1, 2, 3\]"),
        ({"depth": 18, "return_idx": ()}, r"return_idx .* got \[\]"),
        ({"depth": 18, "freeze_at": 5}, "freeze_at must be from -1 to 4, got 5"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PResNet(**arguments)
