"""Parameter groups chosen by regular expressions over the parameters' names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jittor as jt

#: Name of the last group, of what no pattern finds.
REST = "rest"
_SHOWN = 3


class ParameterPatternError(ValueError):
    """Patterns do not fit a model; the message names the pattern and the parameter."""


@dataclass(frozen=True)
class ParameterPattern:
    """The parameters whose name a regular expression finds something in, and how they train.

    Args:
        pattern: A regular expression, as `re.search` takes it: `backbone` finds all names that
            contain it, `^(?=.*backbone)(?!.*norm).*$` those with it and without `norm`.
        lr: Learning rate before the schedule's factor; default: the optimizer's.
        weight_decay: Default: the optimizer's.
        name: The group's name in logs; default: its number.
    """

    pattern: str
    lr: float | None = None
    weight_decay: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no regular expression, and rates that cannot train."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ParameterPatternError(
                f"{self.pattern!r} is no regular expression: {error}"
            ) from error
        if self.lr is not None and not self.lr > 0:
            raise ParameterPatternError(f"pattern {self.pattern!r}: lr is {self.lr}, not above 0")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ParameterPatternError(
                f"pattern {self.pattern!r}: weight_decay is {self.weight_decay}, below 0"
            )


def pattern_groups(
    parameters: Iterable[tuple[str, jt.Var]], patterns: Sequence[ParameterPattern]
) -> list[dict[str, Any]]:
    """Groups for an optimizer: one per pattern, and one of the rest where there is a rest.

    Frozen parameters and running statistics are left out, so that nothing moves them.

    Args:
        parameters: Names and Vars of the model; each group keeps their order.
        patterns: At most one of them may find a parameter.

    Returns:
        Dicts with `name`, `params` and, where the pattern gives them, `lr` and `weight_decay`.

    Raises:
        ParameterPatternError: Two patterns find one parameter, or one finds none.
    """
    trained = {name: value for name, value in parameters if not value.is_stop_grad()}
    members: list[list[str]] = [[] for _ in patterns]
    rest: list[str] = []
    for name in trained:
        found = [i for i, one in enumerate(patterns) if re.search(one.pattern, name)]
        if len(found) > 1:
            raise ParameterPatternError(
                f"the parameter {name} is in two groups: {patterns[found[0]].pattern!r} and "
                f"{patterns[found[1]].pattern!r} both find it; make one of them narrower"
            )
        (members[found[0]] if found else rest).append(name)
    groups = []
    for index, (one, names) in enumerate(zip(patterns, members, strict=True)):
        if not names:
            raise ParameterPatternError(_found_nothing(one.pattern, list(trained)))
        options = {"lr": one.lr, "weight_decay": one.weight_decay}
        groups.append(
            {"name": one.name or str(index), "params": [trained[name] for name in names]}
            | {option: value for option, value in options.items() if value is not None}
        )
    if rest:
        groups.append({"name": REST, "params": [trained[name] for name in rest]})
    return groups


def _found_nothing(pattern: str, names: list[str]) -> str:
    """Name the parameters whose names are most like the words of a pattern."""
    words = [word for word in re.findall(r"\w+", pattern) if len(word) > 1]
    parts = {part for name in names for part in name.split(".")}
    near = [m for w in words for m in difflib.get_close_matches(w, sorted(parts), 1)]
    alike = [name for name in names if not set(near).isdisjoint(name.split("."))]
    shown = ", ".join((alike or names)[:_SHOWN])
    return (
        f"the pattern {pattern!r} finds none of the {len(names)} trained parameters; names are "
        f"such as {shown}"
    )
