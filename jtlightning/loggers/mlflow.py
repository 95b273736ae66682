"""Record a run with MLflow, in files or on a tracking server."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from jtlightning.loggers.background import Background
from jtlightning.loggers.base import Logger
from jtlightning.loggers.best import Best
from jtlightning.loggers.recent import Recent

if TYPE_CHECKING:
    import numpy as np

    from jtlightning.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflowLogger(Logger):
    """Metrics, configuration and pictures through the MLflow client.

    Needs the extra `mlflow`. Works offline unless told otherwise: the store is the folder `mlruns`
    beside the runs of the experiment. The client is called in a thread of its own; a store that
    is lost or hangs ends the logging with a warning, not the training.

    A resumed run continues the run of its folder. What the former process had logged after the
    checkpoint stays, and is not logged a second time: each metric goes on after its newest step.

    Args:
        experiment: By default the name of the experiment's folder.
        name: By default the name of the run's folder.
        tracking_uri: A server or store; by default what `MLFLOW_TRACKING_URI` says, else files.
        tags: Of the run.
        best: Metric -> `min` or `max`: keep its best value as the metric `best/<metric>`.
        timeout_s: Longest wait for the client at the start and at the end of a run.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str | None = None,
        name: str | None = None,
        *,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        best: dict[str, Literal["min", "max"]] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise ImportError(
                "MLflowLogger needs MLflow, which is not installed; install the extra that has "
                "it: pip install 'segtasks[mlflow]'"
            )
        if timeout_s <= 0:
            raise ValueError(f"MLflowLogger.timeout_s must be above 0, got {timeout_s}")
        self.experiment, self.name, self.tracking_uri = experiment, name, tracking_uri
        self.tags, self.timeout_s = tags, timeout_s
        self.run_id: str | None = None
        self._folder: str | None = None
        self._best, self._recent = Best(best, "MLflowLogger"), Recent()
        self._client: Background | None = None
        self._mlflow: Any = None
        self._logged: dict[str, int] = {}
        self._config: dict[str, Any] = {}
        self._config_file = "config.json"

    @property
    def shows_pictures(self) -> bool:
        return self._client is not None and not self._client.stopped

    def start(self, run: RunDirectory, *, resumed_step: int | None) -> None:
        continued = resumed_step is not None and self._folder == run.path.name
        if not continued:
            self.run_id = None  # a restored checkpoint, but a folder of its own: another run
        else:
            self._config_file = f"config-{resumed_step}.json"
        self._folder = run.path.name
        self._client = Background("MLflowLogger", _log)
        self._client.run(lambda: self._open(run.path.absolute()), self.timeout_s)
        if self._config:
            self.log_config(self._config)
        if continued:
            for metrics, step, epoch in list(self._recent.rows()):  # a kill may have lost them
                self._put_row({**metrics, "epoch": epoch}, step)

    def log_config(self, config: dict[str, Any]) -> None:
        self._config = config
        self._put(lambda: self._send_config(config))

    def log_metrics(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        improved = self._best.update(metrics, step)
        sent = self._recent.add({**metrics, **improved}, step, epoch)
        self._put_row({**metrics, **improved, "epoch": epoch}, step)
        self._put(sent)

    def log_image(self, name: str, image: np.ndarray, *, step: int) -> None:
        key = _key(name)
        self._put(lambda: self._mlflow.log_image(self.run_id, image, key=key, step=step))

    def finish(self, status: str) -> None:
        if self._client is None:
            return
        ended = _STATUS[status]
        self._client.run(
            lambda: self._mlflow.set_terminated(self.run_id, status=ended), self.timeout_s
        )
        self._client.close()
        self._client = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "id": self.run_id,
            "folder": self._folder,
            "best": self._best.state_dict(),
            "recent": self._recent.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id, self._folder = state["id"], state["folder"]
        self._best.load_state_dict(state["best"])
        self._recent.load_state_dict(state["recent"])

    def _put_row(self, values: dict[str, float], step: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._put(lambda: self._send(values, step, now_ms))

    def _put(self, call: Any) -> None:
        if self._client is not None:
            self._client.put(call)

    # ---- in the thread of the client --------------------------------------------------------

    def _open(self, folder: Path) -> None:
        # Recent versions refuse a store of files unless asked; a database would need SQLAlchemy.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # sent to its makers
        from mlflow.tracking import MlflowClient

        files = (folder.parent / "mlruns").as_uri()
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or files
        client = self._mlflow = MlflowClient(tracking_uri=uri)
        if self.run_id is None:
            title = self.experiment or folder.parent.name
            known = client.get_experiment_by_name(title)
            number = known.experiment_id if known else client.create_experiment(title)
            made = client.create_run(number, run_name=self.name or folder.name, tags=self.tags)
            self.run_id = made.info.run_id
        else:
            if uri.startswith("file:"):
                _drop_torn_points(Path(url2pathname(urlsplit(uri).path)), self.run_id)
            client.update_run(self.run_id, status="RUNNING")
            for name in client.get_run(self.run_id).data.metrics:
                history = client.get_metric_history(self.run_id, name)
                self._logged[name] = max(point.step for point in history)

    def _send(self, values: dict[str, float], step: int, now_ms: int) -> None:
        """Log in one request, leaving out what the store has for this step already."""
        from mlflow.entities import Metric

        named = {_key(name): float(value) for name, value in values.items()}
        new = [
            Metric(name, value, now_ms, step)
            for name, value in named.items()
            if step > self._logged.get(name, -1)
        ]
        if new:
            self._mlflow.log_batch(self.run_id, metrics=new)

    def _send_config(self, config: dict[str, Any]) -> None:
        """The configuration as parameters, as far as their limits allow, and whole as a file.

        MLflow never changes a parameter: of a resumed run's configuration the new ones are added.
        """
        from mlflow.entities import Param
        from mlflow.utils import validation

        known = self._mlflow.get_run(self.run_id).data.params
        longest = validation.MAX_PARAM_VAL_LENGTH
        flat = {_key(name): _shortened(str(value), longest) for name, value in _flatten(config)}
        new = [Param(name, value) for name, value in flat.items() if name not in known]
        self._mlflow.log_batch(self.run_id, params=new)
        self._mlflow.log_dict(self.run_id, config, self._config_file)


def _drop_torn_points(store: Path, run_id: str) -> None:
    """Cut metric files after their last whole line.

    MLflow appends to them without care, and cannot read a run one of whose files a kill left empty.
    """
    for file in store.glob(f"*/{run_id}/metrics/**/*"):
        if file.is_file() and not (content := file.read_bytes()).endswith(b"\n"):
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                file.write_bytes(whole)
            else:
                file.unlink()


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists under their path, `trainer.callbacks.0.class_path`."""
    if isinstance(value, dict) and value:
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        pairs = dict(enumerate(value)).items()
    else:
        yield prefix, value
        return
    for name, item in pairs:
        yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))


def _key(name: str) -> str:
    """A name that MLflow takes: some characters only, no path tricks, 250 characters."""
    allowed = re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)
    parts = [part for part in allowed.split("/") if part.strip(".")]
    return _shortened("/".join(parts) or "_", 250)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
