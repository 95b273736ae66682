from __future__ import annotations

from collections.abc import Callable

import pytest

from segtasks.models import rtdetr
from segtasks.models.layers import BatchNorm2d
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    assert_names_and_shapes,
    count_learnable,
    count_trained,
    golden_manifest,
    read_golden,
)

#: Of the official code for 80 classes: parameters in all, those trained, entries of the state dict
#: and numbers in it, and parameters after merging for deployment.
PUBLISHED = [
    (rtdetr.rtdetr_r18, 20_184_464, 20_184_464, 533, 20_209_749, 19_983_248),
    (rtdetr.rtdetr_r34, 31_441_668, 31_441_668, 659, 31_474_393, 31_240_452),
    (rtdetr.rtdetr_r50_m, 36_593_772, 36_565_260, 760, 36_715_674, 36_392_556),
    (rtdetr.rtdetr_r50, 42_891_372, 42_862_860, 736, 43_019_414, 42_095_724),
    (rtdetr.rtdetr_r101, 76_556_268, 76_527_756, 991, 76_798_742, 74_772_972),
]
Builder = Callable[..., rtdetr.RTDETR]


@pytest.mark.parametrize(("build", "total", "trained", "entries", "numbers", "merged"), PUBLISHED)
def test_size_is_the_published_one(
    build: Builder, total: int, trained: int, entries: int, numbers: int, merged: int
) -> None:
    model = build()

    assert count_learnable(model) == total
    assert count_trained(model) == trained
    # The official state dict counts the batches of each batch norm that is not frozen.
    counters = sum(isinstance(m, BatchNorm2d) for m in model.modules())
    assert len(list(model.named_parameters())) + counters == entries
    assert sum(t.numel() for t in model.parameters()) + counters == numbers


@pytest.mark.slow
@pytest.mark.parametrize(("build", "total", "trained", "entries", "numbers", "merged"), PUBLISHED)
def test_merging_leaves_the_published_number(
    build: Builder, total: int, trained: int, entries: int, numbers: int, merged: int
) -> None:
    model = build()

    assert rtdetr.merge_repvgg(model) == 12
    assert count_learnable(model) == merged


@pytest.mark.parametrize(
    ("build", "recording"),
    [
        (rtdetr.rtdetr_r18, "model_r18vd_256x320"),
        (rtdetr.rtdetr_r50, "model_r50vd_256x320"),
    ],
)
def test_names_and_shapes_are_the_official_ones(build: Builder, recording: str) -> None:
    golden = read_golden(REFERENCE / f"{recording}.npz")

    model = build()

    assert_names_and_shapes(model, golden_manifest(golden))
    flags = dict(zip(golden["sd_keys"], golden["sd_requires_grad"].tolist(), strict=True))
    for name, tensor in model.named_parameters():
        assert tensor.is_stop_grad() != flags[name], name


def test_arguments_reach_the_decoder_and_the_backbone() -> None:
    model = rtdetr.rtdetr_r50_m(
        7, 30, num_denoising=0, label_noise_ratio=0.1, box_noise_scale=0.2, freeze_norm=False
    )

    assert model.num_classes == model.decoder.num_classes == 7
    assert model.decoder.num_queries == 30
    assert model.decoder.denoising_class_embed is None
    assert model.decoder.denoising.label_noise == 0.1
    assert model.decoder.denoising.box_noise == 0.2
    assert model.decoder.decoder.eval_index == 2  # the official one answers from its third layer
    assert rtdetr.rtdetr_r50().decoder.decoder.eval_index == 5
    # Weights and biases of norms over 128 channels in the stem and 26,496 in the stages.
    full = rtdetr.rtdetr_r50(freeze_norm=False)
    assert count_learnable(full) == 42_891_372 + 2 * (128 + 26_496)
    assert count_trained(rtdetr.rtdetr_r50(freeze_at=-1)) == 42_891_372
