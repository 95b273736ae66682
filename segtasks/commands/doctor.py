"""`segtasks doctor`: what Jittor needs, what was found, and the command that mends the rest."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jtlightning import runtime
from jtlightning.runtime.checks import Finding
from jtlightning.runtime.facts import Report

MARKS = {
    "ok": "[green]ok[/]",
    "note": "[cyan]note[/]",
    "warning": "[yellow]warning[/]",
    "error": "[red]missing[/]",
}

# A convolution of ones by hand: 3 channels of a 3x3 window. On the CPU oneDNN computes it.
_TRIAL = """
import jtlightning, jittor as jt
result = jt.nn.conv2d(jt.ones((1, 3, 8, 8)), jt.ones((4, 3, 3, 3))).numpy()
assert result.shape == (1, 4, 6, 6) and (result == 27).all(), result
onednn = jt.compile_extern.mkl_ops is not None
print("convolution correct,", "with oneDNN" if onednn else "without oneDNN")
"""


class Trial(NamedTuple):
    """The outcome of importing Jittor and computing one convolution in a process of its own."""

    ok: bool
    text: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report.

    Args:
        argv: Arguments after `doctor`; None takes those of the process.

    Returns:
        0 if training can run on this machine, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="segtasks doctor",
        description="Show what Jittor needs, what is missing and how to mend it. "
        "Ends with 1 when training cannot run.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--gpu", action="store_true", help="end with 1 also when a GPU cannot be used"
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also import Jittor and compute a convolution (minutes, the first time)",
    )
    arguments = parser.parse_args(argv)
    report = runtime.report(gpu=arguments.gpu)
    trial = try_jittor() if arguments.deep and report.can_train else None
    if arguments.json:
        sys.stdout.write(json.dumps(as_dict(report, trial), indent=2) + "\n")
    else:
        console = Console()
        console.print(table(report, trial))
        # Commands to copy are never broken into lines.
        console.print(verdict(report, trial, gpu=arguments.gpu), soft_wrap=True)
    return 0 if report.can_train and (trial is None or trial.ok) else 1


def try_jittor() -> Trial:
    """Import Jittor in another process and compute one convolution there."""
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", _TRIAL], capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - began
    if result.returncode:
        return Trial(False, "\n".join(result.stderr.strip().splitlines()[-15:]), seconds)
    return Trial(True, result.stdout.strip(), seconds)


def as_dict(report: Report, trial: Trial | None) -> dict[str, Any]:
    """The report as plain JSON values."""
    return {
        "can_train": report.can_train,
        "device": report.device._asdict(),
        "findings": [finding._asdict() for finding in report.findings],
        "cache": report.cache._asdict(),
        "variables": [variable._asdict() for variable in report.variables],
        "packages": report.packages,
        "trial": trial._asdict() if trial else None,
    }


def table(report: Report, trial: Trial | None) -> Table:
    """What was looked at, a row each."""
    facts = Table(box=None, pad_edge=False)
    for heading in ("", "What", "Found"):
        facts.add_column(heading, overflow="fold")
    for finding in report.findings:
        facts.add_row(MARKS[finding.level], finding.name, escape(finding.found))
    device, cache = report.device, report.cache
    facts.add_row("", "Device", escape(f"{device.name}: {device.reason}"))
    facts.add_row("", "NVIDIA driver", device.driver or "none")
    facts.add_row("", "CUDA toolkits", escape("\n".join(device.toolkits) or "none"))
    facts.add_row("", "Kernel cache", escape(_cache_text(report)))
    if cache.remembered_home:
        note = f"{cache.remembered_home} (Jittor uses it where JITTOR_HOME is not set)"
        facts.add_row("", "Remembered home", escape(note))
    for name, version in report.packages.items():
        facts.add_row("", name, version or "not installed")
    for variable in report.variables:
        value = f"{variable.name}={variable.value!r}, set by {variable.set_by}"
        facts.add_row("", "Variable", escape(value))
    if trial:
        text = f"{trial.text} ({trial.seconds:.1f} s)"
        facts.add_row(MARKS["ok" if trial.ok else "error"], "Trial run", escape(text))
    return facts


def _cache_text(report: Report) -> str:
    cache = report.cache
    return f"{cache.folder}: {cache.kernels} kernels, {cache.size / 1e6:.0f} MB"


def verdict(report: Report, trial: Trial | None, *, gpu: bool = False) -> str:
    """The remedies, worst first, and whether training can run, on a GPU where that was asked."""
    training = "Training on a GPU" if gpu else "Training"
    todo = [item for item in report.findings if item.remedy]
    todo.sort(key=lambda item: item.level != "error")
    lines = [_remedy(item) for item in todo]
    if trial and not trial.ok:
        lines.append("[red]Jittor fails although everything it needs seems to be there.[/]")
    if not report.can_train:
        lines.append(f"[red]{training} cannot run on this machine yet.[/]")
    elif trial is None or trial.ok:
        lines.append(f"[green]{training} can run on this machine.[/]")
    return "\n".join(lines)


def _remedy(finding: Finding) -> str:
    return f"{MARKS[finding.level]} {finding.name}: {escape(finding.remedy)}"
