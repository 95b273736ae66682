"""Completion of the command line in a shell, as a script that the shell reads once.

What can be completed is read from the sources, without importing them: Jittor would take seconds.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import shtab

#: Where the class is whose arguments the section `trainer` holds.
_TRAINER = ("trainer/trainer.py", "Trainer")
_FILE = shtab.Choice("file")


def script(
    shell: str,
    prog: str,
    verbs: Mapping[str, str],
    tools: Mapping[str, str],
    configs: Sequence[str],
    offered: Mapping[str, Sequence[str]],
) -> str:
    """What a shell has to read to complete `prog`.

    Args:
        shell: Of `shtab.SUPPORTED_SHELLS`.
        prog: The program's name.
        verbs: The trainer's commands, with their help.
        tools: Other commands, with theirs.
        configs: Names of shipped configuration files.
        offered: Option, such as `task` or `trainer.callbacks`, to packages whose classes it takes.

    Raises:
        ValueError: A shell that is not supported.
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise ValueError(f"there is no completion for {shell!r}; choose from {known}")
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for verb, text in verbs.items():
        _add_options(commands.add_parser(verb, help=text), configs, offered)
    for tool, text in tools.items():
        commands.add_parser(tool, help=text)
    return shtab.complete(parser, shell)


def _add_options(
    parser: argparse.ArgumentParser, configs: Sequence[str], offered: Mapping[str, Sequence[str]]
) -> None:
    parser.add_argument("--config", choices=[*configs, _FILE], help="a configuration file")
    parser.add_argument("--ckpt_path", choices=["last", "best", "auto", _FILE], help="a checkpoint")
    parser.add_argument("--print_config", action="store_true", help="print everything, and stop")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    for option, packages in offered.items():
        classes = [name for package in packages for name in class_paths(package)]
        text = f"class_path for {option}"
        is_list = option == "trainer.callbacks"
        parser.add_argument(f"--{option}{'+' if is_list else ''}", choices=classes, help=text)
        parser.add_argument(f"--{option}.help", choices=classes, help=f"arguments of a {text}")
    for name, values in trainer_arguments().items():
        if f"trainer.{name}" not in offered:
            text = f"argument {name} of the trainer"
            parser.add_argument(f"--trainer.{name}", choices=values or None, help=text)


def trainer_arguments() -> dict[str, list[str]]:
    """The trainer's arguments with the values that can be listed, or no values."""
    file, class_name = _TRAINER
    tree = ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))
    (made,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    (init,) = (n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    return {argument.arg: _values(argument.annotation) for argument in init.args.kwonlyargs}


def _values(annotation: ast.expr | None) -> list[str]:
    """Values that an annotation lists: true and false for a bool, and those of a `Literal`."""
    if annotation is None:
        return []
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    texts = [
        node.value
        for node in ast.walk(annotation)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return (["true", "false"] if "bool" in names else []) + texts


def class_paths(package: str) -> list[str]:
    """What a package offers in its `__all__`, as class paths.

    Raises:
        ValueError: It has no source, or no `__all__` that is a list of names.
    """
    top, *rest = package.split(".")
    spec = find_spec(top)  # of the top package only: any other would import those above it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no package {top}")
    file = Path(spec.submodule_search_locations[0], *rest, "__init__.py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            return [f"{package}.{name}" for name in ast.literal_eval(node.value)]
    raise ValueError(f"{file} has no list __all__ of its names")
