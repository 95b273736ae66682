from __future__ import annotations

import jittor as jt
import numpy as np

from segtasks.golden import golden_input
from segtasks.models.rtdetr.deploy import merge_repvgg
from segtasks.models.rtdetr.encoder import HybridEncoder, RepVGGBlock
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    check_sample,
    count_learnable,
    load_golden_weights,
    read_golden,
)


def test_merged_block_equals_the_recorded_one_and_its_branches_are_gone() -> None:
    golden = read_golden(REFERENCE / "hybrid_encoder.npz")
    block = RepVGGBlock(6, "silu")
    load_golden_weights(block, "rtdetr.repvgg.")
    block.eval()
    x = jt.array(golden_input("rtdetr.repvgg.x", (2, 6, 9, 11)))
    check_sample(block(x), golden, "repvgg.out", 1e-5)

    assert merge_repvgg(block) == 1

    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "conv.bias"]
    check_sample(block.conv.weight, golden, "repvgg.kernel", 1e-6)
    check_sample(block.conv.bias, golden, "repvgg.bias", 1e-6)
    check_sample(block(x), golden, "repvgg.deploy_out", 1e-5)


def test_merged_encoder_computes_the_same_with_fewer_parameters() -> None:
    golden = read_golden(REFERENCE / "hybrid_encoder.npz")
    case = golden["cases"][0]
    model = HybridEncoder(**case["kwargs"])
    load_golden_weights(model, "rtdetr.encoder.a.")
    model.eval()
    maps = [
        jt.array(golden_input(f"rtdetr.encoder.a.feat{i}", (2, channels, *size)))
        for i, (channels, size) in enumerate(
            zip(case["kwargs"]["in_channels"], case["feat_hw"], strict=True)
        )
    ]

    assert merge_repvgg(model) == 12
    assert merge_repvgg(model) == 0

    for i, x in enumerate(model(maps)):
        check_sample(x, golden, f"a.out.{i}", 1e-5)
    # Per block of 8 channels: a 1x1 kernel and the four tensors of its norms, for one bias.
    assert count_learnable(model) == golden["a.n_params"] - 12 * (8 * 8 + 4 * 8 - 8)


def test_published_sizes_shrink_by_the_published_number_of_parameters() -> None:
    for arguments, dropped in (({"expansion": 0.5}, 201_216), ({}, 795_648)):
        model = HybridEncoder(**arguments)
        before = count_learnable(model)
        merge_repvgg(model)
        assert before - count_learnable(model) == dropped


def test_what_takes_gradients_does_so_after_merging() -> None:
    trained, evaluated = RepVGGBlock(6, "silu"), RepVGGBlock(6, "silu")
    evaluated.eval()
    for block, frozen in ((trained, False), (evaluated, True)):
        merge_repvgg(block)
        assert [tensor.is_stop_grad() for tensor in block.parameters()] == [frozen, frozen]
        assert block.conv.is_training() != frozen
        assert np.isfinite(block.conv.weight.numpy()).all()
