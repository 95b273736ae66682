"""What a configuration describes, built part by part for tools that need only some of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jtlightning.cli.arguments import parse
from jtlightning.cli.config import PARTS, ConfigError
from jtlightning.cli.links import fill, hold_places
from jtlightning.cli.program import Program
from jtlightning.cli.schema import check_keys
from segtasks.predictors.sources import LINKS, offer_working_folder, read_configuration

if TYPE_CHECKING:
    from jtlightning.trainer import Trainer


class Assembly:
    """A configuration that has been read and checked; nothing is built before it is asked for.

    Args:
        configs: Files, by path or by the name of a shipped one; later ones lie on top.
        overrides: Options as those of `fit`, such as `--data.root DIR`.

    Raises:
        ConfigError: There is no such file, key or class, or a value has a wrong type.
    """

    def __init__(self, configs: Sequence[str], overrides: Sequence[str] = ()) -> None:
        offer_working_folder()
        arguments = parse(overrides)
        if arguments.print_config or arguments.class_help is not None or arguments.configs:
            raise ConfigError(
                f"{' '.join(overrides)}: only options that set a value, such as --data.root DIR, "
                "are taken here; `segtasks fit` prints configurations and describes classes"
            )
        self.config = read_configuration(configs, arguments, os.environ)
        for part in PARTS:
            if not self.config.get(part):
                raise ConfigError(f"{', '.join(configs)}: no {part} is named; add --{part} CLASS")
        self._program = _program()
        check_keys(self.config, self._program.trainer_class)
        self._program.resolve(hold_places(self.config, LINKS)[0])

    @property
    def model_class(self) -> str:
        """Name of the class or function that makes the network, without its package."""
        path = self.config.get("task.init_args.model.class_path") or ""
        return str(path).rpartition(".")[2]

    def trainer(self) -> Trainer:
        """The trainer, which chooses the device and seeds; build it before the others."""
        made: Trainer = self._program.build(self.config, "trainer")
        return made

    def data(self) -> Any:
        """The data module; what its constructor raises comes out as it is."""
        return self._program.build(self.config, "data")

    def task(self, data: Any) -> Any:
        """The task, with as many classes as `data` has.

        Raises:
            ConfigError: The configuration says another number of classes than the data.
        """
        fill(self.config, LINKS, data)
        return self._program.build(self.config, "task")


def _program() -> Program:
    # Imported here: these bring Jittor, and mistakes in files are found faster without it.
    trainer = import_module("jtlightning.trainer").Trainer
    import_module("jtlightning.signals").reclaim()
    return Program(
        "segtasks",
        trainer,
        import_module("jtlightning.task").Task,
        import_module("jtlightning.data.datamodule").DataModule,
    )
