"""The interface between data and trainer."""

from __future__ import annotations

from typing import Any


class DataModule:
    """Everything a run needs to know about its data: override what the run uses.

    The trainer calls `prepare_data`, then `setup(stage)`, then the loaders of that stage, and
    `teardown(stage)` at the end. Stages are fit, validate, test and predict. A loader is a
    `jtlightning.data.loader.Loader` or any iterable of batches.
    """

    def prepare_data(self) -> None:
        """Put files in place, once per machine; keep nothing in `self`."""

    def setup(self, stage: str) -> None:
        """Open the datasets that `stage` needs; report bad input here, before any training."""

    def train_dataloader(self) -> Any:
        """Batches for training."""
        raise self._missing("train_dataloader")

    def val_dataloader(self) -> Any:
        """Batches for validation, or None for training without validation."""
        return None

    def test_dataloader(self) -> Any:
        """Batches for testing."""
        raise self._missing("test_dataloader")

    def predict_dataloader(self) -> Any:
        """Batches for prediction."""
        raise self._missing("predict_dataloader")

    def teardown(self, stage: str) -> None:
        """Release what `setup` opened; also called after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart besides the position, which the trainer keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def _missing(self, method: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} does not define {method}()")
