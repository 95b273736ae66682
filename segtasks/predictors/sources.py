"""Where the keys of a configuration come from, for every tool that reads one.

What the trainer's commands do with their options, for those that are no trainer; without Jittor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jtlightning.cli.arguments import Arguments, apply_environment, apply_overrides
from jtlightning.cli.config import Config, ConfigFinder
from jtlightning.cli.links import Link
from segtasks import config_folders

#: What the task takes from the data.
LINKS = (
    Link("data.num_classes", "task.init_args.model.init_args.num_classes"),
    Link("data.num_classes", "task.init_args.num_classes"),
)


def read_configuration(
    configs: Sequence[str],
    overrides: Arguments,
    environment: Mapping[str, str],
    *,
    stored: Config | None = None,
) -> Config:
    """Merge everything that sets keys; the classes that it names are not looked at.

    Args:
        configs: Files, by path or by the name of a shipped one; later ones are stronger.
        overrides: Options as those of the trainer's commands; the strongest.
        environment: Variables that set keys, `SEGTASKS_DATA__ROOT`; stronger than files.
        stored: The weakest, instead of files.

    Raises:
        ConfigError: There is no such file, or a key cannot be set.
    """
    config = stored or ConfigFinder(config_folders()).load(configs)
    apply_environment(config, environment, "SEGTASKS")
    apply_overrides(config, overrides)
    return config


def offer_working_folder() -> None:
    """Let configurations name classes in files of the user's working folder."""
    # Last, so that none hides a package.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
