"""Loggers: where scalars, pictures and the configuration go. Clients are imported on start."""

from __future__ import annotations

from jtlightning.loggers.base import Logger
from jtlightning.loggers.csv import CSVLogger
from jtlightning.loggers.mlflow import MLflowLogger
from jtlightning.loggers.tensorboard import TensorBoardLogger
from jtlightning.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "Logger", "MLflowLogger", "TensorBoardLogger", "WandbLogger"]
