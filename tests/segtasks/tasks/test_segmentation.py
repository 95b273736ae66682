"""The segmentation task on a network of one convolution, so that nothing large is compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jtlightning.callbacks.image_logger import ImageLogger
from jtlightning.checkpoint.torch_export import write_torch
from jtlightning.checkpoint.weights import WeightsError
from jtlightning.trainer import Trainer
from segtasks.data import RGBDDataModule
from segtasks.metrics.segmentation import ConfusionMatrix
from segtasks.models.dformer import dformer_tiny
from segtasks.tasks import SegmentationTask
from segtasks.visualize import prediction_sheet

SIZE = (8, 12)
CLASSES = 3


class ByDepth(nn.Module):
    """Class 0 to 2 by the grey level of the depth alone; the image is ignored."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.offset = jt.zeros(num_classes)

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        levels = jt.array(np.linspace(-2, 2, self.num_classes, dtype=np.float32))
        distance = depth[:, :1] - levels.reshape((1, -1, 1, 1))
        return self.offset.reshape((1, -1, 1, 1)) - distance * distance


@pytest.fixture
def rooms(tmp_path: Path, rng: np.random.Generator) -> RGBDDataModule:
    """Three samples whose label follows from the depth, class 0 being the commonest."""
    root = tmp_path / "data"
    for folder in ("RGB", "Depth", "Label"):
        (root / folder).mkdir(parents=True)
    for index in range(3):
        label = rng.choice(CLASSES, SIZE, p=(0.6, 0.2, 0.2)).astype(np.uint8)
        depth = (20 + 100 * label).astype(np.uint8)
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        for folder, pixels in (("RGB", image), ("Depth", depth), ("Label", label + 1)):
            cv2.imwrite(str(root / folder / f"{index}.png"), pixels)
    for split in ("train", "test"):
        (root / f"{split}.txt").write_text("".join(f"RGB/{i}.png\n" for i in range(3)))
    return RGBDDataModule(
        str(root),
        CLASSES,
        class_names=["near", "middle", "far"],
        crop_size=SIZE,
        batch_size=3,
        val_batch_size=2,
        num_workers=0,
    )


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=str(folder / "runs"), **{**quiet, **arguments})


def test_a_test_writes_results_with_both_baselines_and_pictures(
    tmp_path: Path, rooms: RGBDDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path)
    metrics = trainer.test(
        SegmentationTask(ByDepth(), baselines=True, pictures=2), datamodule=rooms
    )
    assert metrics["test/miou"] == 1.0
    assert trainer.run is not None
    results = json.loads((trainer.run.path / "results.json").read_text())
    assert results["unit"] == "0 to 1"
    assert results["protocol"] == {"protocol": "single_scale"}
    assert results["classes"] == ["near", "middle", "far"]
    assert results["scores"]["model"]["iou"] == [1, 1, 1]
    # Blanked, the depth is its mean everywhere: level 0 of -2, 0, 2, so class 1 everywhere.
    counts, majority = ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)
    for index in range(3):
        raw = cv2.imread(str(rooms.root / f"Label/{index}.png"), cv2.IMREAD_UNCHANGED)
        counts.update(np.ones(SIZE, np.int64), raw.astype(np.int64) - 1)
        majority.update(rooms.majority_label(SIZE), raw.astype(np.int64) - 1)
    assert results["scores"]["without depth"]["miou"] == pytest.approx(counts.scores().miou)
    assert results["scores"]["majority of position"]["iou"] == pytest.approx(majority.scores().iou)
    assert (trainer.run.pictures / "predictions.png").is_file()
    assert "mIoU lost without depth" in capsys.readouterr().out


def test_model_and_data_must_agree_on_the_classes(tmp_path: Path, rooms: RGBDDataModule) -> None:
    task = SegmentationTask(ByDepth(num_classes=5))
    with pytest.raises(ValueError, match="5 classes apart, RGBDDataModule has 3"):
        make_trainer(tmp_path).fit(task, datamodule=rooms)


def test_predictions_are_saved_as_label_maps(tmp_path: Path, rooms: RGBDDataModule) -> None:
    trainer = make_trainer(tmp_path)
    outputs = trainer.predict(SegmentationTask(ByDepth()), datamodule=rooms)
    assert [name for batch in outputs for name in batch] == ["0", "1", "2"]
    assert trainer.run is not None
    raw = cv2.imread(str(rooms.root / "Label/1.png"), cv2.IMREAD_UNCHANGED)
    saved = cv2.imread(str(trainer.run.path / "predictions/1.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(saved, raw - 1)
    assert (trainer.run.path / "predictions/1_overlay.png").is_file()


def test_training_logs_the_loss_and_validation_the_scores(
    tmp_path: Path, rooms: RGBDDataModule
) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, log_every_n_steps=1)
    task = SegmentationTask(ByDepth())
    trainer.fit(task, datamodule=rooms)
    assert trainer.metrics["val/miou"] == 1.0
    assert 0 < trainer.metrics["train/loss"] < 1
    assert np.abs(task.model.offset.numpy()).max() > 0


def test_predictions_are_drawn_in_validation(tmp_path: Path, rooms: RGBDDataModule) -> None:
    network = ByDepth()
    network.offset.update(jt.array([0.0, 100.0, 0.0]))  # class 1 everywhere
    trainer = make_trainer(tmp_path, callbacks=[ImageLogger(limit=5)])
    trainer.validate(SegmentationTask(network), datamodule=rooms)
    assert trainer.run is not None
    drawn = sorted((trainer.run.pictures / "predictions").iterdir())
    assert [path.name for path in drawn] == ["0-step0000000.png", "1-step0000000.png"]
    raw = cv2.imread(str(rooms.root / "Label/1.png"), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(rooms.root / "RGB/1.png"))[..., ::-1]
    depth = cv2.imread(str(rooms.root / "Depth/1.png"), cv2.IMREAD_UNCHANGED)
    expected = prediction_sheet(
        [image], [depth], [raw - 1], [np.ones(SIZE, np.int64)], ["near", "middle", "far"]
    )
    sheet = cv2.imread(str(drawn[1]))[..., ::-1]
    np.testing.assert_array_equal(sheet, expected)


def test_weights_of_another_run_start_the_network(tmp_path: Path, rooms: RGBDDataModule) -> None:
    network = ByDepth()
    network.offset.update(jt.array([1.0, 2.0, 3.0]))
    saved = make_trainer(tmp_path, max_steps=1)
    saved.fit(SegmentationTask(network), datamodule=rooms)
    assert saved.run is not None
    path = saved.run.checkpoints / "last.ckpt"
    task = SegmentationTask(ByDepth(), weights=str(path))
    np.testing.assert_array_equal(task.model.offset.numpy(), network.offset.numpy())
    with pytest.raises(WeightsError, match=r"offset \(file \(3,\), model \(4,\)\)"):
        SegmentationTask(ByDepth(4), weights=str(path))
    kept = SegmentationTask(ByDepth(4), weights=str(path), skip_weights=["offset"])
    np.testing.assert_array_equal(kept.model.offset.numpy(), np.zeros(4))


def test_dformer_starts_from_a_pth_with_the_names_of_the_earlier_port(tmp_path: Path) -> None:
    source = dformer_tiny(CLASSES)
    arrays = {name: value.numpy() for name, value in source.named_parameters()}
    port = {
        name.replace("gamma_", "gamma").replace(".bn.", ".norm."): a for name, a in arrays.items()
    }
    port = {
        name.replace("decode_head.conv_seg", "decode_head.cls_seg"): a for name, a in port.items()
    }
    assert len(set(arrays) - set(port)) > 10
    unread = {"backbone.norm0.weight": np.ones(32, np.float32)}
    path = tmp_path / "port.pth"
    write_torch(path, {"model": {**port, **unread}})
    loaded = SegmentationTask(dformer_tiny(CLASSES), weights=str(path)).model
    for name, value in loaded.named_parameters():
        np.testing.assert_array_equal(value.numpy(), arrays[name], err_msg=name)


def test_a_pre_trained_backbone_leaves_the_head_as_it_is(tmp_path: Path) -> None:
    source = dformer_tiny(CLASSES)
    arrays = {name: value.numpy() for name, value in source.named_parameters()}
    prefix = "backbone."
    backbone = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    path = tmp_path / "imagenet.pth.tar"
    classifier = {"head.weight": np.ones((1000, 256), np.float32)}
    write_torch(path, {"state_dict_ema": {**backbone, **classifier}, "epoch": 300})
    fresh = dformer_tiny(CLASSES + 1)
    before = {name: value.numpy() for name, value in fresh.named_parameters()}
    loaded = SegmentationTask(fresh, weights=str(path), skip_weights=["decode_head"]).model
    for name, value in loaded.named_parameters():
        expected = (arrays if name.startswith(prefix) else before)[name]
        np.testing.assert_array_equal(value.numpy(), expected, err_msg=name)
    with pytest.raises(WeightsError, match=r"decode_head[^$]*name it in `skip_weights`"):
        SegmentationTask(dformer_tiny(CLASSES), weights=str(path))


def test_another_network_s_names_are_its_own(tmp_path: Path) -> None:
    class Renamed(ByDepth):
        def __init__(self) -> None:
            super().__init__()
            self.norm0 = nn.LayerNorm(4)

    source = Renamed()
    source.norm0.weight.update(jt.array([1.0, 2.0, 3.0, 4.0]))
    path = tmp_path / "own.pth"
    write_torch(path, {name: value.numpy() for name, value in source.named_parameters()})
    loaded = SegmentationTask(Renamed(), weights=str(path)).model
    np.testing.assert_array_equal(loaded.norm0.weight.numpy(), [1, 2, 3, 4])
