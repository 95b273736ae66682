"""Networks for all tests that predict, so that their kernels are compiled once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jtlightning.checkpoint.container import Checkpoint, write_checkpoint

#: Height and width of the rendered scenes.
ROOMS_SIZE = (64, 96)


@pytest.fixture(scope="session")
def rooms_arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three scenes to predict, 0003 to 0005."""
    return {
        "train": 2,
        "val": 3,
        "size": list(ROOMS_SIZE),
        "crop_size": list(ROOMS_SIZE),
        "batch_size": 2,
        "val_batch_size": 2,
        "num_workers": 0,
        "cache_dir": str(tmp_path_factory.mktemp("rooms")),
    }


@pytest.fixture(scope="session")
def dformer_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, rooms_arguments: dict[str, Any]
) -> Path:
    """DFormer-Tiny as `segtasks fit` saves it, with an average that differs from the weights."""
    import jittor as jt

    from jtlightning.state import RunState
    from jtlightning.trainer.evaluate import evaluation_mode
    from segtasks.models.dformer import dformer_tiny

    jt.set_global_seed(5)
    network = dformer_tiny(8)
    rng = np.random.default_rng(5)
    # Untrained, one class wins everywhere; with its mean taken away, each has pixels.
    classifier = network.decode_head.conv_seg
    classifier.weight.update(jt.array(rng.normal(0, 1, classifier.weight.shape).astype("float32")))
    with jt.no_grad(), evaluation_mode(network):
        image, depth = (rng.normal(0, 1, (1, 3, *ROOMS_SIZE)).astype("float32") for _ in range(2))
        logits = network(jt.array(image), jt.array(depth)).numpy()
    classifier.bias.update(classifier.bias - jt.array(logits.mean((0, 2, 3))))
    weights = {f"model.{name}": value.numpy() for name, value in network.named_parameters()}
    # The average has the classes in the opposite order, and no variances.
    average = {name: array for name, array in weights.items() if not name.endswith("_var")}
    for name in ("model.decode_head.conv_seg.weight", "model.decode_head.conv_seg.bias"):
        average[name] = weights[name][::-1].copy()
    tensors = {f"model/{name}": array for name, array in weights.items()}
    tensors |= {f"callback/EMA/average/{name}": array for name, array in average.items()}
    config = {
        "trainer": {"seed": 3},
        "data": {"class_path": "segtasks.data.RoomsDataModule", "init_args": rooms_arguments},
        "task": {
            "class_path": "segtasks.tasks.SegmentationTask",
            "init_args": {
                "model": {
                    "class_path": "segtasks.models.dformer.dformer_tiny",
                    "init_args": {"num_classes": 8},
                },
                # What a fine-tuning started from is seldom there later.
                "weights": "gone.pth",
            },
        },
    }
    metadata = {
        "format": 1,
        "loop": RunState().state_dict(),
        "callbacks": {"EMA": {"updates": 7}},
        "config": config,
    }
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    write_checkpoint(path, Checkpoint(tensors, metadata))
    return path


BRIGHT_DETECTOR = '''
"""Finds the one bright square of an image: class 0 where it is red, 1 where it is green."""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from segtasks.models.rtdetr.outputs import RTDETROutput


class Bright(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.factor = jt.zeros(1)

    def execute(self, image: jt.Var) -> RTDETROutput:
        assert not self.is_training()
        pixels = image.numpy()
        logits, boxes = [], []
        for one in pixels:
            rows, columns = np.nonzero(one.max(0) > 0.6)
            height, width = one.shape[1:]
            left, right = columns.min() / width, (columns.max() + 1) / width
            top, bottom = rows.min() / height, (rows.max() + 1) / height
            boxes.append([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
            scores = [4.0 if one[channel].max() > 0.6 else -2.0 for channel in (0, 1)]
            logits.append(scores + [-9.0] * (self.num_classes - 2))
        answer = jt.array(np.array(logits, np.float32)[:, None]) * self.factor
        return RTDETROutput(answer, jt.array(np.array(boxes, np.float32)[:, None]))
'''


@pytest.fixture
def bright_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A detector without learning whose answers are known; its data are not there."""
    # The command would keep what Jittor prints, for the rest of the process, if it imported it.
    import jittor  # noqa: F401

    from jtlightning.state import RunState

    (tmp_path / "bright_detector.py").write_text(BRIGHT_DETECTOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = {"root": str(tmp_path / "gone"), "size": [64, 64], "val_batch_size": 2}
    model = {"class_path": "bright_detector.Bright", "init_args": {"num_classes": 2}}
    config = {
        "data": {"class_path": "segtasks.data.CocoDataModule", "init_args": data},
        "task": {"class_path": "segtasks.tasks.RTDETRTask", "init_args": {"model": model}},
    }
    metadata = {"format": 1, "loop": RunState().state_dict(), "callbacks": {}, "config": config}
    path = tmp_path / "bright.ckpt"
    write_checkpoint(path, Checkpoint({"model/model.factor": np.ones(1, np.float32)}, metadata))
    return path
