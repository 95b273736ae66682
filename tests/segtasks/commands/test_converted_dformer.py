"""A whole DFormer keeps its output through every format of `segtasks convert`."""

from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np
import pytest

from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import read_weights
from jtlightning.trainer.evaluate import evaluation_mode
from segtasks.commands.convert import main
from segtasks.models.dformer import dformer_tiny
from segtasks.tasks import SegmentationTask


def output(file: Path) -> np.ndarray:
    """Logits of a network that starts from a file, for one fixed image."""
    network = dformer_tiny(8, nmf_seed=1)
    SegmentationTask(network, weights=str(file))
    rng = np.random.default_rng(0)
    inputs = (jt.array(rng.normal(0, 1, (1, 3, 64, 96)).astype(np.float32)) for _ in range(2))
    with jt.no_grad(), evaluation_mode(network):
        logits: np.ndarray = network(*inputs).numpy()
    return logits


@pytest.fixture(scope="module")
def official(
    tmp_path_factory: pytest.TempPathFactory, dformer_checkpoint: Path
) -> tuple[Path, np.ndarray]:
    """A file as the official programs write it, and the output of a network that starts from it."""
    path = tmp_path_factory.mktemp("official") / "official.pth"
    state = {f"module.{name}": array for name, array in read_weights(dformer_checkpoint).items()}
    state["module.backbone.norm0.weight"] = np.ones(32, np.float32)
    write_torch(path, {"model": state, "epoch": 499})
    return path, output(path)


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pkl", ".pth"])
def test_converted_weights_give_the_output_of_the_original(
    tmp_path: Path, official: tuple[Path, np.ndarray], ending: str
) -> None:
    source, expected = official
    converted = tmp_path / f"converted{ending}"

    assert main([str(source), str(converted)]) == 0

    np.testing.assert_array_equal(output(converted), expected)
