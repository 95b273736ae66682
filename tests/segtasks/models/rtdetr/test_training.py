"""Three training steps of the whole r18 network beside those of the official PyTorch code."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.gradients import clip_by_norm, gradient_norm
from jtlightning.optim import AdamW
from segtasks.golden import golden_input, golden_tensor, summary
from segtasks.losses.rtdetr import RTDETRCriterion
from segtasks.models.rtdetr import rtdetr_r18

RECORDING = Path(__file__).parents[3] / "reference" / "rtdetr" / "train_steps_r18vd.npz"
SAMPLES = 256

pytestmark = pytest.mark.slow


@dataclass
class Run:
    """What the steps left behind, all of it by name."""

    losses: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)  # of the first step
    states: list[dict[str, np.ndarray]] = field(default_factory=list)  # before, then after each


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDING) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def run(recorded: dict) -> Run:
    meta = json.loads(str(recorded["meta"]))
    model = rtdetr_r18(num_denoising=0)
    parameters = dict(model.named_parameters())
    for name, value in parameters.items():
        value.assign(jt.array(golden_tensor(name, value.shape)))
        if name.startswith(("decoder.enc_score_head", "decoder.dec_score_head")) and "bias" in name:
            value.assign(jt.full(value.shape, -math.log(99)))
    model.train()
    trained = {str(name): parameters[str(name)] for name in recorded["param_names"]}
    optimizer = AdamW(1e-4, weight_decay=1e-4).build(groups(recorded, trained))
    image = jt.array(golden_input("rtdetr.train.steps.images.1", (2, 3, 160, 192)))
    targets = [
        SimpleNamespace(labels=recorded[f"gt_labels.{i}"], boxes=recorded[f"gt_boxes.{i}"])
        for i in range(2)
    ]
    criterion = RTDETRCriterion(model.num_classes)

    run = Run(states=[arrays(model)])
    for _ in range(meta["steps"]):
        terms = criterion(model(image, targets), targets)
        optimizer.backward(jt.concat(list(terms.values())).sum())
        gradients = [p.opt_grad(optimizer) for p in trained.values()]
        norm = gradient_norm(gradients)
        jt.sync_all()
        run.losses.append({name: term.item() for name, term in terms.items()})
        run.norms.append(norm.item())
        if not run.gradients:
            run.gradients = {n: g.numpy() for n, g in zip(trained, gradients, strict=True)}
        clip_by_norm(gradients, norm, meta["clip"])
        optimizer.step()
        jt.sync_all()
        run.states.append(arrays(model))
    return run


def groups(recorded: dict, trained: dict[str, jt.Var]) -> list[dict]:
    options = json.loads(str(recorded["group_opts"]))
    members = recorded["param_group"]
    return [
        {
            "params": [p for p, own in zip(trained.values(), members, strict=True) if own == i],
            "lr": option["lr"],
            "weight_decay": option["weight_decay"],
        }
        for i, option in enumerate(options)
    ]


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.named_parameters()}


def conditioned(recorded: dict) -> np.ndarray:
    """Parameters whose gradient is not zero up to rounding, as that of a bias before a norm."""
    return recorded["step1.grad_rel_f32_f64"] < 0.1


def sampled(recorded: dict, start: str) -> dict[str, np.ndarray]:
    return {
        key[len(start) : -len(".sample")]: value
        for key, value in recorded.items()
        if key.startswith(start) and key.endswith(".sample")
    }


def relative_distance(values: np.ndarray, expected: np.ndarray) -> float:
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_losses_and_gradient_norm_of_each_step_equal_the_recording(
    recorded: dict, run: Run, step: int
) -> None:
    names, values = recorded[f"step{step}.loss_names"], recorded[f"step{step}.loss_values_f64"]
    losses = run.losses[step - 1]

    assert sorted(losses) == sorted(names)
    np.testing.assert_allclose([losses[name] for name in names], values, rtol=2e-3)
    assert sum(losses.values()) == pytest.approx(recorded[f"step{step}.total"][1], rel=2e-4)
    assert run.norms[step - 1] == pytest.approx(recorded[f"step{step}.grad_norm"][1], rel=2e-3)


def test_gradients_of_the_first_step_equal_the_recording(recorded: dict, run: Run) -> None:
    checked = conditioned(recorded)
    norms = np.array([np.linalg.norm(run.gradients[str(n)]) for n in recorded["param_names"]])

    expected = recorded["step1.param_grad_norm_f64"]
    np.testing.assert_allclose(norms[checked], expected[checked], rtol=2e-2)
    for name, expected in sampled(recorded, "step1.grad.").items():
        gradient = summary(run.gradients[name], SAMPLES)[2]
        assert relative_distance(gradient, expected) < 2e-2, name


@pytest.mark.parametrize("step", [1, 3])
def test_parameters_and_statistics_move_as_in_the_recording(
    recorded: dict, run: Run, step: int
) -> None:
    before, after = run.states[0], run.states[step]
    for name, expected in sampled(recorded, f"step{step}.delta.").items():
        old, new = (summary(state[name], SAMPLES)[2] for state in (before, after))
        # Rates are so small that every update is rounded to a few units in the parameter's last
        # place, which the recording in double precision is not. Adam's first steps go by the sign
        # of the gradient: where it is near zero, rounding turns a few of them round.
        error = np.abs(new.astype(np.float64) - old - expected) - step * np.spacing(np.abs(old))
        excess = np.linalg.norm(np.maximum(error, 0)) / np.linalg.norm(expected)
        assert excess < 0.1, name
    statistics = {k: v for k, v in recorded.items() if k.startswith(f"step{step}.buffer.")}
    assert len(statistics) == 6
    for key, expected in statistics.items():
        name = key.removeprefix(f"step{step}.buffer.")
        assert relative_distance(after[name], expected) < 1e-4, name
