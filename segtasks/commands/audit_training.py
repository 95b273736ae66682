"""Repeat recorded training steps of a DFormer and compare what they leave behind.

Gradients that are zero up to rounding (a bias in front of a batch norm, the bias of attention
keys) say nothing, and Adam turns their rounding into full steps. The recordings give values of a
double-precision run beside: tensors and samples where the two differ too much are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import jittor as jt
import numpy as np

from segtasks.commands.audit_dformer import build, golden_batch
from segtasks.commands.checks import Check, exact, relative
from segtasks.commands.golden_file import GoldenFile, GoldenFileError
from segtasks.golden import summary
from segtasks.losses.segmentation import cross_entropy
from segtasks.models.dformer import DFormerSegmenter, parameter_groups

#: Gradients with a smaller norm are rounding noise.
NOISE_NORM = 1e-6
#: Updates that differ more between single and double precision follow rounding noise.
NOISE_DELTA = 1e-8


def audit_training(golden: GoldenFile, tolerance: float) -> Iterator[Check]:
    """Run the recorded steps with Jittor's AdamW on the official groups and compare."""
    meta = golden.meta
    model = build(golden)
    model.train()
    tensors = dict(model.named_parameters())
    for key in ("names", "picked", "bn", "unchanged"):
        unknown = sorted(set(meta[key]) - set(tensors))
        if unknown:
            raise GoldenFileError(f"{golden.path}: meta[{key!r}]: {unknown[0]} is unknown")
    before = {name: tensor.numpy() for name, tensor in tensors.items()}
    groups = parameter_groups(model, "official", meta["weight_decay"])
    optimised = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [tensors[name] for name in meta["names"] if id(tensors[name]) not in optimised]
    recorded_rest = {name for name in meta["names"] if name in set(meta["unchanged"])}
    differing = {id(tensor) for tensor in rest} ^ {id(tensors[name]) for name in recorded_rest}
    yield exact("parameters not optimised", len(differing), f"{len(rest)} tensors")
    # Rate 0 moves nothing; it makes the optimizer compute the gradients of the rest as well.
    groups.append({"name": "rest", "params": rest, "weight_decay": 0.0, "lr": 0.0})
    optimizer = jt.optim.AdamW(
        groups,
        lr=meta["lr"],
        eps=meta["eps"],
        betas=tuple(meta["betas"]),
    )
    for step in range(meta["steps"]):
        loss, gradients = _step(model, optimizer, golden, step)
        yield relative(f"loss {step}", loss, meta["losses"][step], 1e-4 * tolerance)
        norm = float(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in gradients.values())))
        yield relative(f"gradient norm {step}", norm, meta["grad_norm"][step], 1e-3 * tolerance)
        if step == 0:
            yield from _check_gradients(golden, gradients, tolerance)
    after = {name: tensor.numpy() for name, tensor in tensors.items()}
    yield from _check_updates(golden, before, after, tolerance)
    model.eval()
    with jt.no_grad():
        image, depth, label = golden_batch("train0", meta, meta["num_classes"])
        loss = cross_entropy(model(image, depth), label).item()
    yield relative("loss afterwards", loss, meta["eval_loss_after"], 1e-4 * tolerance)


def _step(
    model: DFormerSegmenter, optimizer: jt.optim.Optimizer, golden: GoldenFile, step: int
) -> tuple[float, dict[str, np.ndarray]]:
    """One update; the loss and the gradients of all parameters, optimised or not."""
    image, depth, label = golden_batch(f"train{step}", golden.meta, golden.meta["num_classes"])
    loss = cross_entropy(model(image, depth), label)
    names = golden.meta["names"]
    tensors = dict(model.named_parameters())
    optimizer.step(loss)
    jt.sync_all()
    return loss.item(), {name: tensors[name].opt_grad(optimizer).numpy() for name in names}


def _check_gradients(
    golden: GoldenFile, gradients: dict[str, np.ndarray], tolerance: float
) -> Iterator[Check]:
    recorded = dict(zip(golden.meta["names"], golden.array("grad_norms").tolist(), strict=True))
    norms = {name: float(np.linalg.norm(g.astype(np.float64))) for name, g in gradients.items()}
    compared = [name for name in recorded if not recorded[name] < NOISE_NORM]
    errors = {name: abs(norms[name] / recorded[name] - 1) for name in compared}
    yield _worst("gradient norms, relative", errors, 1e-3 * tolerance)
    errors = {}
    for name in golden.meta["picked"]:
        expected = golden.array(f"grad/{name}")
        if not recorded[name] < NOISE_NORM:
            error = np.abs(summary(gradients[name], len(expected))[2] - expected).max()
            errors[name] = float(error / np.abs(expected).max())
    yield _worst("gradient samples, relative", errors, 1e-3 * tolerance)


def _check_updates(
    golden: GoldenFile,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    tolerance: float,
) -> Iterator[Check]:
    errors = {}
    for name in golden.meta["picked"]:
        expected = golden.array(f"delta/{name}")
        delta = summary(after[name] - before[name], len(expected))[2]
        noise = np.abs(expected - golden.array(f"delta_f64/{name}")) > NOISE_DELTA
        errors[name] = float(np.abs(np.where(noise, 0, delta - expected)).max())
    yield _worst("updates", errors, 2e-6 * tolerance)
    errors = {}
    for name in golden.meta["bn"]:
        expected = golden.array(f"bn/{name}")
        error = np.abs(summary(after[name], len(expected))[2] - expected).max()
        errors[name] = float(error / np.abs(expected).max())
    yield _worst("running statistics, relative", errors, 1e-4 * tolerance)
    unchanged = golden.meta["unchanged"]
    moved = sum(not np.array_equal(before[name], after[name]) for name in unchanged)
    yield exact("tensors that must not move", moved, f"{len(unchanged)} tensors")


def _worst(name: str, errors: dict[str, float], limit: float) -> Check:
    # NaN first: max() would depend on its position.
    worst = max(errors, key=lambda key: (errors[key] != errors[key], errors[key]))
    return Check(name, errors[worst], errors[worst], limit, f"worst of {len(errors)}: {worst}")
