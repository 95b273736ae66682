"""What goes wrong with checkpoint files."""

from __future__ import annotations

from pathlib import Path

RESTORE = (
    "take an earlier checkpoint or a copy (`--ckpt_path auto` looks for the newest intact one)"
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written; the message names file, reason and remedy."""

    def __init__(self, path: Path, reason: str, remedy: str = RESTORE) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path = path
        self.reason = reason
