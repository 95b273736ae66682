"""Checks and defaults of the `Trainer`'s arguments."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.callbacks.progress import RichProgressBar
from jtlightning.callbacks.summary import ModelSummary
from jtlightning.loggers.base import Logger
from jtlightning.loggers.csv import CSVLogger
from jtlightning.precision import Precision
from jtlightning.trainer.loaders import count_batches

_AT_LEAST_ONE = ("accumulate_grad_batches", "log_every_n_steps")
_AT_LEAST_ZERO = ("min_epochs", "num_sanity_val_steps")
_LIMITS = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
)


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse values without a meaning.

    Raises:
        ValueError: Names the argument and its value.
    """
    for name in _AT_LEAST_ONE:
        if arguments[name] < 1:
            raise ValueError(f"{name} is {arguments[name]!r}; it must be at least 1")
    for name in _AT_LEAST_ZERO:
        if arguments[name] < 0:
            raise ValueError(f"{name} is {arguments[name]!r}; it must be at least 0")
    for name in _LIMITS:
        count_batches(arguments[name], 1, name)
    _check_choices(arguments)
    _check_cadence(arguments["check_val_every_n_epoch"])
    if not arguments["val_check_interval"]:
        raise ValueError("val_check_interval is 0; use limit_val_batches: 0 for no validation")
    if (arguments["max_epochs"] or 0) < 0:
        raise ValueError(f"max_epochs is {arguments['max_epochs']}; it must be at least 0")
    if arguments["max_steps"] < -1:
        raise ValueError(f"max_steps is {arguments['max_steps']}; -1 means no limit")
    if not 0 <= arguments["seed"] < 2**32:
        raise ValueError(f"seed is {arguments['seed']}; it must be 0 to 4294967295")
    _check_clipping(arguments)


def check_processes(devices: int | str, nodes: int, processes: int) -> None:
    """Compare what is asked for with the processes that there are.

    Raises:
        ValueError: Their numbers differ, or one has no meaning.
    """
    if nodes < 1 or (devices != "auto" and (not isinstance(devices, int) or devices < 1)):
        raise ValueError(
            f"devices is {devices!r} and num_nodes {nodes}; give at least 1, or devices: auto"
        )
    if devices != "auto" and devices * nodes != processes:
        raise ValueError(
            f"devices {devices} x num_nodes {nodes} are {devices * nodes} processes, but this run "
            f"has {processes}; start it with `mpirun -np {devices * nodes} ...`, or use "
            "devices: auto, which takes what there is"
        )


def _check_choices(arguments: Mapping[str, Any]) -> None:
    if arguments["precision"] not in get_args(Precision):
        raise ValueError(
            f"precision is {arguments['precision']!r}; choose one of {get_args(Precision)}"
        )


def validates(cadence: int | Sequence[tuple[int, int]], epoch: int) -> bool:
    """Whether `cadence`, as `check_val_every_n_epoch`, validates in an epoch, counted from 1.

    The last pair whose first epoch is reached decides; before the first pair there is none.
    """
    pairs = [(1, cadence)] if isinstance(cadence, int) else cadence
    every = next((every for first, every in reversed(pairs) if first <= epoch), 0)
    return every > 0 and epoch % every == 0


def _check_cadence(cadence: int | Sequence[tuple[int, int]]) -> None:
    if isinstance(cadence, int):
        if cadence < 1:
            raise ValueError(f"check_val_every_n_epoch is {cadence!r}; it must be at least 1")
        return
    firsts = [first for first, _ in cadence]
    ascending = all(a < b for a, b in itertools.pairwise([0, *firsts]))
    if not firsts or not ascending or min(every for _, every in cadence) < 0:
        raise ValueError(
            f"check_val_every_n_epoch is {list(cadence)!r}; give pairs [first epoch, every so many "
            "epochs] with ascending first epochs from 1 on, where 0 means no validation"
        )


def _check_clipping(arguments: Mapping[str, Any]) -> None:
    clip = arguments["gradient_clip_val"]
    if clip is not None and clip <= 0:
        raise ValueError(f"gradient_clip_val is {clip!r}; give a positive number, or None")
    if arguments["gradient_clip_algorithm"] not in ("norm", "value"):
        algorithm = arguments["gradient_clip_algorithm"]
        raise ValueError(f"gradient_clip_algorithm is {algorithm!r}; choose norm or value")


def parse_duration(text: str | None) -> float | None:
    """Seconds of `DD:HH:MM:SS`.

    Raises:
        ValueError: The text has another form.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"max_time is {text!r}; write it as DD:HH:MM:SS, such as 00:12:00:00")
    days, hours, minutes, seconds = map(int, parts)
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def choose_loggers(logger: Logger | list[Logger] | bool) -> list[Logger]:
    """The loggers as a list; True stands for a CSV file."""
    if isinstance(logger, bool):
        return [CSVLogger()] if logger else []
    return list(logger) if isinstance(logger, list) else [logger]


def choose_callbacks(
    callbacks: list[Callback], *, progress_bar: bool, summary: bool, checkpoints: bool
) -> list[Callback]:
    """Add the default callbacks that are wanted and missing; model checkpoints go last.

    Raises:
        ValueError: Two callbacks would share a state in a checkpoint.
    """
    defaults: list[tuple[bool, type[Callback]]] = [
        (progress_bar, RichProgressBar),
        (summary, ModelSummary),
        (checkpoints, ModelCheckpoint),
    ]
    for wanted, kind in defaults:
        if wanted and not any(isinstance(c, kind) for c in callbacks):
            callbacks.append(kind())
    if not checkpoints:
        callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
    keys = [c.state_key for c in callbacks]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise ValueError(
            f"two callbacks share the state key {doubled[0]!r}, so a checkpoint could hold only "
            "one of their states; give one of them another `state_key`"
        )
    return sorted(callbacks, key=lambda c: isinstance(c, ModelCheckpoint))
