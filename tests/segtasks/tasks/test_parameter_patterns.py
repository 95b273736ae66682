"""Parameter groups by pattern: the rules on a toy, and the recorded groups of every recipe."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from jittor import nn

from segtasks.tasks.parameter_patterns import (
    ParameterPattern,
    ParameterPatternError,
    pattern_groups,
)

RECORDED = Path(__file__).parents[2] / "reference" / "rtdetr" / "optim_groups.npz"
RECIPES = ("r18vd", "r34vd", "r50vd", "r50vd_m", "r101vd")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("backbone", "neck", "head"):
            setattr(self, name, nn.Linear(2, 2))


def named(groups: list[dict], model: nn.Module) -> dict[str, list[str]]:
    names = {id(value): name for name, value in model.named_parameters()}
    return {group["name"]: [names[id(value)] for value in group["params"]] for group in groups}


def test_patterns_come_first_and_the_rest_last() -> None:
    toy = Toy()
    patterns = [
        ParameterPattern("^(?=.*head)(?=.*bias).*$", weight_decay=0.0),
        ParameterPattern("backbone", lr=1e-5, name="backbone"),
    ]
    groups = pattern_groups(toy.named_parameters(), patterns)
    assert named(groups, toy) == {
        "0": ["head.bias"],
        "backbone": ["backbone.weight", "backbone.bias"],
        "rest": ["neck.weight", "neck.bias", "head.weight"],
    }
    options = [{k: v for k, v in g.items() if k not in ("name", "params")} for g in groups]
    assert options == [{"weight_decay": 0.0}, {"lr": 1e-5}, {}]


def test_frozen_parameters_are_left_out() -> None:
    toy = Toy()
    toy.backbone.weight.stop_grad()
    toy.neck.weight.stop_grad()
    groups = pattern_groups(toy.named_parameters(), [ParameterPattern("backbone")])
    assert named(groups, toy) == {
        "0": ["backbone.bias"],
        "rest": ["neck.bias", "head.weight", "head.bias"],
    }


def test_without_a_rest_there_is_no_group_for_it() -> None:
    toy = Toy()
    (group,) = pattern_groups(toy.named_parameters(), [ParameterPattern("weight|bias")])
    assert len(group["params"]) == 6


def test_a_parameter_in_two_groups_is_named() -> None:
    patterns = [ParameterPattern("head"), ParameterPattern("bias$")]
    with pytest.raises(ParameterPatternError, match=r"head\.bias is in two groups: 'head'.*'bias"):
        pattern_groups(Toy().named_parameters(), patterns)


def test_a_pattern_that_finds_nothing_gets_the_nearest_names() -> None:
    message = (
        r"'bakbone\\\\\.' finds none of the 6 trained.*such as backbone\.weight, backbone\.bias$"
    )
    with pytest.raises(ParameterPatternError, match=message):
        pattern_groups(Toy().named_parameters(), [ParameterPattern(r"bakbone\.")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "a("}, r"'a\(' is no regular expression"),
        ({"pattern": "a", "lr": 0.0}, "'a': lr is 0.0, not above 0"),
        ({"pattern": "a", "weight_decay": -1.0}, "'a': weight_decay is -1.0, below 0"),
    ],
)
def test_patterns_without_meaning_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ParameterPatternError, match=message):
        ParameterPattern(**arguments)


class Stub:
    """What `pattern_groups` looks at of a parameter."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_stop_grad(self) -> bool:
        return False


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_official_groups_are_those_that_were_recorded(recipe: str) -> None:
    with np.load(RECORDED) as arrays:
        groups = json.loads(str(arrays[recipe]))["groups"]
    expected = [group["names"] for group in groups]
    # The first of each group, then the second ones, and so on: the model's order within a group.
    mixed = [name for row in zip_longest(*expected) for name in row if name]
    patterns = [
        ParameterPattern(g["pattern"], g["lr"], g["weight_decay"]) for g in groups if g["pattern"]
    ]
    made = pattern_groups([(name, Stub(name)) for name in mixed], patterns)
    assert [[one.name for one in group["params"]] for group in made] == expected
    for group, recorded in zip(made[:-1], groups, strict=False):
        assert (group["lr"], group["weight_decay"]) == (recorded["lr"], recorded["weight_decay"])
    assert made[-1].keys() == {"name", "params"}
