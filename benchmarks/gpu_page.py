"""The page that gpu.py writes: tables of what its scripts have answered."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SECTIONS = ("probes", "parity", "steps", "data", "resume")
#: Around what is replaced in a file that holds more.
MARKS = ("<!-- benchmarks/gpu.py: begin -->", "<!-- benchmarks/gpu.py: end -->")
#: Pairs of trainings that can tell a difference from noise: all of one sign by chance, 1 in 32.
ENOUGH_ROUNDS = 5

Answer = dict[str, Any]
Rows = dict[str, Answer]


def write(path: Path, text: str) -> None:
    """Put the text between the marks of a file, or make it the whole file."""
    begin, end = MARKS
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin in old and end in old:
        before, after = old.split(begin, 1)[0], old.split(end, 1)[1]
        text = f"{before}{begin}\n{text.strip()}\n{end}{after}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def page(results: dict[str, Rows]) -> str:
    """All tables for which there are rows."""
    writers: dict[str, Callable[[dict[str, Rows]], list[str]]] = {
        "probes": probes,
        "parity": parity,
        "steps": steps,
        "data": data,
        "resume": resume,
    }
    text = heading(results)
    for section, writer in writers.items():
        if results.get(section):
            text += ["", *writer(results)]
    return "\n".join(text + troubles(results)) + "\n"


def troubles(results: dict[str, Rows]) -> list[str]:
    """What is missing, and what a table does not show."""
    rows = [(f"{s}, {name}", row) for s, rows in results.items() for name, row in rows.items()]
    failed = [f"* {name}: {row['failed']}" for name, row in rows if "failed" in row]
    return ["", "### Failed", "", *failed] if failed else []


def heading(results: dict[str, Rows]) -> list[str]:
    """When, where and with what."""
    rows = [answer for section in results.values() for answer in section.values()]
    dates, machines = (sorted({row[key] for row in rows}) for key in ("date", "machine"))
    versions = results.get("probes", {}).get("import", {}).get("versions", {})
    text = "; ".join(f"{name} {version}" for name, version in versions.items())
    return [f"Measured {' and '.join(dates)} on {' and '.join(machines)}. {text}."]


def probes(results: dict[str, Rows]) -> list[str]:
    rows = [
        (
            name,
            "failed" if "failed" in answer else verdict(answer),
            number(answer.get("error")),
            number(answer.get("limit")),
            f"{answer['seconds']:.1f}",
        )
        for name, answer in results["probes"].items()
    ]
    return [
        "### Probes",
        "",
        "Each operation against NumPy in float64, in a process of its own. The error is the "
        "largest of the values over the largest value, and that of the gradient in its norm; the "
        "limits are ours. Seconds include starting Jittor and compiling.",
        "",
        *table(("probe", "result", "largest error", "limit", "seconds"), rows),
    ]


def parity(results: dict[str, Rows]) -> list[str]:
    rows = [
        (
            name,
            verdict(answer),
            number(answer["error"]),
            number(answer["limit"]),
            f"{100 * answer['agreement']:.2f} %",
            f"{100 * answer['least_agreement']:g} %",
        )
        for name, answer in fine(results["parity"])
    ]
    return [
        "### Parity",
        "",
        "Logits of the networks that were recorded from the official code, two images each: the "
        "largest error over the standard deviation of the recorded ones, and the pixels whose "
        "class is the recorded one. The limits are ours.",
        "",
        *table(("network", "result", "error", "limit", "same class", "at least"), rows),
    ]


def steps(results: dict[str, Rows]) -> list[str]:
    """Times of training steps and of single images, beside PyTorch's where it was asked."""
    twins, rows = results.get("torch", {}), []
    for name, answer in fine(results["steps"]):
        cells = [
            name,
            answer["steps"],
            f"{answer['ms_per_step']:.1f}",
            f"{answer['samples_per_s']:.2f}",
            check_cost(answer["check_ms"]),
            f"{answer['read_us']:.0f}",
            f"{answer['peak_mib'] or 0:,.0f}",
            f"{answer['tflop_per_s']:.3f}",
            f"{answer['first_step_s']:.1f}",
            latency(answer),
        ]
        rows.append((*cells, *beside(answer, twins.get(name))) if twins else tuple(cells))
    headings = (
        "model, size, batch, precision", "steps", "ms/step", "samples/s", "finite check, ms",
        "one read, us", "peak, MiB", "TFLOP/s", "first step, s", "latency, ms (p95)",
    )  # fmt: skip
    if twins:
        headings += ("PyTorch, ms/step", "PyTorch's over ours", "PyTorch's latency, ms (p95)")
    return [
        "### Steps and latency",
        "",
        "Random data, in memory: no time for loading is in it. The check for finite numbers is the "
        "median difference to the same steps without it, in turns (lowest to highest); one read "
        "is that of a number that is there already. TFLOP/s: three forward passes per step. "
        "Latency: one image, by DFormer's protocol. PyTorch's steps are without such a check.",
        "",
        *table(headings, rows),
    ]


def beside(ours: Answer, twin: Answer | None) -> tuple[str, str, str]:
    """PyTorch's step, the ratio, and its latency."""
    if twin is None or "failed" in twin:
        return "", "", ""
    if twin["parameters"] != ours["parameters"]:
        return f"{twin['parameters']:,} parameters, ours {ours['parameters']:,}", "", ""
    ratio = twin["ms_per_step"] / ours["ms_per_step"]
    return f"{twin['ms_per_step']:.1f}", f"{ratio:.2f}", latency(twin)


def data(results: dict[str, Rows]) -> list[str]:
    rows = [
        (
            name,
            answer["workers"],
            answer["steps"],
            f"{answer['ms_per_step']:.1f}",
            f"{answer['samples_per_s']:.2f}",
            f"{answer['wait_percent']:.1f} %",
        )
        for name, answer in fine(results["data"])
    ]
    headings = (
        "model, size, batch, precision",
        "workers",
        "steps",
        "ms/step",
        "samples/s",
        "waiting for data",
    )
    return [
        "### Waiting for data",
        "",
        "Rendered rooms, read from files, scaled, cut and mirrored by worker processes as for "
        "training: the share of the steps' time in which the trainer waited for a batch.",
        "",
        *table(headings, rows),
    ]


def resume(results: dict[str, Rows]) -> list[str]:
    rows = [
        (name, answer["steps"], same(answer["repeated"]), same(answer["resumed"]))
        for name, answer in fine(results["resume"])
    ]
    return [
        "### Resuming",
        "",
        "DFormer-Tiny, each training in processes of its own: its weights against those of one "
        "that ran straight through, as the largest difference over the tensor's largest value.",
        "",
        *table(("", "steps", "the same once more", "stopped half way, resumed"), rows),
    ]


def fine(rows: Rows) -> list[tuple[str, Answer]]:
    return [(name, answer) for name, answer in rows.items() if "failed" not in answer]


def verdict(answer: Answer) -> str:
    """Whether a row is within its limits."""
    return "pass" if answer.get("passed", True) else "FAIL"


def check_cost(differences: Sequence[float]) -> str:
    """Milliseconds that the check takes, where it can be told from noise."""
    if len(differences) < ENOUGH_ROUNDS:
        return "too few steps"
    low, high = min(differences), max(differences)
    if low <= 0:
        return f"within noise ({low:+.1f} to {high:+.1f})"
    return f"{statistics.median(differences):.1f} ({low:.1f} to {high:.1f})"


def latency(answer: Answer) -> str:
    if "latency_ms" not in answer:
        return ""
    return f"{answer['latency_ms']:.1f} ({answer['latency_p95_ms']:.1f})"


def same(drift: float) -> str:
    return "equal bit for bit" if drift == 0 else f"{drift:.1e}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def brief(section: str, answer: Answer) -> str:
    """One line of a row, for who watches."""
    if "failed" in answer:
        return str(answer["failed"])
    keys = ("passed", "error", "ms_per_step", "wait_percent", "resumed", "seconds")
    return ", ".join(f"{key} {answer[key]:.4g}" for key in keys if answer.get(key) is not None)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]
