"""What a checkpoint or configuration files say about a network and its data.

Files, keys and the data's section are read without Jittor, so that a mistake is reported at once.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.checkpoint.foreign import file_kind
from jtlightning.cli.arguments import Arguments
from jtlightning.cli.config import INSIDE, Config, ConfigError
from jtlightning.cli.links import fill, hold_places
from jtlightning.cli.program import Program
from jtlightning.cli.schema import check_keys
from jtlightning.data.datamodule import DataModule
from segtasks.data.samples import DataError
from segtasks.predictors.inputs import PredictionError, Preparation
from segtasks.predictors.sources import LINKS, read_configuration

if TYPE_CHECKING:
    from jtlightning.task import Task

_log = logging.getLogger(__name__)

#: Arguments of tasks that name files with weights to start from.
_START = ("weights", "skip_weights")


@dataclass(frozen=True)
class Recipe:
    """A configuration whose data module is made.

    Attributes:
        config: the sections data and task, and the seed.
        data: the data module; it has read nothing yet.
        source: where the configuration stands, for people.
    """

    config: Config
    data: DataModule
    source: str

    @property
    def preparation(self) -> Preparation:
        """How validation prepares RGB-D images."""
        depth_max = self.config.get("data.init_args.depth_max")
        pad_to = getattr(self.data, "pad_validation", None)
        return Preparation(
            channel_order=getattr(self.data, "channel_order", "bgr"),
            depth_max=None if depth_max is None else float(depth_max),
            pad_to=None if pad_to is None else (int(pad_to[0]), int(pad_to[1])),
        )

    @property
    def seed(self) -> int:
        """The seed of the trainer."""
        return int(self.config.get("trainer.seed") or 0)

    @property
    def class_path(self) -> str:
        """The class of the task, as it is written."""
        return str(self.config.get("task.class_path"))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, where the data know them; some read them from annotations."""
        try:
            names = getattr(self.data, "class_names", None)
        except DataError as error:
            _log.warning("classes are numbered, as their names cannot be read: %s", error)
            return None
        return None if names is None else tuple(names)

    def build_task(self, num_classes: int | None = None) -> Task:
        """Make the task, with weights as its constructor draws them; imports Jittor.

        Args:
            num_classes: Of the network where the configuration leaves it to the data.

        Raises:
            ConfigError: A key or value that its classes do not take.
            DataError: The data know the number of classes, but are not there.
        """
        config = Config(copy.deepcopy(self.config.values), self.config.origins)
        config.values.pop("trainer", None)
        check_keys(config, object)
        if num_classes is not None and hold_places(config, LINKS)[1]:
            fill(config, LINKS, _Classes(num_classes))
        else:
            self._fill(config)
        # All weights come from the checkpoint; what training started from may be gone.
        for name in _START:
            (config.get("task.init_args") or {}).pop(name, None)
        base = import_module("jtlightning.task").Task
        return Program("segtasks", object, base, DataModule).build(config, "task")

    def _fill(self, config: Config) -> None:
        try:
            fill(config, LINKS, self.data)
        except DataError:
            # Without its data, a network is still whole where its configuration has the number.
            if hold_places(config, LINKS)[1]:
                raise


@dataclass(frozen=True)
class _Classes:
    """What stands in for data that only say how many classes there are."""

    num_classes: int


def read_recipe(
    ckpt_path: Path,
    configs: Sequence[str] = (),
    overrides: Arguments | None = None,
    environment: Mapping[str, str] | None = None,
) -> Recipe:
    """Read the configuration of a network, and make its data module.

    Args:
        ckpt_path: Holds the configuration unless `configs` names files.
        configs: Files, by path or by the name of a shipped one; later ones are stronger.
        overrides: Options as those of the trainer's commands; stronger than files.
        environment: Variables that set keys, as for the trainer's commands.

    Raises:
        ConfigError: There is no configuration, or something is wrong with it.
        CheckpointError: The checkpoint is damaged.
        ValueError: What the data module raises.
    """
    stored = None if configs else _inside(ckpt_path)
    config = read_configuration(configs, overrides or Arguments(), environment or {}, stored=stored)
    for part in ("data", "task"):
        if not config.values.get(part):
            raise ConfigError(f"the configuration names no {part}; add a file with that section")
    source = ", ".join(configs) if configs else f"inside {ckpt_path}"
    only = Config({"data": config.values["data"]}, config.origins)
    return Recipe(config, make_data(only), source)


def make_data(config: Config) -> DataModule:
    """Make the data module of a configuration that has no section trainer or task.

    Raises:
        ConfigError: There is no such key or class, or a value has a wrong type.
        ValueError: What the data module raises.
    """
    check_keys(config, object)
    return Program("segtasks", object, object, DataModule).build(config, "data")


def has_configuration(ckpt_path: Path) -> bool:
    """Whether a file is a checkpoint of the command line, which holds its configuration."""
    return bool(_configuration_of(ckpt_path))


def check_checkpoint(path: Path) -> None:
    """Raise PredictionError unless there is a file of this name."""
    if path.is_file():
        return
    if path.is_dir():
        found = sorted(file.name for file in path.rglob("*.ckpt"))
        hint = f"; there is {', '.join(found[:4])} below it" if found else ""
        raise PredictionError(f"checkpoint {path} is a folder; name a file{hint}")
    raise PredictionError(
        f"checkpoint {path} does not exist; name a file: .ckpt, .safetensors, .pth or .pkl"
    )


def _inside(ckpt_path: Path) -> Config:
    values = _configuration_of(ckpt_path)
    if not values:
        raise ConfigError(
            f"{ckpt_path} holds no configuration, as it was not made by the command line; name the"
            " one that it was trained with: --config FILE, from Python config= or model="
        )
    return Config(copy.deepcopy(values), dict.fromkeys(values, f"{INSIDE}{ckpt_path}"))


def _configuration_of(path: Path) -> dict[str, Any]:
    # Other programs write files of this name, too.
    if path.suffix != ".ckpt" or file_kind(path) in ("torch", "torch_legacy", "jittor"):
        return {}
    return read_checkpoint(path, tensors=False).metadata.get("config") or {}
