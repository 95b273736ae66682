"""The help texts of the commands."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from importlib import import_module

from jsonargparse import ArgumentParser

from jtlightning.cli.config import PARTS
from jtlightning.cli.program import Program
from jtlightning.cli.schema import import_object

VERBS = {
    "fit": "train a task, from scratch or from a checkpoint",
    "validate": "measure a task on the validation data",
    "test": "measure a task on the test data",
    "predict": "run a task on the data for prediction",
}

_MOST_CLASSES = 20
_INDENT = " " * 21
_INTRODUCTION = """\
{verb}

how to say what to run:
  --config FILE      YAML with the sections trainer, data and task; several are laid on top of each
                     other, and `base: [FILE, ...]` in a file names those that it builds on.
                     Found by path, or by name among:
{shipped}
  --KEY VALUE        set one value, such as --trainer.max_epochs 3 or --data.root DIR
                     (--LIST+=VALUE appends; {prefix}_TRAINER__MAX_EPOCHS=3 in the environment is
                     stronger than a file and weaker than an option)
  --KEY.help CLASS   show the arguments of a class, such as --task.help my_tasks.MyTask; a class of
                     your own is found in the working folder
  --print_config     print the whole configuration, defaults included, and stop
  --traceback        show where an error comes from (as {prefix}_TRACEBACK=1 does)
"""


def command_help(
    program: Program, command: str, shipped: Sequence[str], offered: Sequence[str]
) -> str:
    """The help of one command: how to configure it, then every argument.

    Args:
        program: What is run.
        command: Of `VERBS`.
        shipped: Names of the configuration files that come with the program.
        offered: Modules whose public classes are listed where an argument takes them.
    """
    for name in offered:
        module = import_module(name)
        for public in module.__all__:
            getattr(module, public)  # packages are lazy, and only what is loaded can be listed
    introduction = _INTRODUCTION.format(
        verb=VERBS[command].capitalize() + ".",
        shipped=textwrap.fill(
            ", ".join(shipped) or "(none)",
            width=100,
            initial_indent=_INDENT,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
        ),
        prefix=program.prog.upper(),
    )
    parser = program.parser(["trainer", *PARTS, "ckpt_path"], command)
    usage = f"usage: {program.prog} {command} --config FILE [--KEY VALUE ...]"
    return f"{usage}\n\n{introduction}\n{_options(parser)}"


def class_help(key: str, class_path: str) -> str:
    """The arguments of one class, as options for `key`."""
    target = import_object(class_path, f"--{key}.help", "command line")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    add(target, key, fail_untyped=False)
    title = f"{key} with class_path: {class_path} (in a file, its arguments stand under init_args)"
    return f"{title}\n\n{_options(parser)}"


def _options(parser: ArgumentParser) -> str:
    text = parser.format_help()
    _, _, options = text.partition("\n\n")  # the usage line names every option again
    # jsonargparse offers a file per section; here files hold whole configurations
    options = re.sub(r"^ +--\S+ CONFIG\s+Path to a configuration file\.\n", "", options, flags=re.M)
    return re.sub(r",\s+known\s+subclasses:[^)]*", _unless_long, options)


def _unless_long(classes: re.Match[str]) -> str:
    """Keep a list of classes that helps; for a model it would be every module there is."""
    return classes[0] if classes[0].count(",") <= _MOST_CLASSES else ""
