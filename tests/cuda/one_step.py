"""Program: two training steps and a validation of a model, as the trainer does them.

The second step is there because optimizer states appear after the first, and with them kernels.
Where the device is a stand-in, no kernel runs: values mean nothing, and nobody looks at them.

    python -m tests.cuda.one_step MODEL DEVICE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from jtlightning import Trainer
from jtlightning.trainer import step
from segtasks.data import RoomsDataModule
from segtasks.metrics.segmentation import ConfusionMatrix
from segtasks.models import dformer
from segtasks.tasks import SegmentationTask

#: The least that DFormer's five halvings leave something of.
SIZE = (64, 96)


def main(model: str, device: str, folder: str) -> None:
    """Train and evaluate `model` on `device`, "cuda" or "cpu"."""
    data = RoomsDataModule(
        train=4, val=2, size=SIZE, crop_size=SIZE, scales=(1.0,), batch_size=2, val_batch_size=2,
        num_workers=0,
    )  # fmt: skip
    trainer = Trainer(
        accelerator=device, max_steps=2, num_sanity_val_steps=0, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    task = SegmentationTask(getattr(dformer, model)(num_classes=data.num_classes))
    # What looks at values: the check that they are finite, and the counting of classes.
    with mock.patch.object(step, "math"), mock.patch.object(ConfusionMatrix, "update"):
        trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    assert "val/miou" in trainer.metrics
    assert trainer.device == device


if __name__ == "__main__":
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
