"""A callback of your own.

From Python as below: `python examples/custom_callback.py`. From YAML, with this file in the working
folder: `trainer: {callbacks: [{class_path: custom_callback.WorstLoss}]}`.
"""
# ruff: noqa: D102 - the hooks are described in jtlightning.Callback

from __future__ import annotations

import tempfile
from typing import Any

import jtlightning


class WorstLoss(jtlightning.Callback):
    """Log the largest loss of each epoch.

    Args:
        name: What it is logged as.
    """

    def __init__(self, name: str = "train/worst_loss") -> None:
        self.name = name
        self.worst = 0.0

    def on_train_batch_end(
        self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # In this hook and later ones reading a value does not change the training.
        self.worst = max(self.worst, outputs.item())

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        trainer.log_metrics({self.name: self.worst})
        self.worst = 0.0

    def state_dict(self) -> dict[str, Any]:
        # A run that is stopped within an epoch goes on from here.
        return {"worst": self.worst}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst = state["worst"]


if __name__ == "__main__":
    from train_from_scratch import Classifier, batches

    folder = tempfile.mkdtemp(prefix="callback-")
    trainer = jtlightning.Trainer(max_epochs=3, default_root_dir=folder, callbacks=[WorstLoss()])
    trainer.fit(Classifier(), batches(20, seed=0))
    print(f"worst loss of the last epoch {trainer.metrics['train/worst_loss']:.3f}")
