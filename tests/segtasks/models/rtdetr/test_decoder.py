from __future__ import annotations

from typing import Any

import jittor as jt
import numpy as np
import pytest

from segtasks.golden import golden_input
from segtasks.models.rtdetr.decoder import RTDETRTransformer
from tests.segtasks.models.rtdetr.golden import (
    REFERENCE,
    assert_names_and_shapes,
    check_sample,
    golden_manifest,
    load_golden_weights,
    read_golden,
)

CASES = ("a", "b", "c", "d")
TRAINED = ("a", "b", "c")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return read_golden(REFERENCE / "decoder_small.npz")


def _case(golden: dict[str, Any], key: str) -> tuple[RTDETRTransformer, list[jt.Var]]:
    """The decoder of a recording with its weights, and the maps that it was given."""
    case = next(case for case in golden["cases"] if case["key"] == key)
    model = RTDETRTransformer(**{k: v for k, v in case["kwargs"].items() if k != "feat_strides"})
    load_golden_weights(model, f"rtdetr.decoder.{key}.")
    maps = [
        jt.array(golden_input(f"rtdetr.decoder.{key}.feat{i}", (case["batch"], 16, h, w)))
        for i, (h, w) in enumerate(case["feat_hw"])
    ]
    return model, maps


def _align(values: np.ndarray, ours: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Rows of `values` in the recording's order of tokens; all tokens must be the same.

    Tokens with invalid anchors are alike and their order says nothing, so that a token which only
    one side picked may stand for any other of them.
    """
    rows = []
    for row, (mine, theirs) in enumerate(zip(ours.tolist(), recorded.tolist(), strict=True)):
        spare = [t for t in mine if t not in theirs]
        place = [mine.index(t) if t in mine else mine.index(spare.pop()) for t in theirs]
        rows.append(values[row][place])
    return np.stack(rows)


@pytest.mark.parametrize("key", CASES)
def test_parameters_are_the_official_ones(golden: dict, key: str) -> None:
    model, _ = _case(golden, key)

    assert_names_and_shapes(model, golden_manifest(golden, key))


@pytest.mark.parametrize("key", CASES)
def test_predictions_equal_the_recording(golden: dict, key: str) -> None:
    model, maps = _case(golden, key)
    model.eval()

    with jt.no_grad():
        memory, shapes = model.tokens(maps)
        selected = model.select(memory, shapes)
        output = model(maps)

    index = selected.index.numpy()
    for name, value in (
        ("pred_logits", output.logits),
        ("pred_boxes", output.boxes),
        ("enc_topk_logits", selected.predictions.logits),
        ("enc_topk_boxes", selected.predictions.boxes),
        ("target", selected.content),
    ):
        aligned = _align(value.numpy(), index, golden[f"{key}.topk_ind"])
        check_sample(aligned, golden, f"{key}.{name}", 1e-4)
    assert output.auxiliary == []
    assert output.denoising == []


@pytest.mark.parametrize("key", TRAINED)
def test_training_outputs_and_gradients_equal_the_recording(golden: dict, key: str) -> None:
    model, maps = _case(golden, key)
    model.train()

    output = model(maps)
    layers = [*output.auxiliary, output]
    up_b = jt.array(golden_input(f"rtdetr.decoder.{key}.up_b", tuple(output.boxes.shape)))
    up_l = jt.array(golden_input(f"rtdetr.decoder.{key}.up_l", tuple(output.logits.shape)))
    loss = (output.boxes * up_b).sum() + (output.logits * up_l).sum()
    names = golden[f"{key}.train.grad_names"]
    tensors = dict(model.named_parameters())
    gradients = [g.numpy() for g in jt.grad(loss, [tensors[name] for name in names])]

    assert len(layers) == golden[f"{key}.train.n_aux"] + 1
    for name, layer in zip(("aux0", "aux1", "aux2", "pred"), layers, strict=True):
        dot = "_" if name == "pred" else "."
        check_sample(layer.logits, golden, f"{key}.train.{name}{dot}logits", 1e-4)
        check_sample(layer.boxes, golden, f"{key}.train.{name}{dot}boxes", 1e-4)
    norms = np.array([np.linalg.norm(g.astype(np.float64)) for g in gradients])
    recorded, absent = golden[f"{key}.train.grad_norms"], golden[f"{key}.train.grad_none"]
    assert norms[absent].max() == 0
    np.testing.assert_allclose(norms[~absent], recorded[~absent], rtol=1e-3, atol=1e-3)
