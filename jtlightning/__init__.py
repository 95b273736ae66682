"""A trainer for Jittor: Lightning's vocabulary, exact resume, nothing hidden.

Importing it prepares the environment for Jittor (see `jtlightning.runtime`), but Jittor itself is
imported only with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module

from jtlightning import runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jtlightning.callbacks.base import Callback as Callback
    from jtlightning.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from jtlightning.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from jtlightning.data.datamodule import DataModule as DataModule
    from jtlightning.data.loader import Loader as Loader
    from jtlightning.loggers.base import Logger as Logger
    from jtlightning.profiler import Profiler as Profiler
    from jtlightning.task import Task as Task
    from jtlightning.trainer import Trainer as Trainer

_HOMES = {
    "Callback": "callbacks.base",
    "DataModule": "data.datamodule",
    "EarlyStopping": "callbacks.early_stopping",
    "Loader": "data.loader",
    "Logger": "loggers.base",
    "ModelCheckpoint": "callbacks.model_checkpoint",
    "Profiler": "profiler",
    "Task": "task",
    "Trainer": "trainer",
}
__all__ = [*_HOMES, "runtime"]

__version__ = "0.1.0"

runtime.prepare()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
