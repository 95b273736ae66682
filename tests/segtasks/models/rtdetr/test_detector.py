"""Whole detectors; the comparison with recorded forward passes is the audit's."""

from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from segtasks.commands.audit_rtdetr import audit_rtdetr
from segtasks.golden import golden_input
from segtasks.losses.rtdetr import RTDETRCriterion
from segtasks.models import rtdetr
from segtasks.models.rtdetr.detector import resize_nearest
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    check_sample,
    load_golden_weights,
    read_golden,
)
from tests.segtasks.models.rtdetr.targets import Boxes, GoldenDraws, recorded_boxes


@pytest.mark.parametrize(
    "recording",
    [
        "model_r18vd_256x320",
        pytest.param("model_r18vd_416x448", marks=pytest.mark.slow),  # has invalid anchors
        pytest.param("model_r50vd_256x320", marks=pytest.mark.slow),
    ],
)
def test_every_stage_equals_the_recorded_forward_pass(recording: str) -> None:
    checks = list(audit_rtdetr(REFERENCE / f"{recording}.npz", tolerance=10))

    assert [check for check in checks if not check.passed] == []
    predictions = [check for check in checks if check.name.startswith("pred_")]
    assert len(predictions) == 2
    assert max(check.relative for check in predictions) < 1e-4


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return read_golden(REFERENCE / "train_dn_r18vd.npz")


@pytest.mark.slow
def test_a_training_pass_with_denoising_equals_the_recording(trained: dict) -> None:
    model = rtdetr.rtdetr_r18()
    load_golden_weights(model)
    for head in (model.decoder.enc_score_head, *model.decoder.dec_score_head):
        head.bias.update(jt.full((80,), -float(np.log(99))))
    model.train()
    draws = GoldenDraws("rtdetr.train.dn")
    model.decoder.draws = lambda: draws
    targets = recorded_boxes(trained)
    image = jt.array(golden_input("rtdetr.train.dn.images.3", (2, 3, 160, 192)))

    output = model(image, targets)
    losses = RTDETRCriterion(80)(output, targets)
    total = jt.concat(list(losses.values())).sum()
    tensors = dict(model.named_parameters())
    names = list(trained["param_names"])
    gradients = jt.grad(total, [tensors[name] for name in names])
    layers = [output, *output.auxiliary, *output.denoising]
    jt.sync([total, *gradients, *(x for layer in layers for x in (layer.logits, layer.boxes))])

    assert output.denoising_meta is not None
    assert list(output.denoising_meta.split) == trained["dn_num_split"].tolist()
    assert output.denoising_meta.groups == trained["dn_num_group"]
    recorded = dict(zip(trained["loss_names"], trained["loss_values"], strict=True))
    assert set(losses) == set(recorded)
    for name, value in losses.items():
        # Batch norms over 60 values in the coarsest maps carry rounding on; 2e-4 was measured.
        assert value.item() == pytest.approx(recorded[name], rel=2e-3, abs=1e-4), name
    assert total.item() == pytest.approx(float(trained["total"]), rel=1e-4)
    for kind, predictions in (("aux", output.auxiliary), ("dn", output.denoising)):
        assert len(predictions) == 3
        for i, layer in enumerate(predictions):
            # Matching queries are sorted by score: near-ties swap rows.
            if kind == "dn":
                check_sample(layer.logits, trained, f"dn{i}.logits", 1e-3)
                check_sample(layer.boxes, trained, f"dn{i}.boxes", 1e-3)
    _check_gradients(trained, dict(zip(names, gradients, strict=True)))


def _check_gradients(trained: dict[str, Any], gradients: dict[str, jt.Var]) -> None:
    recorded = dict(zip(gradients, trained["param_grad_norm"].tolist(), strict=True))
    norms = {name: np.linalg.norm(g.numpy().astype(np.float64)) for name, g in gradients.items()}
    # Much smaller ones are zero up to rounding: biases in front of a batch norm.
    compared = [name for name in recorded if recorded[name] > 1e-4 * max(recorded.values())]
    assert len(compared) > 200
    errors = {name: abs(norms[name] / recorded[name] - 1) for name in compared}
    assert max(errors.values()) < 2e-2, max(errors, key=errors.get)
    rows = np.linalg.norm(gradients["decoder.denoising_class_embed.weight"].numpy(), axis=1)
    assert rows[80] == 0
    expected = trained["grad_class_embed_row_norm"]
    np.testing.assert_allclose(rows, expected, rtol=2e-2, atol=1e-3 * expected.max())


def test_boxes_decide_about_denoising_and_only_in_training(trained: dict) -> None:
    model = rtdetr.rtdetr_r18()
    image = jt.zeros((1, 3, 160, 192))
    none = Boxes(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    one = Boxes(np.int64([3]), np.float32([[0.5, 0.5, 0.2, 0.2]]))

    model.train()
    without, plain, noised = model(image, [none]), model(image), model(image, [one])
    model.eval()
    evaluated = model(image, [one])

    assert len(without.auxiliary) == len(plain.auxiliary) == len(noised.auxiliary) == 3
    assert without.denoising == plain.denoising == evaluated.denoising == []
    assert without.denoising_meta is plain.denoising_meta is evaluated.denoising_meta is None
    assert evaluated.auxiliary == []
    assert [tuple(layer.boxes.shape) for layer in noised.denoising] == [(1, 200, 4)] * 3
    assert {tuple(layer.boxes.shape) for layer in (noised, *noised.auxiliary)} == {(1, 300, 4)}


def test_resizing_takes_the_pixels_that_the_official_code_takes() -> None:
    recorded = read_golden(REFERENCE / "geometry.npz")
    image = jt.array(recorded["nearest.in"])

    for size in ((8, 8), (20, 20), (13, 30), (26, 34)):
        resized = resize_nearest(image, size).numpy()
        np.testing.assert_array_equal(resized, recorded[f"nearest.{size[0]}x{size[1]}"])
    assert resize_nearest(image, (13, 17)) is image


def test_the_batch_is_resized_before_the_backbone_sees_it() -> None:
    seen = []

    class Part(nn.Module):
        num_classes = 3

        def execute(self, x: Any, targets: Any = None) -> Any:
            seen.append(x.shape)
            return x

    model = rtdetr.RTDETR(Part(), Part(), Part())
    model(jt.zeros((2, 3, 64, 96)), size=(96, 96))
    model(jt.zeros((2, 3, 64, 96)))

    assert [tuple(shape) for shape in seen] == [(2, 3, 96, 96)] * 3 + [(2, 3, 64, 96)] * 3


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 4, 64, 64), {}, r"image must be \(B, 3, H, W\), got \(2, 4, 64, 64\)"),
        ((2, 3, 64, 65), {}, "multiples of 32, got 64 x 65"),
        ((2, 3, 64, 64), {"size": (48, 64)}, "multiples of 32, got 48 x 64"),
        ((2, 3, 64, 64), {"targets": []}, "0 targets for 2 images"),
    ],
)
def test_inputs_that_do_not_fit_are_named(shape: tuple, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rtdetr.rtdetr_r18()(jt.zeros(shape), **arguments)
