"""Training steps and latency of DFormer by model, batch and precision, as a Markdown table.

    python benchmarks/gpu.py --out gpu.md
    python benchmarks/gpu.py --out try.md --device cpu --size 64x64 --steps 2 --batch 1 --quick

Each row is measured by gpu_step.py in a process of its own, so that one that fails (memory, say)
leaves the others; the file is written anew after each. Precisions: `32` forbids TF32, `tf32` leaves
float32 convolutions to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

MODELS = ("dformer_tiny", "dformer_large", "dformerv2_l")
PRECISIONS = ("32", "tf32", "16-mixed", "bf16-mixed")
HEADINGS = (
    "model", "batch", "precision", "ms/step", "samples/s", "finite check, ms", "peak, MiB",
    "TFLOP/s", "first step, s", "latency, ms (p95)",
)  # fmt: skip


def main() -> int:
    """Measure every row; 1 where any failed."""
    arguments = parse()
    rows: list[str] = []
    failures: list[str] = []
    for model in arguments.models:
        for batch in arguments.batch:
            for precision in arguments.precisions:
                name = f"{model}, batch {batch}, {precision}"
                answer = measured(model, batch, precision, arguments)
                if isinstance(answer, str):
                    failures.append(f"* {name}: {answer}")
                else:
                    rows.append(line(answer, precision))
                print(rows[-1] if not isinstance(answer, str) else failures[-1], flush=True)
                arguments.out.write_text(page(rows, failures, arguments), encoding="utf-8")
    return 1 if failures else 0


def measured(
    model: str, batch: int, precision: str, arguments: argparse.Namespace
) -> dict[str, Any] | str:
    """What gpu_step.py measures, or how it failed."""
    environment = dict(os.environ)
    if precision == "32":
        environment["NVIDIA_TF32_OVERRIDE"] = "0"
    else:
        environment.pop("NVIDIA_TF32_OVERRIDE", None)
    warm_up, runs = passes(arguments.quick)
    options = {
        "model": model,
        "batch": batch,
        "size": arguments.size,
        "steps": arguments.steps,
        "precision": "32" if precision == "tf32" else precision,
        "device": arguments.device,
        "warm-up": warm_up,
        "runs": runs,
    }
    command = [sys.executable, str(Path(__file__).with_name("gpu_step.py"))]
    command += [f"--{name}={value}" for name, value in options.items()]
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True,
            timeout=arguments.timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {arguments.timeout} s"
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return f"exit code {result.returncode}: {last}"
    row: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return row


def passes(quick: bool) -> tuple[int, int]:
    """Passes for latency, to warm up and timed."""
    return (2, 5) if quick else (100, 300)


def line(row: dict[str, Any], precision: str) -> str:
    """One row of the table."""
    cells = (
        row["model"], row["batch"], precision, f"{row['ms_per_step']:.1f}",
        f"{row['samples_per_s']:.2f}", f"{row['check_ms']:.1f}", f"{row['peak_mib'] or 0:,.0f}",
        f"{row['tflop_per_s']:.3f}", f"{row['first_step_s']:.1f}",
        f"{row['latency_ms']:.1f} ({row['latency_p95_ms']:.1f})",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def page(rows: list[str], failures: list[str], arguments: argparse.Namespace) -> str:
    """The table, with what it was measured on."""
    warm_up, runs = passes(arguments.quick)
    text = [
        f"# Steps and latency, {time.strftime('%Y-%m-%d')}",
        "",
        f"{device(arguments.device)}; Jittor {metadata.version('jittor')}, Python "
        f"{platform.python_version()}; {arguments.size}, {arguments.steps} timed steps after 5, "
        f"latency at batch 1 over {runs} passes after {warm_up}. Random data, in memory: no time "
        "for loading is in it. The check for finite numbers is the difference to the same steps "
        "without it. TFLOP/s: three forward passes per step.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *rows,
    ]
    if failures:
        text += ["", "Failed:", "", *failures]
    return "\n".join(text) + "\n"


def device(wanted: str) -> str:
    """The card and its driver, or the number of processors."""
    if wanted != "cpu":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        try:
            result = subprocess.run(query, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pass
        else:
            return result.stdout.strip().replace("\n", "; ")
    return f"{len(os.sched_getaffinity(0))} processors of a {platform.machine()} machine, no GPU"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--batch", nargs="+", type=int, default=(8, 16))
    parser.add_argument("--size", default="480x640", help="HEIGHTxWIDTH")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="5 passes for latency, not 300")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one row")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
