"""One module per subcommand of `segtasks` that is not the trainer's."""

from __future__ import annotations

from pathlib import Path


def config_folders() -> list[Path]:
    """Where the shipped configurations are: in the wheel, or in a checkout beside the package."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "configs"]
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "configs")
    return [folder for folder in folders if folder.is_dir()]
