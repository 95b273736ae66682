"""What a logger is to the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from jtlightning.run_directory import RunDirectory


class Logger:
    """Where a run's scalars, pictures and configuration go.

    A logger never ends a run: it handles the failures of its own medium (a full disk, a service
    that died), says so once as a warning, and stays silent from then on.
    """

    @property
    def state_key(self) -> str:
        """Name of this logger's state in a checkpoint."""
        return type(self).__name__

    @property
    def shows_pictures(self) -> bool:
        """Whether `log_image` records anything, as far as is known by now."""
        return type(self).log_image is not Logger.log_image

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        """Open the medium, after `load_state_dict` where a checkpoint was restored.

        Args:
            run: Where to write.
            resumed_step: Steps done by the restored checkpoint: what the folder holds of later
                steps is about to be written again. None for a new run.
        """

    def log_config(self, config: dict[str, Any]) -> None:
        """Record the resolved configuration."""

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        """Record scalars under the number of optimizer steps done."""

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        """Record a picture, (H, W, 3) uint8 in RGB."""

    def finish(self, status: str) -> None:
        """Flush and close; `status` is finished, stopped or failed."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values that a resumed run needs, such as a run id."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
