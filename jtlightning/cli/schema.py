"""What a configuration may hold: the arguments of the classes that it names."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser

from jtlightning.cli.config import NODE_KEYS, PARTS, Config, ConfigError, closest, suggestion

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SIMPLE = {"int", "float", "bool", "None"}
_CONTAINERS = {"list", "tuple", "dict", "set", "Sequence", "Mapping", "Union", "Optional"}
SECTIONS = ("trainer", "data", "task", "ckpt_path")


def known_arguments(target: Callable[..., Any]) -> list[str]:
    """Names of the arguments of a class or function, through `**kwargs` to where they end up."""
    return _add_arguments(ArgumentParser(exit_on_error=False), target)


def _add_arguments(
    parser: ArgumentParser, target: Callable[..., Any], skip: set[str | int] | None = None
) -> list[str]:
    add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    return [name.split(".")[0] for name in add(target, skip=skip, fail_untyped=False)]


# ---- import by name ---------------------------------------------------------------------------


def import_object(class_path: Any, key: str, where: str) -> Callable[..., Any]:
    """Import what a `class_path` names.

    An error inside the imported file is the file's own and passes through.

    Raises:
        ConfigError: No such module or name; the message has the nearest ones.
    """
    place = f"{key} ({where})"
    if not isinstance(class_path, str) or "." not in class_path.strip("."):
        raise ConfigError(
            f"{place} is {class_path!r}; write module and name, such as my_callbacks.MyCallback"
        )
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise  # the module is there, but something that it imports is not
        own, others = _modules_beside(missing)
        hint = suggestion(missing, own) or suggestion(missing, others)
        raise ConfigError(
            f"{place} is {class_path}, but there is no module {missing}{hint}; modules are looked "
            f"for in {Path.cwd()}, on PYTHONPATH and among the installed packages"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        hint = suggestion(name, _public_names(module))
        raise ConfigError(f"{place} is {class_path}, but {module_name} has no {name}{hint}")
    return found


def _modules_beside(module_name: str) -> tuple[list[str], list[str]]:
    """Modules that may have been meant: the likelier ones, and the rest."""
    parent, _, _ = module_name.rpartition(".")
    if parent:
        folders = list(getattr(importlib.import_module(parent), "__path__", []))
        return [f"{parent}.{info.name}" for info in pkgutil.iter_modules(folders)], []
    return [info.name for info in pkgutil.iter_modules([str(Path.cwd())])], list(sys.modules)


def _public_names(module: ModuleType) -> list[str]:
    # __all__ too: lazy packages have names that dir() does not show
    names = {*dir(module), *getattr(module, "__all__", ())}
    return sorted(name for name in names if not name.startswith("_"))


# ---- keys -------------------------------------------------------------------------------------


def nodes(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `class_path` in `value`, outermost first, with its dotted key."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield key, value
        for name, child in value.items():
            yield from nodes(child, f"{key}.{name}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from nodes(child, f"{key}.{index}")


def check_keys(config: Config, trainer_class: Callable[..., Any]) -> None:
    """Refuse keys that nothing takes.

    Raises:
        ConfigError: Every unknown key with its full path, origin, and the nearest right key.
    """
    sections: dict[str, list[str]] = {"": list(SECTIONS)}
    given: dict[str, dict[str, Any]] = {"": config.values}
    for part in ("trainer", *PARTS):
        value = config.values.get(part) or {}
        if not isinstance(value, dict):
            raise ConfigError(
                f"{part} is {value!r} ({config.where(part)}); it must be a section with keys"
            )
        sections[part] = list(NODE_KEYS)
        given[part] = value
    sections["trainer"] = known_arguments(trainer_class)
    for part in ("trainer", *PARTS):
        for key, node in nodes(config.values.get(part), part):
            target = import_object(
                node["class_path"], f"{key}.class_path", config.where(f"{key}.class_path")
            )
            arguments = node.get("init_args") or {}
            if not isinstance(arguments, dict):
                raise ConfigError(
                    f"{key}.init_args is {arguments!r} ({config.where(f'{key}.init_args')}); it "
                    "must be a section with the arguments of the class"
                )
            sections |= {key: list(NODE_KEYS), f"{key}.init_args": known_arguments(target)}
            given |= {key: node, f"{key}.init_args": arguments}
    known = [f"{path}.{name}".lstrip(".") for path in sections for name in sections[path]]
    unknown = [
        _unknown_key(f"{path}.{name}".lstrip("."), config, known)
        for path, section in given.items()
        for name in section
        if name not in sections[path]
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))


def _unknown_key(key: str, config: Config, known: list[str]) -> str:
    parent, _, name = key.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    similar = closest(name, [other.rpartition(".")[2] for other in siblings])
    if similar is not None:
        hint = f"; did you mean {f'{parent}.{similar}'.lstrip('.')}?"
    elif elsewhere:  # the right name in the wrong section
        hint = f"; did you mean {elsewhere[0]}?"
    else:
        hint = f"; known there: {', '.join(sorted(o.rpartition('.')[2] for o in siblings))}"
    return f"unknown key {key} ({config.where(key)}){hint}"


# ---- values -----------------------------------------------------------------------------------


def explain(target: Callable[..., Any], arguments: dict[str, Any], key: str, config: Config) -> str:
    """Which arguments of `target` are missing or of a wrong type, one line each; '' for none."""
    problems = []
    for name, value in arguments.items():
        parser = ArgumentParser(exit_on_error=False)
        others: set[str | int] = {*known_arguments(target)}
        others.discard(name)
        _add_arguments(parser, target, others)
        try:
            parser.parse_object({name: copy.deepcopy(value)})  # parsing changes it
        except ArgumentError:
            problems.append(_explain_value(target, name, value, f"{key}.{name}", config))
    parameters = _parameters(target).values()
    problems += [
        f"{key}.{p.name} is missing; {_name(target)} needs it ({_annotation(p.annotation)})"
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in arguments
    ]
    return "\n".join(problems)


def _explain_value(
    target: Callable[..., Any], name: str, value: Any, key: str, config: Config
) -> str:
    parameter = _parameters(target).get(name)
    wanted = _annotation(parameter.annotation) if parameter is not None else "another type"
    children = value if isinstance(value, list) else [value]
    for index, child in enumerate(children):
        path = f"{key}.{index}" if isinstance(value, list) else key
        if isinstance(child, str) and _CLASS_PATH.fullmatch(child) and _wants_object(wanted):
            child = {"class_path": child}
        if isinstance(child, dict) and "class_path" in child:
            inner = import_object(child["class_path"], f"{path}.class_path", config.where(path))
            problem = explain(inner, child.get("init_args") or {}, f"{path}.init_args", config)
            if problem:
                return problem
    return f"{key} is {_short(value)} ({config.where(key)}), but {_name(target)} takes {wanted}"


def _wants_object(annotation: str) -> bool:
    words = {word for word in re.findall(r"\w+", annotation) if word not in _CONTAINERS}
    return bool(words - _SIMPLE) and not words & {"str", "Any", "Literal", "any"}


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # a type that is imported under TYPE_CHECKING only
        return inspect.signature(target).parameters


def _short(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"])
    return repr(value)


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", str(target))


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return "any value"
    if isinstance(annotation, str):
        return annotation
    if inspect.isclass(annotation) and not hasattr(annotation, "__origin__"):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
