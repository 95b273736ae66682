from __future__ import annotations

from collections.abc import Callable

import pytest

from segtasks.models import dformer
from segtasks.models.layers import BatchNorm2d

#: Trainable parameters of the whole model, entries of its state dict and the sizes of the official
#: groups, with and without decay; counted on the official code with 40 classes.
PUBLISHED = [
    (dformer.dformer_tiny, 6_003_912, 692, (239, 262)),
    (dformer.dformer_small, 18_747_144, 552, (187, 210)),
    (dformer.dformer_base, 29_524_840, 1028, (365, 388)),
    (dformer.dformer_large, 39_030_392, 1028, (365, 388)),
    (dformer.dformerv2_s, 26_686_018, 802, (273, 412)),
    (dformer.dformerv2_b, 53_923_050, 1268, (417, 620)),
    (dformer.dformerv2_l, 95_550_074, 1268, (417, 620)),
]


@pytest.mark.parametrize(("build", "parameters", "entries", "groups"), PUBLISHED)
def test_size_and_official_groups_are_the_published_ones(
    build: Callable[..., dformer.DFormerSegmenter],
    parameters: int,
    entries: int,
    groups: tuple[int, int],
) -> None:
    model = build(40)

    trainable = [p for _, p in model.named_parameters() if not p.is_stop_grad()]
    official = dformer.parameter_groups(model, "official", 0.01)
    everything = dformer.parameter_groups(model, "all", 0.01)

    assert sum(p.numel() for p in trainable) == parameters
    # The official state dict counts the batches of each batch norm besides.
    norms = [m for _, m in model.named_modules() if isinstance(m, BatchNorm2d)]
    assert len(list(model.named_parameters())) + len(norms) == entries
    assert tuple(len(group["params"]) for group in official) == groups
    assert [group["weight_decay"] for group in official] == [0.01, 0.0]
    taken = [id(p) for group in everything for p in group["params"]]
    assert sorted(taken) == sorted(map(id, trainable))


def test_scales_and_one_axis_tensors_do_not_decay_when_all_are_trained() -> None:
    model = dformer.dformerv2_b(5)
    names = {id(p): name for name, p in model.named_parameters()}

    decay, no_decay = dformer.parameter_groups(model, "all", 0.01)

    decaying = {names[id(p)] for p in decay["params"]}
    assert "backbone.layers.2.blocks.0.ffn.fc1.weight" in decaying
    fixed = {names[id(p)] for p in no_decay["params"]}
    assert {
        "backbone.layers.2.blocks.0.gamma_1",
        "backbone.layers.0.blocks.0.Geo.weight",
        "backbone.extra_norms.0.weight",
        "decode_head.conv_seg.bias",
    } <= fixed


def test_drop_path_grows_linearly_from_zero() -> None:
    model = dformer.dformer_tiny(5, drop_path=0.24)

    rates = [block.drop_path.rate for stage in model.backbone.stages for block in stage]

    assert rates == pytest.approx([0.02 * k for k in range(13)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": 5, "decoder": "fcn"}, 'decoder must be "ham" or "mlp", got \'fcn\''),
        ({"num_classes": 5, "drop_path": 1.0}, r"drop path rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dformer.dformer_tiny(**arguments)


def test_wrong_group_mode_is_named() -> None:
    with pytest.raises(ValueError, match="got 'some'"):
        dformer.parameter_groups(dformer.dformer_tiny(5), "some")


def test_depth_of_another_size_is_an_error() -> None:
    import jittor as jt

    model = dformer.dformer_tiny(5)

    with pytest.raises(ValueError, match=r"\(1, 3, 32, 40\) beside image \(1, 3, 32, 32\)"):
        model(jt.zeros((1, 3, 32, 32)), jt.zeros((1, 3, 32, 40)))
