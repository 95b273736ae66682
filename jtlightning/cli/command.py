"""From a command line to a run: read, check, build the trainer, the data and the task, go."""

from __future__ import annotations

import copy
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler

from jtlightning import runtime
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.cli import failures, helping, processes
from jtlightning.cli.arguments import Arguments, apply_environment, apply_overrides, parse
from jtlightning.cli.config import (
    INSIDE,
    PARTS,
    Config,
    ConfigError,
    ConfigFinder,
    dump,
    suggestion,
)
from jtlightning.cli.interrupt import leave_at_ctrl_c
from jtlightning.cli.links import Link, fill, hold_places
from jtlightning.cli.log_file import RunLog
from jtlightning.cli.program import Program
from jtlightning.cli.schema import check_keys
from jtlightning.run_directory import RunDirectoryError

if TYPE_CHECKING:
    from jtlightning.runtime.chatter import Chatter

_log = logging.getLogger(__name__)
_NOT_A_FILE = ("last", "best", "auto")


def main(
    argv: Sequence[str],
    *,
    prog: str,
    task_base: type | None = None,
    data_base: type | None = None,
    trainer_class: type | None = None,
    config_paths: Sequence[Path] = (),
    links: Sequence[Link] = (),
    packages: Sequence[str] = ("jtlightning",),
    offered: Sequence[str] = (),
) -> int:
    """Run one of fit, validate, test and predict.

    The trainer is made first (it seeds, and chooses the device), then the data, then the task.

    Args:
        argv: The command and its options.
        prog: The program's name; in capitals, the prefix of its environment variables.
        task_base: What a task must be a subclass of; `jtlightning.Task` for None.
        data_base: Likewise for the data; `jtlightning.DataModule` for None.
        trainer_class: What `trainer` describes; `jtlightning.Trainer` for None.
        config_paths: Folders in which `--config` finds files by name.
        links: Arguments of the task that are taken from the data.
        packages: Top-level packages whose errors are shown without a traceback.
        offered: Modules whose public classes `--help` lists.

    Returns:
        0 when done, 1 after an error, 2 where the command line or the configuration is wrong.

    Raises:
        SystemExit: With 130 or 143, from the trainer, after a signal.
        Exception: What the user's own code raised.
    """
    began = time.perf_counter()
    command, options = (argv[0], argv[1:]) if argv else ("", ())
    with_traceback = "--traceback" in options or os.environ.get(f"{prog.upper()}_TRACEBACK") == "1"
    try:
        if command not in helping.VERBS:
            hint = suggestion(command, helping.VERBS) or f"; choose from {', '.join(helping.VERBS)}"
            raise ConfigError(f"there is no command {command!r}{hint}")
        # Classes in files of the user's working folder; last, so that none hides a package.
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        arguments = parse(options)
        finder = ConfigFinder(tuple(config_paths))
        classes = (trainer_class, task_base, data_base)
        if arguments.help or arguments.class_help:
            program = _program(prog, *classes)
            return _help(arguments, command, program, finder.shipped(), offered)
        config = _configure(arguments, finder, prog)
        if not arguments.print_config:
            processes.launch(config)
        chatter = None
        if trainer_class is None and not arguments.print_config:
            experiment = config.get("trainer.default_root_dir") or _experiment(arguments)
            chatter = capture_chatter(Path(experiment))
        _log_to_console(packages)
        with leave_at_ctrl_c(before=chatter.close if chatter is not None else None):
            program = _program(prog, *classes)
        if arguments.print_config:
            return _print(config, program, links)
        line = shlex.join([prog, *argv])
        _tell_times(command, began, _execute(command, arguments, config, program, links, line))
        return 0
    except KeyboardInterrupt:
        return _failed(130)
    except Exception as error:
        if not failures.is_mistake(error, packages):
            raise
        who = f"{prog}, rank {processes.rank()}" if processes.started_by_mpirun() else prog
        failures.show(error, who, packages=packages, with_traceback=with_traceback)
        return _failed(2 if isinstance(error, ConfigError) else 1)


def _failed(code: int) -> int:
    """The exit code; one of several processes leaves here, as the others may wait for it."""
    if processes.started_by_mpirun() and "jittor" in sys.modules:
        import_module("jtlightning.distributed").leave(code)
    return code


def capture_chatter(experiment: Path) -> Chatter | None:
    """Keep Jittor's output in the experiment's folder, which this shows to be writable.

    Returns:
        What `runtime.capture_chatter` returns.

    Raises:
        RunDirectoryError: It cannot be written.
    """
    try:
        name = f"jittor-{processes.rank()}.log" if processes.rank() else "jittor.log"
        return runtime.capture_chatter(experiment / name)
    except OSError as error:
        raise RunDirectoryError.of(experiment, error) from error


def _program(
    prog: str, trainer_class: type | None, task_base: type | None, data_base: type | None
) -> Program:
    # Imported here: these bring Jittor, and mistakes in files are found faster without it.
    if trainer_class is None:
        trainer_class = import_module("jtlightning.trainer").Trainer
        import_module("jtlightning.signals").reclaim()
    return Program(
        prog,
        trainer_class,
        task_base or import_module("jtlightning.task").Task,
        data_base or import_module("jtlightning.data.datamodule").DataModule,
    )


def _help(
    arguments: Arguments,
    command: str,
    program: Program,
    shipped: Sequence[str],
    offered: Sequence[str],
) -> int:
    if arguments.class_help is not None:
        text = helping.class_help(*arguments.class_help)
    else:
        text = helping.command_help(program, command, shipped, offered)
    sys.stdout.write(f"{text.rstrip()}\n")
    return 0


def _configure(arguments: Arguments, finder: ConfigFinder, prog: str) -> Config:
    """All layers on top of each other."""
    asked = [text for key, text, _ in arguments.overrides if key == "ckpt_path"]
    file = asked[-1] if asked else os.environ.get(f"{prog.upper()}_CKPT_PATH")
    if arguments.configs:
        config = finder.load(arguments.configs)
    elif file is not None and file not in _NOT_A_FILE:
        config = _config_inside(Path(file))
    else:
        config = Config()
    apply_environment(config, os.environ, prog.upper())
    apply_overrides(config, arguments)
    for part in PARTS:
        if not config.values.get(part):
            shipped = ", ".join(finder.shipped()) or "none"
            raise ConfigError(
                f"no {part} is named; give a file with --config (shipped: {shipped}), or a class "
                f"with --{part} CLASS"
            )
    return config


def _config_inside(file: Path) -> Config:
    if file.is_dir():
        raise ConfigError(f"ckpt_path: {file} is a folder; give a .ckpt file in it")
    values = read_checkpoint(file, tensors=False).metadata.get("config")
    if not values:
        raise ConfigError(
            f"{file} holds no configuration, as it was not made by the command line; give the one "
            "it was trained with by --config FILE"
        )
    return Config(copy.deepcopy(values), dict.fromkeys(values, f"{INSIDE}{file}"))


def _experiment(arguments: Arguments) -> str:
    return f"runs/{Path(arguments.configs[-1]).stem if arguments.configs else 'default'}"


def _print(config: Config, program: Program, links: Sequence[Link]) -> int:
    """Print every argument with its value, as a file that gives the same run."""
    values, still_open = _resolve(config, program, links)
    for link in still_open:
        _drop(values, link.target)
    if config.get("trainer.default_root_dir") is None:
        _drop(values, "trainer.default_root_dir")  # depends on the name of the file
    if values["ckpt_path"] is None:
        del values["ckpt_path"]
    sys.stdout.write(dump(values))
    return 0


def _resolve(
    config: Config, program: Program, links: Sequence[Link]
) -> tuple[dict[str, Any], list[Link]]:
    """Check everything that can be checked without data."""
    check_keys(config, program.trainer_class)
    complete, still_open = hold_places(config, links)
    return program.resolve(complete), still_open


def _execute(
    command: str,
    arguments: Arguments,
    config: Config,
    program: Program,
    links: Sequence[Link],
    line: str,
) -> Path | None:
    _resolve(config, program, links)
    if config.get("trainer.default_root_dir") is None and arguments.configs:
        trainer_section = config.values["trainer"] = config.values.get("trainer") or {}
        trainer_section["default_root_dir"] = _experiment(arguments)
    trainer = program.build(config, "trainer")
    if processes.rank():  # rank 0 speaks for all
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    with RunLog(lambda: _folder(trainer), line):
        _run(command, trainer, config, program, links)
    return _folder(trainer)


def _run(
    command: str, trainer: Any, config: Config, program: Program, links: Sequence[Link]
) -> None:
    """Build data and task, and run the command."""
    from jtlightning.callbacks.config_saver import ConfigSaver

    data = program.build(config, "data")
    fill(config, links, data)
    task = program.build(config, "task")
    values = program.resolve(config)
    ckpt_path = values.pop("ckpt_path")
    trainer.callbacks.insert(0, ConfigSaver(values, dump(values)))
    if command != "fit" and ckpt_path is None:
        _log.warning("no ckpt_path is given: this is the model as its configuration builds it")
    result = getattr(trainer, command)(task, datamodule=data, ckpt_path=ckpt_path)
    if command in ("validate", "test"):
        _print_metrics(result)


def _folder(trainer: Any) -> Path | None:
    return trainer.run.path if trainer.run is not None else None


def _tell_times(command: str, began: float, folder: Path | None) -> None:
    """Say where the time went, Jittor's compiling apart, and keep it in the run's folder."""
    took, compiling = time.perf_counter() - began, runtime.compile_seconds()
    where = f"; files in {folder}" if folder is not None else ""
    if processes.rank():
        return
    sys.stderr.write(  # not among the metrics
        f"{command} took {took:.1f} s, {compiling:.1f} s of it compiling{where}\n"
    )
    if folder is not None:
        times = {"command": command, "seconds": round(took, 1), "compiling": round(compiling, 1)}
        (folder / "times.json").write_text(json.dumps(times) + "\n")


def _print_metrics(metrics: Mapping[str, float]) -> None:
    """What was measured, one metric a line, so that other programs can read it too."""
    width = max(map(len, metrics), default=0)
    sys.stdout.write("".join(f"{name:<{width}}  {metrics[name]:.6g}\n" for name in metrics))


def _drop(values: dict[str, object], key: str) -> None:
    parent, _, name = key.rpartition(".")
    section = Config(values).get(parent)
    if isinstance(section, dict):
        section.pop(name, None)


def _log_to_console(packages: Sequence[str]) -> None:
    """Show what the packages log, and warnings of everybody else, once, however often called."""
    for package in packages:
        logging.getLogger(package).setLevel(logging.WARNING if processes.rank() else logging.INFO)
    root = logging.getLogger()
    if not any(isinstance(handler, RichHandler) for handler in root.handlers):
        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
