"""Send a run to Weights & Biases, or record it for a later `wandb sync`."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Literal

from jtlightning.loggers.base import Logger

if TYPE_CHECKING:
    import numpy as np

    from jtlightning.run_directory import RunDirectory

_log = logging.getLogger(__name__)


class WandbLogger(Logger):
    """Metrics, configuration and pictures through the real wandb client.

    Works offline unless told otherwise: nothing leaves the machine, and `wandb sync` on the run's
    `wandb` folder uploads it later. A resumed run continues the run id of its folder. A lost
    service or network ends the logging, not the training.

    Args:
        project: By default the name of the experiment's folder.
        name: By default the name of the run's folder.
        entity: Team or user of an online run.
        mode: `online`, `offline` or `disabled`; by default what `WANDB_MODE` says, else offline.
            Online needs an API key (`wandb login`, or `WANDB_API_KEY`); nobody is asked for one.
        tags: Of the run.
        group: Of the run.
        notes: Of the run.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        notes: str | None = None,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"WandbLogger.mode must be online, offline or disabled, got {mode!r}")
        self.project, self.name, self.entity, self.mode = project, name, entity, mode
        self.tags, self.group, self.notes = tags, group, notes
        self.run_id: str | None = None
        self._run: Any = None
        self._config: dict[str, Any] = {}
        self._failures: tuple[type[BaseException], ...] = (OSError,)

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        try:
            import wandb
            from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
        except ImportError as error:
            self._give_up(error)
            return
        self._failures = (OSError, wandb.Error, MailboxClosedError, HandleAbandonedError)
        continued = resumed_step is not None and (run.path / "wandb").is_dir()
        if not continued:
            self.run_id = None  # a restored checkpoint, but a folder of its own: another run
        try:
            # Silent also keeps the client from asking for a login on a terminal.
            wandb.setup(settings=wandb.Settings(silent=True))
            self._run = wandb.init(
                project=self.project or run.path.absolute().parent.name,
                name=self.name or run.path.name,
                id=self.run_id,
                resume="allow" if continued and self.run_id else None,
                mode=self.mode or _mode_of_environment(),
                dir=str(run.path),
                config=self._config,
                entity=self.entity,
                tags=self.tags,
                group=self.group,
                notes=self.notes,
                settings=_settings(wandb),
            )
        except self._failures as error:
            self._give_up(error)
            return
        self.run_id = self._run.id
        if self._run.url:
            _log.info("wandb run %s", self._run.url)

    def log_config(self, config: dict[str, Any]) -> None:
        self._config = config
        if self._run is not None:
            try:
                self._run.config.update(config, allow_val_change=True)
            except self._failures as error:
                self._give_up(error)

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        self._send({**metrics, "epoch": epoch, "trainer/global_step": step}, step)

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        if self._run is not None:
            import wandb

            self._send({name: wandb.Image(image)}, step)

    def finish(self, status: str) -> None:
        if self._run is None:
            return
        try:
            self._run.summary["status"] = status
            self._run.finish(exit_code=1 if status == "failed" else 0)
        except self._failures as error:
            self._give_up(error)
        self._run = None

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["id"]

    def _send(self, values: dict[str, Any], step: int) -> None:
        """Log under an explicit step, so that the parts of a resumed run fit together."""
        if self._run is None:
            return
        try:
            self._run.log(values, step=step)
        except self._failures as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        _log.warning("WandbLogger stops, training goes on: %s: %s", type(error).__name__, error)
        if self._run is not None:
            import wandb

            self._run = None
            with contextlib.suppress(*self._failures):  # else the client does this at exit, aloud
                wandb.teardown(exit_code=1)


def _mode_of_environment() -> Literal["online", "offline", "disabled"]:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    return mode  # type: ignore[return-value]


def _settings(wandb: Any) -> Any:
    # The console stays ours: capturing it would put a pipe under the progress bar.
    options: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": 60}
    if "finish_timeout" in wandb.Settings.model_fields:
        options["finish_timeout"] = 120.0  # a dead network must not keep a finished run from ending
    return wandb.Settings(**options)
