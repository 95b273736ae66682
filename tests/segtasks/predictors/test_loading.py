"""From every kind of file to a network, and clear errors where that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn
from safetensors.numpy import save_file

from jtlightning.checkpoint.container import Checkpoint, read_checkpoint, write_checkpoint
from jtlightning.checkpoint.errors import CheckpointError
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import WeightsError, read_weights
from jtlightning.cli.config import ConfigError
from segtasks import load_segmenter
from segtasks.inference import MultiScaleFlip, SingleScale, Sliding
from segtasks.models.dformer import dformer_tiny
from segtasks.predictors import PredictionError


class Offset(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.offset = jt.zeros(num_classes)

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        return self.offset.reshape((1, -1, 1, 1)) + depth[:, :1] * 0


@pytest.fixture
def offsets(tmp_path: Path) -> Path:
    path = tmp_path / "offsets.pth"
    write_torch(path, {"model": {"offset": np.array([0.0, 2.0, 1.0], np.float32)}})
    return path


def ask(segmenter: Any) -> Any:
    return segmenter.predict(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))


def test_a_network_takes_the_weights_of_a_foreign_file(offsets: Path) -> None:
    segmenter = load_segmenter(offsets, model=Offset(), class_names=["a", "b", "c"])
    assert (ask(segmenter).label == 1).all()
    assert segmenter.class_names == ("a", "b", "c")
    assert segmenter.preparation.channel_order == "bgr"
    with pytest.raises(WeightsError, match=r"offset \(file \(3,\), model \(4,\)\)"):
        load_segmenter(offsets, model=Offset(4))


def test_official_names_of_dformer_fit_in_every_format(
    tmp_path: Path, dformer_checkpoint: Path
) -> None:
    """Also with the names of the earlier port, and those that nothing reads."""
    arrays = dict(read_weights(dformer_checkpoint))
    port = {
        n.replace("gamma_", "gamma").replace("conv_seg", "cls_seg"): a for n, a in arrays.items()
    }
    port["backbone.norm0.weight"] = np.ones(32, np.float32)
    files = {"official.pth": {"model": arrays}, "port.pth": {"state_dict": port}}
    for name, content in files.items():
        write_torch(tmp_path / name, content)
    jt.save(port, str(tmp_path / "port.pkl"))
    save_file(arrays, tmp_path / "exported.safetensors")
    for name in (*files, "port.pkl", "exported.safetensors"):
        given = load_segmenter(tmp_path / name, model=dformer_tiny(8))
        for key, value in given.model.named_parameters():
            np.testing.assert_array_equal(value.numpy(), arrays[key], err_msg=f"{name}: {key}")


def test_configuration_files_describe_the_network_of_a_foreign_file(
    tmp_path: Path, dformer_checkpoint: Path
) -> None:
    write_torch(tmp_path / "rooms.pth", {"model": dict(read_weights(dformer_checkpoint))})
    override = tmp_path / "override.yaml"
    override.write_text(
        "trainer: {seed: 9}\n"
        "task:\n  init_args:\n    weights: nowhere.pth\n"
        "    protocol: {class_path: segtasks.inference.Sliding, init_args: {crop: [32, 32]}}\n"
    )
    segmenter = load_segmenter(tmp_path / "rooms.pth", config=["debug/dformer_tiny.yaml", override])
    assert segmenter.num_classes == 8
    assert segmenter.class_names[-1] == "ball"
    assert segmenter.protocol.describe()["crop"] == [32, 32]
    assert segmenter.seed == 9


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("dformer_t.yaml", ("bgr", None, None)),
        ("dformerv2_s_sunrgbd.yaml", ("rgb", None, (531, 730))),
        ("pothole.yaml", ("bgr", 65535.0, None)),
    ],
)
def test_preparation_is_the_configuration_s(config: str, expected: tuple[Any, ...]) -> None:
    from segtasks.predictors.configuration import read_recipe

    found = read_recipe(Path("any.pth"), [config]).preparation
    assert (found.channel_order, found.depth_max, found.pad_to) == expected


def test_arguments_are_stronger_than_the_configuration(dformer_checkpoint: Path) -> None:
    assert isinstance(load_segmenter(dformer_checkpoint).protocol, SingleScale)
    given = load_segmenter(
        dformer_checkpoint,
        model=dformer_tiny(8),
        protocol=MultiScaleFlip(window=Sliding((32, 32))),
        channel_order="rgb",
        depth_max=5000,
        pad_to=(64, 96),
        weights="raw",
    )
    assert isinstance(given.protocol, MultiScaleFlip)
    assert given.preparation.channel_order == "rgb"
    assert given.preparation.depth_max == 5000
    assert given.preparation.pad_to == (64, 96)
    assert given.class_names[-1] == "ball"  # of the data inside the file
    assert given.seed == 3


def test_what_cannot_be_loaded_is_one_clear_error(
    tmp_path: Path, dformer_checkpoint: Path, offsets: Path
) -> None:
    stored = read_checkpoint(dformer_checkpoint)
    bare, other, open_loop = (tmp_path / f"{n}.ckpt" for n in ("bare", "other", "open"))
    write_checkpoint(bare, Checkpoint(stored.tensors, {"format": 1}))
    config = stored.metadata["config"]
    task = {**config["task"], "class_path": "jtlightning.Task", "init_args": {}}
    write_checkpoint(other, Checkpoint({}, {"config": {**config, "task": task}}))
    write_checkpoint(open_loop, Checkpoint({}, {"config": {**config, "task": None}}))
    for arguments, kind, message in (
        ((tmp_path / "no.ckpt",), PredictionError, r"no\.ckpt does not exist; name a file: \.ckpt"),
        ((tmp_path,), PredictionError, r"is a folder; name a file; there is bare\.ckpt, open"),
        ((bare,), ConfigError, r"bare\.ckpt holds no configuration, .* --config FILE, .* model="),
        ((offsets,), ConfigError, r"offsets\.pth holds no configuration"),
        ((other,), PredictionError, r"jtlightning\.Task \(inside .*\) is no segmentation task"),
        ((open_loop,), ConfigError, r"names no task"),
    ):
        with pytest.raises(kind, match=message):
            load_segmenter(*arguments)
    for options, message in (
        ({"config": "demo.yaml", "model": Offset()}, "config= or model=, not both"),
        ({"weights": "average"}, "weights must be 'auto', 'ema' or 'raw', got 'average'"),
        ({"config": "dmo.yaml"}, r"no configuration file dmo\.yaml; did you mean demo\.yaml\?"),
    ):
        with pytest.raises(ValueError, match=message):
            load_segmenter(dformer_checkpoint, **options)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_segmenter(offsets, model=Offset(), weights="ema")
    damaged = tmp_path / "damaged.ckpt"
    content = bytearray(dformer_checkpoint.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt"):
        load_segmenter(damaged)


def test_a_wrong_path_is_reported_without_jittor() -> None:
    code = (
        "import sys, segtasks\n"
        "assert 'segtasks.predictors' not in sys.modules\n"
        "try:\n    segtasks.load_segmenter('nowhere.ckpt')\n"
        "except ValueError as error:\n    assert 'nowhere.ckpt does not exist' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
        "assert 'jittor' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
