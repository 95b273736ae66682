"""Time one training step of RT-DETR r18: its parts, fused operations, and PyTorch beside it.

    python benchmarks/rtdetr.py [--torch-python PYTHON] [--rounds 5] [--steps 2] [--profile]

A step is denoising queries, forward pass, matching, losses, backward pass, clipping and AdamW, on
fixed random data. The whole step is timed in rounds that alternate between the network as it is,
the same one with deformable attention by `grid_sample` or with Jittor's own softmax ("plain"), and,
where `--torch-python` names an interpreter with PyTorch, `rtdetr_torch.py`: all of them meet the
same machine. Parts are timed
with a synchronisation behind each, which costs some fusion: they add up to more than the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import segtasks  # noqa: F401  prepares the environment, so that the next line works anywhere

import jittor as jt  # isort: skip
import numpy as np
from jittor import nn

from jtlightning.gradients import clip_by_norm, gradient_norm
from jtlightning.optim import AdamW
from segtasks.losses.rtdetr import RTDETRCriterion
from segtasks.models.rtdetr import deformable, layers, rtdetr_r18
from segtasks.models.rtdetr.outputs import Predictions, RTDETROutput
from segtasks.ops.deformable_attention import deformable_sampling

PARAMETERS = 20_184_464
WARM_UP = 3


class Training:
    """The network, its optimizer and one batch."""

    def __init__(self, batch: int, size: int, boxes: int) -> None:
        rng = np.random.default_rng(0)
        self.model = rtdetr_r18()
        self.model.train()
        self.parameters = [
            value for name, value in self.model.named_parameters() if "running" not in name
        ]
        count = sum(value.numel() for value in self.parameters)
        assert count == PARAMETERS, f"{count} parameters"
        self.criterion = RTDETRCriterion(self.model.num_classes)
        self.optimizer = AdamW(1e-4, weight_decay=1e-4).build([{"params": self.parameters}])
        self.image = jt.array(rng.random((batch, 3, size, size), dtype=np.float32))
        self.targets = [
            SimpleNamespace(
                labels=rng.integers(0, self.model.num_classes, boxes),
                boxes=(0.3 + 0.4 * rng.random((boxes, 4))).astype(np.float32),
            )
            for _ in range(batch)
        ]

    def step(self) -> None:
        self.update(self.loss(self.model(self.image, self.targets)))

    def loss(self, output: RTDETROutput) -> jt.Var:
        return jt.concat(list(self.criterion(output, self.targets).values())).sum()

    def update(self, loss: jt.Var) -> None:
        self.backward(loss)
        self.optimizer.step()
        jt.sync_all(True)

    def backward(self, loss: jt.Var) -> None:
        self.optimizer.backward(loss)
        gradients = [p.opt_grad(self.optimizer) for p in self.parameters]
        clip_by_norm(gradients, gradient_norm(gradients), 0.1)


def parts_of_a_step(training: Training, clock: Clock) -> None:
    """One step with a synchronisation behind each part."""
    model = training.model
    with clock("backbone"):
        maps = model.backbone(training.image)
    with clock("encoder"):
        maps = model.encoder(maps)
    with clock("decoder, with denoising"):
        output = model.decoder(maps, training.targets)
    with clock("matching and losses"):
        loss = training.loss(output)
    with clock("backward pass, clipping"):
        training.backward(loss)
    with clock("AdamW"):
        training.optimizer.step()


def losses_alone(training: Training, clock: Clock) -> None:
    """Matching, losses and their gradient on predictions that are there already."""
    output = training.model(training.image, training.targets)
    jt.sync_all(True)
    output = RTDETROutput(
        output.logits.detach().clone(),
        output.boxes.detach().clone(),
        [_apart(p) for p in output.auxiliary],
        [_apart(p) for p in output.denoising],
        output.denoising_meta,
    )
    leaves = [output, *output.auxiliary, *output.denoising]
    inputs = [x for p in leaves for x in (p.logits, p.boxes)]
    jt.sync_all(True)
    with clock("matching, losses and their gradients, alone"):
        gradients = jt.grad(training.loss(output), inputs)
    del gradients


def sampling_alone(training: Training, clock: Clock) -> None:
    """The sampling of all decoder layers, forward and backward, by either implementation."""
    B, _, H, W = training.image.shape
    shapes = tuple((H // stride, W // stride) for stride in (8, 16, 32))
    queries = 300 + 2 * len(training.targets[0].labels) * (100 // len(training.targets[0].labels))
    tokens = sum(h * w for h, w in shapes)
    rng = np.random.default_rng(0)

    def uniform(*shape: int) -> jt.Var:
        return jt.array(rng.random(shape, dtype=np.float32))

    value, locations = uniform(B, tokens, 8, 32), uniform(B, queries, 8, 3, 4, 2)
    weights, upstream = uniform(B, queries, 8, 3, 4), uniform(B, queries, 256)
    jt.sync_all(True)
    for name, sample in (("fused", deformable_sampling), ("plain", plain_sampling)):
        with clock(f"deformable sampling of 3 layers, {name}"):
            for _ in range(3):
                out = sample(value, shapes, locations, weights)
                gradients = jt.grad((out * upstream).sum(), [value, locations, weights])
                jt.sync_all(True)
        del out, gradients


def plain_sampling(
    value: jt.Var, shapes: tuple[tuple[int, int], ...], locations: jt.Var, weights: jt.Var
) -> jt.Var:
    """`deformable_sampling` by Jittor's `grid_sample`, one level after the other."""
    B, N, M, C = value.shape
    Q, L, P = locations.shape[1], len(shapes), locations.shape[4]
    maps = value.permute(0, 2, 3, 1).reshape(B * M, C, N)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).reshape(L, B * M, Q, P, 2)
    start, sampled = 0, []
    for (h, w), grid in zip(shapes, grids, strict=True):
        level = maps[:, :, start : start + h * w].reshape(B * M, C, h, w)
        sampled.append(nn.grid_sample(level, grid, "bilinear", "zeros", False))
        start += h * w
    joint = weights.permute(0, 2, 1, 3, 4).reshape(B * M, 1, Q, L * P)
    mixed = (jt.concat(sampled, -1) * joint).sum(-1)
    return mixed.reshape(B, M * C, Q).transpose(0, 2, 1)


class Clock:
    """Seconds of each part, a synchronisation included."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        jt.sync_all(True)
        self.seconds[part].append(time.perf_counter() - start)


class Torch:
    """The PyTorch twin in a process of its own."""

    def __init__(self, python: str, options: list[str]) -> None:
        script = str(Path(__file__).with_name("rtdetr_torch.py"))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [python, script, *options], stdin=pipe, stdout=pipe, text=True
        )
        count = self._answer()["parameters"]
        assert count == PARAMETERS, f"{count} parameters in PyTorch"

    def __call__(self, steps: int) -> list[float]:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the PyTorch process ended; see its message above")
        return json.loads(line)


def _apart(predictions: Predictions) -> Predictions:
    return Predictions(predictions.logits.detach().clone(), predictions.boxes.detach().clone())


def timed(step: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def plain_softmax(scores: jt.Var, scale: float, bias: jt.Var | None = None) -> jt.Var:
    """`attention_softmax` as Jittor's own."""
    scores = scores * scale
    return nn.softmax(scores if bias is None else scores + bias, -1)


def replaced(step: Callable[[], None], module: object, name: str, by: object) -> Callable[[], None]:
    """The step with another operation."""

    def patched() -> None:
        with mock.patch.object(module, name, by):
            step()

    return patched


def compare(training: Training, torch: Torch | None, rounds: int, steps: int) -> dict:
    """Seconds of whole steps of each implementation, in alternating rounds."""
    step = training.step
    sampling = replaced(step, deformable, "deformable_sampling", plain_sampling)
    softmax = replaced(step, layers, "attention_softmax", plain_softmax)
    both = replaced(sampling, layers, "attention_softmax", plain_softmax)
    runs = {
        "Jittor": lambda count: timed(step, count),
        "Jittor, plain softmax": lambda count: timed(softmax, count),
        "Jittor, plain deformable attention": lambda count: timed(sampling, count),
        "Jittor, both plain": lambda count: timed(both, count),
    }
    if torch is not None:
        runs["PyTorch"] = torch
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(WARM_UP)
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name] += run(steps)
    return seconds


def show(title: str, seconds: dict[str, list[float]], base: str | None = None) -> None:
    print(f"\n| {title} | median ms | fastest ms |" + (" ratio of medians |" if base else ""))
    print("| --- | ---: | ---: |" + (" ---: |" if base else ""))
    for name, values in seconds.items():
        median = statistics.median(values)
        row = f"| {name} | {1e3 * median:.0f} | {1e3 * min(values):.0f} |"
        print(row + (f" {median / statistics.median(seconds[base]):.2f} |" if base else ""))


def profile(training: Training) -> None:
    with jt.profile_scope() as report:
        training.step()
    for name, _, count, total, *_ in report[1:31]:
        print(f"{float(total) / 1e6:8.1f} ms {count:>4} calls  {name[:150]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--boxes", type=int, default=8, help="per image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each implementation per round")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--profile", action="store_true", help="list the most expensive kernels")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("batch", "size", "boxes")}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    torch = Torch(arguments.torch_python, options) if arguments.torch_python else None
    training = Training(**sizes)

    whole = compare(training, torch, arguments.rounds, arguments.steps)
    show("whole step", whole, base="PyTorch" if torch else "Jittor")
    for measure in (parts_of_a_step, losses_alone, sampling_alone):
        clock = Clock()
        for _ in range(WARM_UP):
            measure(training, Clock())
        for _ in range(arguments.rounds):
            measure(training, clock)
        show(measure.__doc__.splitlines()[0].rstrip("."), clock.seconds)
    if arguments.profile:
        profile(training)
    if torch is not None:
        torch.close()


if __name__ == "__main__":
    main()
