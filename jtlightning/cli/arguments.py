"""What the command line and the environment say, before anything of it is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jtlightning.cli.config import Config, ConfigError
from jtlightning.cli.schema import SECTIONS


@dataclass
class Arguments:
    """A command line, sorted."""

    configs: list[str] = field(default_factory=list)
    #: (dotted key, text, whether it is appended to a list)
    overrides: list[tuple[str, str, bool]] = field(default_factory=list)
    print_config: bool = False
    traceback: bool = False
    help: bool = False
    #: (dotted key, class path): whose arguments to describe
    class_help: tuple[str, str] | None = None


def parse(argv: Sequence[str]) -> Arguments:
    """Sort the options of one command.

    Raises:
        ConfigError: Something that is no option, or an option without its value.
    """
    arguments = Arguments()
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            arguments.help = True
        elif word == "--print_config":
            arguments.print_config = True
        elif word == "--traceback":
            arguments.traceback = True
        elif word == "-c" or word.startswith("--"):
            _take_option(word, words, arguments)
        else:
            raise ConfigError(
                f"unexpected argument {word!r}; options are written --key VALUE or --key=VALUE, "
                "and a configuration file --config FILE"
            )
    return arguments


def _take_option(word: str, words: Iterator[str], arguments: Arguments) -> None:
    option, has_value, value = word.partition("=")
    if not has_value:
        following = next(words, None)
        if following is None or following.startswith("--"):
            raise ConfigError(f"{word} needs a value: {word} VALUE or {word}=VALUE")
        value = following
    key = option.lstrip("-")
    append = key.endswith("+")
    key = key.rstrip("+")
    if key in ("config", "c"):
        arguments.configs.append(value)
    elif key.endswith(".help"):
        arguments.class_help = (key.removesuffix(".help"), value)
    else:
        arguments.overrides.append((key, value, append))


def apply_environment(config: Config, environment: Mapping[str, str], prefix: str) -> None:
    """Set keys from variables: PREFIX_TRAINER__MAX_EPOCHS is trainer.max_epochs."""
    for name in sorted(environment):
        first, *rest = name.removeprefix(f"{prefix}_").lower().split("__")
        ours = name.startswith(f"{prefix}_") and first in SECTIONS
        # PREFIX_DATA alone may be anybody's variable, and means a folder more often than not.
        if ours and (rest or first == "ckpt_path"):
            config.set(".".join((first, *rest)), environment[name], f"variable {name}")


def apply_overrides(config: Config, arguments: Arguments) -> None:
    """Set what the command line sets, in its order."""
    for key, text, append in arguments.overrides:
        config.set(key, text, "command line", append=append)
