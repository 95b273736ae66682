"""Send a run to Weights & Biases, or record it for a later `wandb sync`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jtlightning.loggers.background import Background
from jtlightning.loggers.base import Logger
from jtlightning.loggers.best import Best
from jtlightning.loggers.recent import Recent
from jtlightning.loggers.wandb_file import logged_steps

if TYPE_CHECKING:
    import numpy as np

    from jtlightning.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_SERVICE = "wandb-core"


class WandbLogger(Logger):
    """Metrics, configuration and pictures through the real wandb client.

    Works offline unless told otherwise: nothing leaves the machine, and `wandb sync` on the run's
    `wandb` folder uploads it later. The client is called in a thread of its own; a service or
    network that is lost or hangs ends the logging with a warning, not the training.

    A resumed run continues the run id of its folder. What the former process had logged after the
    checkpoint stays, and is not logged a second time: each metric goes on after its newest step.

    Args:
        project: By default the name of the experiment's folder.
        name: By default the name of the run's folder.
        id: Of the run; by default wandb draws one. One that exists is continued.
        entity: Team or user of an online run.
        mode: `online`, `offline` or `disabled`; by default what `WANDB_MODE` says, else offline.
            Online needs an API key (`wandb login`, or `WANDB_API_KEY`); nobody is asked for one.
        tags: Of the run.
        group: Of the run.
        notes: Of the run.
        best: Metric -> `min` or `max`: keep its best value in the summary, as `best/<metric>`,
            beside the newest values that stand there anyway.
        timeout_s: Longest wait for the client at the start and at the end of a run.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        id: str | None = None,
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        tags: list[str] | None = None,
        group: str | None = None,
        notes: str | None = None,
        best: dict[str, Literal["min", "max"]] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"WandbLogger.mode must be online, offline or disabled, got {mode!r}")
        if timeout_s <= 0:
            raise ValueError(f"WandbLogger.timeout_s must be above 0, got {timeout_s}")
        self.project, self.name, self.entity, self.mode = project, name, entity, mode
        self.tags, self.group, self.notes = tags, group, notes
        self.timeout_s = timeout_s
        self.run_id = self._wanted_id = id
        self._best, self._recent = Best(best, "WandbLogger"), Recent()
        self._client: Background | None = None
        self._run: Any = None
        self._logged: dict[str, int] = {}
        self._config: dict[str, Any] = {}

    @property
    def shows_pictures(self) -> bool:
        return self._client is not None and not self._client.stopped

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        mode = self.mode or _mode_of_environment()
        continued = resumed_step is not None and (run.path / "wandb").is_dir()
        if not continued:  # a restored checkpoint, but a folder of its own: another run
            self.run_id = self._wanted_id
        self._client = Background("WandbLogger", _log, close=_tear_down, interrupt=_kill_services)
        if self._client.run(lambda: self._open(run.path, mode, continued), self.timeout_s):
            self.run_id = self._run.id
            if self._run.url:
                _log.info("wandb run %s", self._run.url)
        if continued:
            for metrics, step, epoch in list(self._recent.rows()):  # a kill may have lost them
                self._put_row(metrics, step, epoch)

    def log_config(self, config: dict[str, Any]) -> None:
        self._config = config
        self._put(lambda: self._run.config.update(config, allow_val_change=True))

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        sent = self._recent.add(metrics, step, epoch)
        improved = self._best.update(metrics, step)
        self._put_row(metrics, step, epoch)
        self._put(sent)
        if improved:
            self._put(lambda: self._run.summary.update(improved))

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        def send() -> None:
            import wandb

            self._send({name: wandb.Image(image)}, step)

        self._put(send)

    def finish(self, status: str) -> None:
        if self._client is None:
            return
        self._client.run(lambda: self._finish(status), self.timeout_s)
        self._client.close()
        self._client = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "id": self.run_id,
            "best": self._best.state_dict(),
            "recent": self._recent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["id"]
        self._best.load_state_dict(state.get("best", {}))
        self._recent.load_state_dict(state.get("recent", []))

    def _put_row(self, metrics: dict[str, float], step: int, epoch: int) -> None:
        values = {**metrics, "epoch": epoch, "trainer/global_step": step}
        self._put(lambda: self._send(values, step))

    def _put(self, call: Any) -> None:
        if self._client is not None:
            self._client.put(call)

    # ---- in the thread of the client --------------------------------------------------------

    def _open(self, folder: Path, mode: Any, continued: bool) -> None:
        if mode != "online":  # else the client reports its own errors to its makers
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if continued and self.run_id:
            self._logged = logged_steps(folder / "wandb", self.run_id)
        # Silent also keeps the client from asking for a login on a terminal.
        wandb.setup(settings=wandb.Settings(silent=True))
        self._run = wandb.init(
            project=self.project or folder.absolute().parent.name,
            name=self.name or folder.name,
            id=self.run_id,
            resume="allow" if self.run_id else None,
            mode=mode,
            dir=str(folder),
            config=self._config,
            entity=self.entity,
            tags=self.tags,
            group=self.group,
            notes=self.notes,
            settings=_settings(wandb, self.timeout_s),
        )
        self._run.summary.update({"status": "running", **self._best.summary()})

    def _send(self, values: dict[str, Any], step: int) -> None:
        """Log under an explicit step, leaving out what the files have for it already."""
        new = {name: v for name, v in values.items() if step > self._logged.get(name, -1)}
        if new:
            self._run.log(new, step=step)

    def _finish(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=1 if status == "failed" else 0)


def _tear_down() -> None:
    """Release the client, which would else do this when the process ends, aloud."""
    import wandb

    wandb.teardown(exit_code=1)


def _kill_services() -> None:
    """End the services that this process has started: waiting for one that hangs never ends."""
    for pid in _children(_SERVICE):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(command: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pid, _, rest = path.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            if name == command and int(fields.split()[1]) == os.getpid():
                yield int(pid)


def _mode_of_environment() -> Literal["online", "offline", "disabled"]:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    return mode  # type: ignore[return-value]


def _settings(wandb: Any, timeout_s: float) -> Any:
    # The console stays ours: capturing it would put a pipe under the progress bar.
    options: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": timeout_s}
    for name, value in (
        ("finish_timeout", timeout_s),  # a dead network must not keep a finished run from ending
        ("x_transaction_log_flush_interval", 1.0),  # what is in memory a kill takes along
    ):
        if name in wandb.Settings.model_fields:
            options[name] = value
    return wandb.Settings(**options)
