"""Whole data sets through the data module: the recorded one, and one of RGB-thermal images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segtasks.data.modules import RGBDDataModule

PROTOCOL = Path(__file__).parents[2] / "reference" / "protocol"

RECORDED_OPTIONS = {
    "NYUDepthv2/DFormer-Tiny": {},
    "NYUDepthv2/DFormerv2_S": {},
    "SUNRGBD/DFormer-Tiny": {},
    "SUNRGBD/DFormerv2_S": {"channel_order": "rgb", "pad_validation": (531, 730)},
}


@pytest.mark.parametrize("key", sorted(RECORDED_OPTIONS))
def test_validation_batches_equal_the_recorded_reference(key):
    """All 36 recorded `val/*` arrays, through the module and its loader."""
    module = RGBDDataModule(str(PROTOCOL / "mini"), 13, num_workers=0, **RECORDED_OPTIONS[key])
    module.setup("validate")
    batches = list(module.val_dataloader().batches(0))
    with np.load(PROTOCOL / "protocol.npz") as recorded:
        for index, batch in enumerate(batches):
            for name, array in (("rgb", batch.image), ("modal", batch.depth)):
                got = array.reshape(-1)[np.arange(256) * array.size // 256]
                # One rounding of a float64 to float32, at values up to 2.6.
                assert np.abs(got - recorded[f"val/{key}/{index}/{name}"]).max() <= 1e-6
            got = batch.label.reshape(-1)[np.arange(256) * batch.label.size // 256]
            assert (got == recorded[f"val/{key}/{index}/label"]).all()
        assert f"val/{key}/{len(batches)}/rgb" not in recorded


def test_rgb_thermal_in_the_layout_of_mfnet_is_read(tmp_path):
    """Plain names in the splits, other folders, grey thermal images, labels that count from 0."""
    generator = np.random.default_rng(0)
    names = ["00001D", "00002D", "00003N", "00004N"]
    for name in names:
        for folder, array in (
            ("images", generator.integers(0, 256, (12, 16, 3), np.uint8)),
            ("thermal", np.dstack([generator.integers(0, 256, (12, 16), np.uint8)] * 3)),
            ("labels", generator.integers(0, 9, (12, 16), np.uint8)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), array)
    (tmp_path / "train.txt").write_text("00001D\n00003N\n")
    (tmp_path / "test.txt").write_text("00002D\n00004N\n")
    module = RGBDDataModule(
        str(tmp_path),
        9,
        class_names="mfnet9",
        rgb_folder="images",
        depth_folder="thermal",
        label_folder="labels",
        label_shift=False,
        crop_size=(8, 8),
        batch_size=2,
        val_batch_size=2,
        num_workers=0,
    )
    module.setup("fit")
    (training,) = module.train_dataloader().batches(0)
    assert sorted(training.names) == ["00001D", "00003N"]
    (batch,) = module.val_dataloader().batches(0)
    assert batch.names == ["00002D", "00004N"]
    raw = cv2.imread(str(tmp_path / "labels/00002D.png"), cv2.IMREAD_GRAYSCALE)
    assert (batch.label[0] == raw).all()  # 0 is a class
    thermal = cv2.imread(str(tmp_path / "thermal/00002D.png"), cv2.IMREAD_GRAYSCALE)
    assert np.allclose(batch.depth[0], (thermal / 255 - 0.48) / 0.28, atol=1e-6)
    assert module.class_names[0] == "unlabelled"
