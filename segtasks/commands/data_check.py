"""`segtasks data check`: walk the data set of a configuration and report what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import get_args

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jtlightning.cli.arguments import parse
from jtlightning.cli.config import Config, ConfigError
from segtasks.data.base import SplitName
from segtasks.data.detection.base import DetectionDataModule
from segtasks.data.modules import RGBDDataModule
from segtasks.data.problems import Kind, Problem
from segtasks.data.samples import DataError
from segtasks.data.survey import Survey, find_overlap
from segtasks.predictors.configuration import make_data
from segtasks.predictors.sources import offer_working_folder, read_configuration

Checkable = RGBDDataModule | DetectionDataModule
"""Data modules that can be walked."""

_SHOWN = 5


def check(configs: Sequence[str], splits: Sequence[SplitName], overrides: Sequence[str]) -> int:
    """Report on the splits of a configuration's data.

    Args:
        configs: Configuration files, by path or name.
        splits: What to walk.
        overrides: Options as those of `fit`.

    Returns:
        0 where nothing is wrong, else 1.

    Raises:
        ValueError: Nothing can be walked: the configuration is wrong, or a folder is missing.
    """
    module = build_data(configs, overrides)
    if not isinstance(module, Checkable):
        raise ConfigError(
            f"data is a {type(module).__name__}; data check walks the data modules of segtasks.data"
        )
    module.prepare_data()
    surveys = _walk(module, splits)
    problems = [problem for survey in surveys for problem in survey.problems]
    if len(surveys) == 2:
        problems += find_overlap(*surveys)
    problems += _batch_problems(module, splits, surveys)
    # A pipe has no width, and the default of 80 columns would fold every line.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_split_table(surveys))
    console.print(_label_table(module, surveys))
    _conclude(module, surveys, problems, console)
    return 1 if problems else 0


def build_data(configs: Sequence[str], overrides: Sequence[str]) -> object:
    """Build the data module of a configuration, without Jittor.

    Raises:
        ConfigError: There is no such file, key or class, or a value has a wrong type.
        ValueError: What the data module raises.
    """
    offer_working_folder()
    arguments = parse(overrides)
    if arguments.print_config or arguments.class_help is not None:
        raise ConfigError("data check prints no configuration; `segtasks fit` does")
    config = read_configuration(configs, arguments, os.environ)
    # The rest of the configuration is for Jittor; the same files serve `fit`.
    values = {k: v for k, v in config.values.items() if k not in ("trainer", "task", "ckpt_path")}
    config = Config(values, config.origins)
    if not config.get("data"):
        raise ConfigError("no data is named; give a file with --config, or a class with --data")
    return make_data(config)


def _walk(module: Checkable, splits: Sequence[SplitName]) -> list[Survey]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    surveys: list[Survey] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for split in splits:
            task = bar.add_task(f"reading the {split} split", total=None)

            def show(done: int, total: int, task: TaskID = task) -> None:
                bar.update(task, completed=done, total=total)

            surveys.append(module.survey(split, show))
    return surveys


def _batch_problems(
    module: Checkable, splits: Sequence[SplitName], surveys: Sequence[Survey]
) -> list[Problem]:
    """What would stop a run although every file is in order."""
    problems = []
    for split, survey in zip(splits, surveys, strict=True):
        if any(problem.kind in survey.blocking for problem in survey.problems):
            continue
        try:
            module.check_batches(split)
        except DataError as error:
            problems.append(Problem("batch", str(error)))
    return problems


def _split_table(surveys: Sequence[Survey]) -> Table:
    table = Table("", *(escape(str(s.path)) for s in surveys), box=SIMPLE_HEAD)
    table.add_row("samples", *(f"{len(s.listed):,}" for s in surveys))
    table.add_row("height x width", *(_sizes(s) for s in surveys))
    facts = [survey.facts() for survey in surveys]
    for name in facts[0]:
        table.add_row(name, *(fact[name] for fact in facts))
    return table


def _sizes(survey: Survey) -> str:
    sizes = survey.sizes.most_common()
    text = ", ".join(f"{h}x{w} ({n:,})" for (h, w), n in sizes[:3])
    return text + (f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else "")


def _label_table(module: Checkable, surveys: Sequence[Survey]) -> Table:
    table = Table("class", "name", box=SIMPLE_HEAD, title="labels")
    for survey in surveys:
        for column in (f"{survey.path.name}: {survey.counted[1]}", "share", "images"):
            table.add_column(escape(column), justify="right")
    counts = np.sum([survey.counts for survey in surveys], axis=0)
    beyond = [c for c in range(module.num_classes, len(counts)) if counts[c]]
    for label in [*range(module.num_classes), *beyond]:
        name = "[red]no class[/]" if label in beyond else escape(module.class_names[label])
        cells = (
            (
                f"{survey.counts[label]:,}",
                f"{survey.counts[label] / max(survey.total, 1):.2%}",
                f"{survey.class_images[label]:,}",
            )
            for survey in surveys
        )
        table.add_row(str(label), name, *(text for cell in cells for text in cell))
    return table


def _conclude(
    module: Checkable,
    surveys: Sequence[Survey],
    problems: Sequence[Problem],
    console: Console,
) -> None:
    absent = [
        name
        for label, name in enumerate(module.class_names)
        if not any(survey.counts[label] for survey in surveys)
    ]
    if absent:
        one, classes = surveys[0].counted[0], f"{len(absent)} of {module.num_classes} classes"
        text = f"{classes} without a {one}: {', '.join(absent)}"
        console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True)
    samples = sum(len(survey.listed) for survey in surveys)
    if not problems:
        console.print(f"[green]nothing is wrong with {samples:,} samples[/]")
        return
    for kind in get_args(Kind):
        texts = [problem.text for problem in problems if problem.kind == kind]
        if texts:
            console.print(f"[red]{kind}: {len(texts):,}[/]")
            # Paths to copy are never broken into lines.
            console.print(escape("\n".join(f"  {t}" for t in texts[:_SHOWN])), soft_wrap=True)
        if len(texts) > _SHOWN:
            console.print(f"  and {len(texts) - _SHOWN:,} more")
    console.print(f"[red]{len(problems):,} problems in {samples:,} samples[/]")
