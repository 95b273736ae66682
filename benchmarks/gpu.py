"""Everything to know of a GPU, as Markdown: probes, parity, steps, waiting for data, resuming.

    python benchmarks/gpu.py --out docs/gpu.md
    python benchmarks/gpu.py --out docs/gpu.md --sections steps --models dformer_large
    python benchmarks/gpu.py --out build/gpu.md --device cpu --quick

Each row is measured by a script beside this one in a process of its own, so that one that fails
(memory, say) leaves the others; the page is written anew after each. Rows are kept in `--results`:
a later call on the same machine measures others, or the same again, or with `--missing` those that
are not there, and the page has them all. Of a file that holds the two lines of `gpu_page.MARKS`,
only what is between them is replaced.

Precisions: `32` forbids TF32, `tf32` leaves float32 products to it. With `--torch-python`, an
interpreter that has PyTorch, each row of the steps is followed by PyTorch's (dformer_torch.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_page
from gpu_jobs import FULL, GOLDEN, MODELS, PRECISIONS, QUICK, Job, jobs


def main() -> int:
    """Measure every row; 1 where any failed."""
    arguments = parse()
    results = load(arguments)
    begun_s, failed = time.monotonic(), False
    about = ask(Job("probes", "import", "gpu_probe.py", {"probe": "import"}), arguments)
    keep(results, "probes", "import", about, arguments)
    if "failed" in about:
        return 1
    for job in jobs(about, arguments):
        if arguments.missing and is_fine(results.get(job.section, {}).get(job.name)):
            continue
        if time.monotonic() - begun_s > arguments.budget:
            print(f"{arguments.budget:g} s are over; next is {job.section}, {job.name}", flush=True)
            return 1
        answer = ask(job, arguments)
        failed |= not is_fine(answer)
        keep(results, job.section, job.name, answer, arguments)
    return int(failed)


def is_fine(answer: dict[str, Any] | None) -> bool:
    """Whether a row was measured and is within its limits."""
    return answer is not None and "failed" not in answer and answer.get("passed", True)


def ask(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the script answers, or under `failed` why it does not; and in how many seconds."""
    environment = dict(os.environ)
    environment.pop("NVIDIA_TF32_OVERRIDE", None)
    if not job.tf32:
        environment["NVIDIA_TF32_OVERRIDE"] = "0"
    command = [job.python, str(Path(__file__).with_name(job.script))]
    options = {**job.options, "device": arguments.device}
    command += [f"--{name}={value}" for name, value in options.items()]
    begun_s = time.monotonic()
    answer = outcome(command, environment, arguments.timeout)
    return {**answer, "seconds": time.monotonic() - begun_s}


def outcome(command: list[str], environment: dict[str, str], timeout_s: float) -> dict[str, Any]:
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {timeout_s:g} s"}
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        failed = f"exit code {result.returncode}: {last[:300]}"
        return {"failed": failed, "log": result.stderr[-4000:]}
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def load(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """This machine's rows of earlier calls by section and name."""
    if not arguments.results.exists():
        return {}
    here = machine(arguments.device)
    kept = json.loads(arguments.results.read_text(encoding="utf-8"))
    return {
        section: {name: answer for name, answer in rows.items() if answer["machine"] == here}
        for section, rows in kept.items()
    }


def keep(
    results: dict[str, dict[str, Any]],
    section: str,
    name: str,
    answer: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    """Add a row and write everything."""
    answer = {**answer, "date": time.strftime("%Y-%m-%d"), "machine": machine(arguments.device)}
    results.setdefault(section, {})[name] = answer
    print(f"{section}: {name}: {gpu_page.brief(section, answer)}", flush=True)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    gpu_page.write(arguments.out, gpu_page.page(results))


def machine(wanted: str) -> str:
    """The card and its driver, or the number of processors."""
    if wanted != "cpu":
        query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            result = subprocess.run(
                ["nvidia-smi", *query], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            pass
        else:
            return result.stdout.strip().replace("\n", "; ")
    return f"{len(os.sched_getaffinity(0))} processors of a {platform.machine()} machine, no GPU"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the Markdown file")
    add("--results", type=Path, default=Path("build/gpu.json"), help="rows of this call and others")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--sections", nargs="+", choices=gpu_page.SECTIONS, default=gpu_page.SECTIONS)
    add("--quick", action="store_true", help="a few tiny rows of every section")
    add("--models", nargs="+", choices=MODELS)
    add("--precisions", nargs="+", choices=PRECISIONS)
    add("--batch", nargs="+", type=int)
    add("--golden", nargs="+", choices=GOLDEN, help="recorded networks")
    add("--size", help="HEIGHTxWIDTH")
    add("--steps", type=int, help="timed steps of a row")
    add("--workers", type=int, default=max(1, min(8, len(os.sched_getaffinity(0)) - 1)))
    add("--missing", action="store_true", help="only rows that are not in --results, or failed")
    add("--torch-python", help="an interpreter that has PyTorch")
    add("--timeout", type=float, default=1800.0, help="seconds for one row")
    add("--budget", type=float, default=float("inf"), help="seconds after which no row begins")
    arguments = parser.parse_args()
    for name, value in (QUICK if arguments.quick else FULL).items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
