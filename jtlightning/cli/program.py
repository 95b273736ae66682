"""The classes behind a command line, and the parser that checks and builds them."""

from __future__ import annotations

import copy
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from jtlightning.cli.config import PARTS, Config, ConfigError
from jtlightning.cli.failures import unwrapped
from jtlightning.cli.schema import explain, import_object

_CKPT_PATH_HELP = {
    "fit": "Continue from this file, from the newest checkpoint (last), from the best one (best), "
    "or from the newest if there is one (auto).",
    "other": "Weights to use: a file (no --config is needed then, for the file holds it), last or "
    "best.",
}
_PART_HELP = "The class_path of a subclass of %(baseclass_name)s."


@dataclass(frozen=True)
class Program:
    """What a command line runs: `prog` its name, and the classes that it builds."""

    prog: str
    trainer_class: type
    task_base: type
    data_base: type

    def parser(self, parts: Sequence[str], command: str = "fit", **settings: Any) -> ArgumentParser:
        """A parser for these sections, in this order."""
        parser = ArgumentParser(
            prog=f"{self.prog} {command}", exit_on_error=False, allow_abbrev=False, **settings
        )
        for part in parts:
            if part == "trainer":
                parser.add_class_arguments(
                    self.trainer_class, part, instantiate=False, fail_untyped=False
                )
            elif part == "ckpt_path":
                help_text = _CKPT_PATH_HELP.get(command, _CKPT_PATH_HELP["other"])
                parser.add_argument("--ckpt_path", type=str | None, help=help_text)
            else:
                base = self.data_base if part == "data" else self.task_base
                parser.add_subclass_arguments(
                    base, part, required=True, metavar="CLASS", help=_PART_HELP, fail_untyped=False
                )
        return parser

    def resolve(self, config: Config) -> dict[str, Any]:
        """Every argument with its value, defaults included, as JSON values.

        Raises:
            ConfigError: Values that are missing or of a wrong type, with key and expected type.
        """
        _, parsed = self._parse(config, ["trainer", *PARTS, "ckpt_path"])
        return {part: _plain(parsed[part]) for part in ("trainer", "data", "task", "ckpt_path")}

    def build(self, config: Config, part: str) -> Any:
        """Make one section's object; what its constructors raise comes out as it is."""
        parser, parsed = self._parse(config, [part])
        with unwrapped():
            made = parser.instantiate(parsed)[part]
        return self.trainer_class(**vars(made)) if part == "trainer" else made

    def _parse(self, config: Config, parts: list[str]) -> tuple[ArgumentParser, Namespace]:
        parser = self.parser(parts)
        # A copy, as parsing changes what it gets.
        given = copy.deepcopy({p: v for p, v in config.values.items() if p in parts})
        try:
            return parser, parser.parse_object(given)
        except ArgumentError as error:
            problems = [self._explain(part, config) for part in parts]
            text = "\n".join(problem for problem in problems if problem)
            raise ConfigError(text or str(error)) from error

    def _explain(self, part: str, config: Config) -> str:
        value = config.values.get(part)
        if part == "trainer":
            return explain(self.trainer_class, value or {}, part, config)
        if part not in PARTS:
            return ""
        if not isinstance(value, dict) or "class_path" not in value:
            return f"{part}.class_path is missing: name a class, in a file or with --{part} CLASS"
        key = f"{part}.class_path"
        target = import_object(value["class_path"], key, config.where(key))
        base = self.data_base if part == "data" else self.task_base
        if isinstance(target, type) and not issubclass(target, base):
            return (
                f"{key} is {value['class_path']} ({config.where(key)}), which is no subclass of "
                f"{base.__module__}.{base.__qualname__}"
            )
        return explain(target, value.get("init_args") or {}, f"{part}.init_args", config)


def _plain(value: Any) -> Any:
    """Parsed values as JSON values.

    Not by `ArgumentParser.dump`, which turns the words 1e-3 and 007 into numbers. Objects that
    are the default of an argument cannot be written; they are left out and stay the default.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if _is_writable(v)}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def _is_writable(value: Any) -> bool:
    kinds = (Namespace, dict, list, tuple, set, Enum, Path, str, int, float, bool, type(None))
    return isinstance(value, kinds)
