"""`segtasks COMMAND`: the trainer's commands, and tools beside them.

The list of commands is answered without importing more than the standard library: a newcomer
types `segtasks --help` first, and Jittor alone takes seconds.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from segtasks import __version__, config_folders

PACKAGES = ("jtlightning", "segtasks")

#: Command -> what it does; these read configurations.
TRAINER_COMMANDS = {
    "fit": "train a model, from scratch or from a checkpoint",
    "validate": "measure a model on the validation data",
    "test": "measure a model on the test data",
    "predict": "write what a model predicts, for the test data or for files (--rgb)",
}

#: Command -> (module with `main(argv) -> int`, what it does).
COMMANDS = {
    "doctor": ("segtasks.commands.doctor", "say whether training can run here, and what to mend"),
    "audit": ("segtasks.commands.audit", "compare a model with recorded reference outputs"),
    "benchmark": ("segtasks.commands.benchmark", "count and time networks, beside the papers"),
    "cache": ("segtasks.commands.cache", "move compiled kernels to an equal machine"),
    "compile": ("segtasks.commands.compile", "compile a configuration's kernels ahead of its run"),
    "convert": ("segtasks.commands.convert", "turn weights or configurations into other formats"),
    "reproduce": ("segtasks.commands.reproduce", "an official checkpoint against its paper"),
    "data": ("segtasks.commands.data", "render built-in scenes (rooms), check a data set (check)"),
}

#: Options that take a class, with the packages whose classes a shell may complete.
OFFERED = {
    "data": ("segtasks.data",),
    "task": ("segtasks.tasks",),
    "task.model": ("segtasks.models.dformer", "segtasks.models.rtdetr"),
    "trainer.callbacks": ("jtlightning.callbacks",),
    "trainer.logger": ("jtlightning.loggers",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    command, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if command == "--version":
        sys.stdout.write(f"segtasks {__version__}\n")
        return 0
    if command == "--print-completion":
        return _print_completion(options)
    if command == "predict":
        return _predict(options)
    if command in TRAINER_COMMANDS:
        return _train(command, options)
    if command in COMMANDS:
        return _run(COMMANDS[command][0], options)
    sys.stderr.write(_unknown(command))
    return 2


def _train(command: str, options: list[str]) -> int:
    # NumPy's threads start with Ctrl-C blocked, so that it always reaches the main thread, which
    # can block it while Jittor, with a handler of its own, is imported.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    from jtlightning.cli import main as run
    from segtasks.predictors.sources import LINKS

    signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return run(
        [command, *options],
        prog="segtasks",
        config_paths=config_folders(),
        links=LINKS,
        packages=PACKAGES,
        offered=("segtasks.data", "segtasks.tasks", "jtlightning.callbacks"),
    )


def _predict(options: list[str]) -> int:
    """The tool for files, or the trainer's command for the configured data."""
    from segtasks.commands import predict

    if predict.names_inputs(options):
        return _run(predict.__name__, options)
    if {"-h", "--help"} & {*options}:
        sys.stdout.write(f"{predict.help_text()}\nwithout --rgb and --split:\n\n")
    return _train("predict", options)


def _print_completion(options: list[str]) -> int:
    from jtlightning.cli.completion import script

    tools = {name: text for name, (_, text) in COMMANDS.items()}
    shipped = [
        file.relative_to(folder).as_posix()
        for folder in config_folders()
        for file in sorted(folder.rglob("*.yaml"))
    ]
    shell = options[0] if len(options) == 1 else ""
    try:
        sys.stdout.write(script(shell, "segtasks", TRAINER_COMMANDS, tools, shipped, OFFERED))
    except ValueError as error:
        sys.stderr.write(f"segtasks: error: --print-completion SHELL: {error}\n")
        return 2
    return 0


def _run(module: str, options: list[str]) -> int:
    try:
        return import_module(module).main(options)
    except Exception as error:
        from jtlightning.cli import failures

        if not failures.is_mistake(error, PACKAGES):
            raise
        shown = os.environ.get("SEGTASKS_TRACEBACK") == "1"
        failures.show(error, "segtasks", packages=PACKAGES, with_traceback=shown)
        return 1


def _help() -> str:
    tools = {name: text for name, (_, text) in COMMANDS.items()}
    lines = ["usage: segtasks COMMAND [OPTIONS]", ""]
    for title, group in (("train and use models", TRAINER_COMMANDS), ("tools", tools)):
        lines += [f"{title}:", *(f"  {name:<10}{text}" for name, text in group.items()), ""]
    lines += [
        "`segtasks COMMAND --help` explains a command; `segtasks --version` prints the version.",
        "`segtasks --print-completion bash` prints completion for bash; zsh likewise.",
        "A first run: segtasks fit --config demo.yaml",
    ]
    return "\n".join(lines) + "\n"


def _unknown(command: str) -> str:
    known = [*TRAINER_COMMANDS, *COMMANDS]
    if not command:
        return f"segtasks: error: which command? Choose from {', '.join(known)}\n\n{_help()}"
    near = difflib.get_close_matches(command, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"
    return f"segtasks: error: there is no command {command!r}{hint}\n"


if __name__ == "__main__":
    sys.exit(main())
