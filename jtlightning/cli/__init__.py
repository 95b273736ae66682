"""The command line of the trainer: `main` runs fit, validate, test or predict from YAML."""

from __future__ import annotations

from jtlightning.cli.command import main
from jtlightning.cli.config import ConfigError
from jtlightning.cli.links import Link

__all__ = ["ConfigError", "Link", "main"]
