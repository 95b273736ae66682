"""`Trainer`: runs a task through training, validation, test and prediction."""

from __future__ import annotations

from jtlightning.trainer.step import NonFiniteGradientError, NonFiniteLossError
from jtlightning.trainer.trainer import Trainer

__all__ = ["NonFiniteGradientError", "NonFiniteLossError", "Trainer"]
