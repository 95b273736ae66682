"""The rows that gpu.py asks for: which script, with which options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MODELS = ("dformer_tiny", "dformer_large", "dformerv2_l")
PRECISIONS = ("32", "tf32", "16-mixed", "bf16-mixed")
GOLDEN = ("DFormer-Tiny", "DFormer-Small", "DFormer-Tiny_MLPDecoder", "DFormerv2-S")
#: What `--quick` stands for, unless it is given as well.
QUICK = {
    "models": ["dformer_tiny"],
    "batch": [1],
    "precisions": ["32", "bf16-mixed"],
    "golden": ["DFormer-Tiny"],
    "size": "64x64",
    "steps": 5,
    "passes": (2, 5),
    "scenes": 4,
    "resume_steps": 4,
}
FULL = {
    "models": list(MODELS),
    "batch": [8, 16],
    "precisions": list(PRECISIONS),
    "golden": list(GOLDEN),
    "size": "480x640",
    "steps": 50,
    "passes": (100, 300),
    "scenes": 48,
    "resume_steps": 20,
}


@dataclass(frozen=True)
class Job:
    """One row: what a script measures.

    Attributes:
        section: Part of the page.
        name: Of the row, unique in its section.
        script: Beside this one.
        options: Of the script.
        tf32: Whether products of float32 may be computed in TF32.
        python: That runs it.
    """

    section: str
    name: str
    script: str
    options: dict[str, Any]
    tf32: bool = False
    python: str = sys.executable


def jobs(about: dict[str, Any], arguments: argparse.Namespace) -> Iterator[Job]:
    """All rows that are asked for, in the order of the page."""
    if about["device"] == "cpu":  # where TF32 is float32
        arguments.precisions = [p for p in arguments.precisions if p != "tf32"]
    makers: dict[str, Callable[..., Iterator[Job]]] = {
        "probes": lambda _: probes(about),
        "parity": parity,
        "steps": steps,
        "data": data,
        "resume": resume,
    }
    for section in arguments.sections:
        yield from makers[section](arguments)


def probes(about: dict[str, Any]) -> Iterator[Job]:
    for name in about["probes"]:
        yield Job("probes", name, "gpu_probe.py", {"probe": name}, "TF32" in name)


def parity(arguments: argparse.Namespace) -> Iterator[Job]:
    for name in arguments.golden:
        for precision in arguments.precisions:
            options = {"name": name, "precision": of_trainer(precision)}
            job = f"{name}, {precision}"
            yield Job("parity", job, "gpu_parity.py", options, precision != "32")


def steps(arguments: argparse.Namespace) -> Iterator[Job]:
    warm_up, runs = arguments.passes
    for model in arguments.models:
        for batch in arguments.batch:
            for precision in arguments.precisions:
                name, options = row(model, batch, precision, arguments)
                options["warm-up"] = warm_up
                # It has a batch of its own.
                options["runs"] = runs if batch == arguments.batch[0] else 0
                tf32 = precision != "32"
                yield Job("steps", name, "gpu_step.py", options, tf32)
                if arguments.torch_python:
                    python = arguments.torch_python
                    yield Job("torch", name, "dformer_torch.py", options, tf32, python)


def data(arguments: argparse.Namespace) -> Iterator[Job]:
    """The largest batch, in the slowest and the fastest precision."""
    for model in arguments.models:
        for precision in dict.fromkeys((arguments.precisions[0], arguments.precisions[-1])):
            name, options = row(model, arguments.batch[-1], precision, arguments)
            options |= {"workers": arguments.workers, "scenes": arguments.scenes}
            yield Job("data", name, "gpu_data.py", options, precision != "32")


def resume(arguments: argparse.Namespace) -> Iterator[Job]:
    for deterministic in (True, False):
        options = {
            "model": "dformer_tiny",
            "batch": 2,
            "size": "64x64" if arguments.quick else "128x160",
            "steps": arguments.resume_steps,
            "deterministic": int(deterministic),
        }
        yield Job("resume", f"deterministic={deterministic}", "gpu_resume.py", options)


def row(
    model: str, batch: int, precision: str, arguments: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Name and options of a training."""
    options = {
        "model": model,
        "batch": batch,
        "precision": of_trainer(precision),
        "size": arguments.size,
        "steps": arguments.steps,
    }
    return f"{model}, {arguments.size}, batch {batch}, {precision}", options


def of_trainer(precision: str) -> str:
    """As the trainer calls it, for which TF32 is a way to compute in float32."""
    return "32" if precision == "tf32" else precision
