"""The decoder and its parts; the comparison with recorded decoders is the audit's."""

from __future__ import annotations

import math
from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.commands.audit_rtdetr import audit_rtdetr
from segtasks.golden import golden_input
from segtasks.models.rtdetr.decoder import RTDETRTransformer
from segtasks.models.rtdetr.deformable import DeformableAttention
from segtasks.models.rtdetr.selection import best_tokens, gather_tokens
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    assert_names_and_shapes,
    load_golden_weights,
    read_golden,
)


def test_every_stage_equals_the_recorded_decoders() -> None:
    checks = list(audit_rtdetr(REFERENCE / "decoder_small.npz", tolerance=10))

    assert [check for check in checks if not check.passed] == []
    trained = {check.name: check for check in checks if ".train." in check.name}
    assert sum("gradients that must not be" in name for name in trained) == 3
    # The audit's limit for gradients is wider; what was measured is 3e-6.
    assert all(check.relative < 1e-4 for name, check in trained.items() if "grad" in name)


@pytest.fixture(scope="module")
def attention() -> dict[str, Any]:
    return read_golden(REFERENCE / "deform_attn.npz")


@pytest.mark.parametrize(("numbers", "levels"), [(4, 1), (2, 3)])
def test_deformable_attention_equals_the_recording(
    attention: dict, numbers: int, levels: int
) -> None:
    prefix = "rtdetr.msda_module."
    module = DeformableAttention(32, heads=4, levels=3, points=4)
    names, shapes = attention["module.sd_keys"], attention["module.sd_shapes"]
    assert_names_and_shapes(module, dict(zip(names, map(tuple, shapes), strict=True)))
    load_golden_weights(module, prefix)
    reference = golden_input(f"{prefix}ref{numbers}", (2, 6, levels, numbers))

    output = module(
        jt.array(golden_input(f"{prefix}query", (2, 6, 32))),
        jt.array(reference).sigmoid(),
        jt.array(golden_input(f"{prefix}value", (2, 159, 32))),
        [tuple(shape) for shape in attention["spatial_shapes"].tolist()],
    )

    np.testing.assert_allclose(output.numpy(), attention[f"module.out_ref{numbers}"], atol=1e-5)


def test_attention_starts_as_the_official_one(attention: dict) -> None:
    module = DeformableAttention(32, heads=4, levels=3, points=4)

    # Cosines of right angles are rounded differently, to 5e-7 at most.
    np.testing.assert_allclose(
        module.sampling_offsets.bias.numpy(), attention["init.sampling_offsets_bias"], atol=1e-6
    )
    for zero in (
        module.sampling_offsets.weight,
        module.attention_weights.weight,
        module.attention_weights.bias,
        module.value_proj.bias,
        module.output_proj.bias,
    ):
        assert np.abs(zero.numpy()).max() == 0
    # Xavier's bound for 32 to 32 features.
    assert np.abs(module.value_proj.weight.numpy()).max() == pytest.approx(
        math.sqrt(6 / 64), rel=0.02
    )


def _small(**options: Any) -> RTDETRTransformer:
    arguments = {
        "num_classes": 5,
        "hidden_dim": 32,
        "num_queries": 24,
        "feat_channels": (16, 16, 16),
        "nhead": 4,
        "num_decoder_layers": 3,
        "dim_feedforward": 48,
    }
    return RTDETRTransformer(**{**arguments, **options})


def test_heads_start_at_rare_classes_and_unmoved_boxes() -> None:
    model = _small(learnt_init_query=True)

    for head in (model.enc_score_head, *model.dec_score_head):
        np.testing.assert_allclose(head.bias.numpy(), -math.log(99), rtol=1e-6)
        assert np.abs(head.weight.numpy()).max() > 0
    for head in (model.enc_bbox_head, *model.dec_bbox_head):
        assert np.abs(head.layers[2].weight.numpy()).max() == 0
        assert np.abs(head.layers[2].bias.numpy()).max() == 0
        assert np.abs(head.layers[1].weight.numpy()).max() > 0
    # Xavier's bounds: sqrt(6 / (rows + columns)); PyTorch's default for linear layers is smaller.
    for weight, sides in (
        (model.enc_output[0].weight, 64),
        (model.query_pos_head.layers[0].weight, 68),
        (model.tgt_embed.weight, 56),
    ):
        assert np.abs(weight.numpy()).max() == pytest.approx(math.sqrt(6 / sides), rel=0.05)
    embedding = model.denoising_class_embed.weight.numpy()
    assert 0.8 < embedding[:5].std() < 1.2
    assert np.abs(embedding[5]).max() == 0


def test_all_layers_start_alike_but_are_tensors_of_their_own() -> None:
    first, second, third = _small().decoder.layers

    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        np.testing.assert_array_equal(a.numpy(), c.numpy())
    first.linear1.weight.assign(jt.zeros((48, 32)))
    assert np.abs(second.linear1.weight.numpy()).max() > 0


def test_the_best_tokens_come_in_order_and_ties_by_position() -> None:
    scores = np.float32([[1, 3, 3, 2, 3, 0], [5, 5, 5, 5, 5, 5]])

    assert best_tokens(jt.array(scores), 4).numpy().tolist() == [[1, 2, 4, 3], [0, 1, 2, 3]]
    assert best_tokens(jt.array(scores), 6).numpy().tolist()[0] == [1, 2, 4, 3, 0, 5]


def test_picking_agrees_with_a_stable_sort(rng: np.random.Generator) -> None:
    scores = np.round(rng.standard_normal((3, 500)), 1).astype(np.float32)

    order = np.argsort(-scores, axis=1, kind="stable")[:, :60]

    np.testing.assert_array_equal(best_tokens(jt.array(scores), 60).numpy(), order)


def test_scores_that_are_no_numbers_still_give_tokens() -> None:
    index = best_tokens(jt.array(np.full((2, 40), np.nan, np.float32)), 30).numpy()

    assert [len(set(row)) for row in index.tolist()] == [30, 30]
    assert index.min() >= 0
    assert index.max() < 40


def test_gathered_tokens_pass_their_gradient_to_where_they_came_from() -> None:
    tokens = jt.array(np.arange(24, dtype=np.float32).reshape(2, 4, 3))
    index = jt.array(np.int32([[3, 0], [1, 1]]))

    picked = gather_tokens(tokens, index)
    gradient = jt.grad(picked.sum(), tokens).numpy()

    assert picked.numpy()[:, :, 0].tolist() == [[9, 0], [15, 15]]
    assert gradient[:, :, 0].tolist() == [[1, 0, 0, 1], [0, 2, 0, 0]]
    shared = gather_tokens(tokens[:1], index)
    assert shared.numpy()[:, :, 0].tolist() == [[9, 0], [3, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "at least 1, got 0, 24"),
        ({"num_queries": 0}, "at least 1, got 5, 0"),
        ({"eval_idx": 3}, "eval_idx 3 is none of the 3 layers"),
        ({"eval_idx": -4}, "eval_idx -4 is none of the 3 layers"),
        ({"num_levels": 2}, "num_levels is 2 for 3 maps"),
        ({"nhead": 5}, "heads must divide the 32 features, got 5"),
        ({"act": "tanh"}, "'tanh'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small(**options)


def test_more_queries_than_tokens_are_refused() -> None:
    maps = [jt.zeros((1, 16, side, side)) for side in (4, 2, 1)]

    with pytest.raises(ValueError, match="24 queries are to be picked from 21 tokens"):
        _small()(maps)
    with pytest.raises(ValueError, match="4 maps for 3 levels"):
        _small()([*maps, maps[0]])
