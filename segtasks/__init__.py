"""RGB-D segmentation and detection on Jittor: models, data, losses, metrics and the command line.

Importing it prepares the environment for Jittor, as `import jtlightning` does.
"""

from __future__ import annotations

from jtlightning import runtime

__version__ = "0.1.0"

runtime.prepare()
