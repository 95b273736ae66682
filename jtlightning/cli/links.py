"""Values that one section takes from another, such as the model's number of classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

from jtlightning.cli.config import INSIDE, Config, ConfigError
from jtlightning.cli.schema import import_object, known_arguments


class Link(NamedTuple):
    """`target` is filled from an attribute of the data module once that is made.

    Where the class at the target has no such argument, the link is not used. A value that the
    user gives for the target stays, but has to agree with the data.

    Attributes:
        source: Such as `data.num_classes`.
        target: Such as `task.init_args.model.init_args.num_classes`.
        placeholder: A value of the target's type, for checking the rest before there is data.
    """

    source: str
    target: str
    placeholder: Any = 1


def arguments_at(config: Config, target: str) -> dict[str, Any] | None:
    """The `init_args` that `target` belongs to, or None where nothing takes it."""
    owner, _, name = target.rpartition(".init_args.")
    parent, _, last = owner.rpartition(".")
    holder = config.get(parent) if parent else config.values
    node = holder.get(last) if isinstance(holder, dict) else None
    if isinstance(node, str):  # a class_path without arguments
        node = holder[last] = {"class_path": node}
    if not isinstance(node, dict) or "class_path" not in node:
        return None
    where = config.where(owner)
    if name not in known_arguments(import_object(node["class_path"], f"{owner}.class_path", where)):
        return None
    node["init_args"] = node.get("init_args") or {}
    return node["init_args"]


def hold_places(config: Config, links: Sequence[Link]) -> tuple[Config, list[Link]]:
    """A copy in which open targets hold placeholders, and the links that are open."""
    copied = copy.deepcopy(config)
    is_open = []
    for link in links:
        arguments = arguments_at(copied, link.target)
        name = link.target.rpartition(".")[2]
        if arguments is not None and name not in arguments:
            arguments[name] = link.placeholder
            is_open.append(link)
    return copied, is_open


def fill(config: Config, links: Sequence[Link], data: Any) -> None:
    """Fill the open targets from `data`, and compare the others with it.

    Raises:
        ConfigError: The data lacks the attribute, or says something else than the configuration.
    """
    for link in links:
        arguments = arguments_at(config, link.target)
        if arguments is None:
            continue
        name = link.target.rpartition(".")[2]
        attribute = link.source.rpartition(".")[2]
        kind = type(data).__name__
        if name not in arguments:
            if not hasattr(data, attribute):
                raise ConfigError(
                    f"{link.target} is missing, and {kind} has no {attribute} to take it from"
                )
            arguments[name] = getattr(data, attribute)
        elif hasattr(data, attribute) and str(arguments[name]) != str(getattr(data, attribute)):
            where = config.where(link.target)
            remedy = f"leave {link.target} out, it is taken from the data"
            if where.startswith(INSIDE):  # what was trained cannot be left out
                remedy = f"{link.source} has to be {arguments[name]} for this checkpoint"
            raise ConfigError(
                f"{link.target} is {arguments[name]} ({where}), but {link.source} is "
                f"{getattr(data, attribute)} ({kind}); {remedy}"
            )
