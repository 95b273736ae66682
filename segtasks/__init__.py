"""RGB-D segmentation and detection on Jittor: models, data, losses, metrics and the command line.

Importing it prepares the environment for Jittor, as `import jtlightning` does.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from jtlightning import runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from segtasks.predictors import load_detector as load_detector
    from segtasks.predictors import load_segmenter as load_segmenter

__version__ = "0.1.0"

runtime.prepare()

_PREDICTORS = ("load_detector", "load_segmenter")


def config_folders() -> list[Path]:
    """Where the shipped configurations are: in the wheel, or in a checkout beside the package."""
    package = Path(__file__).resolve().parent
    folders = [package / "configs"]
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "configs")
    return [folder for folder in folders if folder.is_dir()]


def __getattr__(name: str) -> object:
    if name not in _PREDICTORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("segtasks.predictors"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PREDICTORS])
