"""`Trainer`: runs a task through training, validation, test and prediction."""

from __future__ import annotations

from jtlightning.trainer.fit import NonFiniteLossError
from jtlightning.trainer.trainer import Trainer

__all__ = ["NonFiniteLossError", "Trainer"]
