"""The power fails after each file operation of a chain of saves: what does the disk hold?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jtlightning.callbacks.base import Callback
from jtlightning.callbacks.model_checkpoint import ModelCheckpoint
from jtlightning.checkpoint import atomic
from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.run_directory import find_checkpoint
from jtlightning.trainer import Trainer
from tests.jtlightning.test_fit import make_trainer
from tests.jtlightning.tiny import TinyData, TinyTask
from tests.torture.disk import LOSSES, Disk, Operation, recorded
from tests.torture.scale import count, report

pytestmark = [pytest.mark.slow, pytest.mark.torture]

STEPS = count(12, 60)


class Worsening(Callback):
    """A metric of which every second value is the best so far."""

    def on_validation_epoch_end(self, trainer: Trainer, task: Any) -> None:
        step = trainer.global_step
        task.log("val/score", float(step if step % 2 else -step))


class Milestones(Callback):
    """Notes behind which operation each step had been reported as saved."""

    def __init__(self, log: list[Operation], saver: ModelCheckpoint) -> None:
        self.log, self.saver = log, saver
        self.at: list[tuple[int, int]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._note()

    def teardown(self, *_: Any) -> None:
        self._note()

    def _note(self) -> None:
        step = self.saver._saved_step
        if step > 0 and (not self.at or self.at[-1][1] != step):
            self.at.append((len(self.log), step))


@dataclass
class Chain:
    """A run whose every file operation is known."""

    folder: Path
    operations: list[Operation]
    milestones: list[tuple[int, int]]
    names: set[str] = field(default_factory=set)

    def promised(self, number: int) -> int:
        """The newest step that had been reported as saved after so many operations; -1 if none."""
        return max((step for at, step in self.milestones if at <= number), default=-1)


#: Best: a new one each second time, beside `last.ckpt`. Newest: one file, which each save replaces.
SAVERS: dict[str, dict[str, Any]] = {
    "best": {"monitor": "val/score", "mode": "max", "save_top_k": 2},
    "newest": {"save_last": False},
}


def train(folder: Path, kept: str, *, asynchronous: bool = False, links: bool = True) -> Chain:
    """A run that saves after each step."""
    folder.mkdir()
    saver = ModelCheckpoint(
        **SAVERS[kept], filename="{step}", every_n_train_steps=1, asynchronous=asynchronous
    )
    with recorded(folder) as log, linking(links):
        milestones = Milestones(log, saver)
        trainer = make_trainer(
            folder,
            max_steps=STEPS,
            val_check_interval=1,
            callbacks=[Worsening(), milestones, saver],
        )
        trainer.fit(TinyTask(), datamodule=TinyData())
    names = {str(path) for path in folder.glob("*/checkpoints/*")}
    return Chain(folder, [o for o in log if wanted(o)], moved(log, milestones.at), names)


def wanted(operation: Operation) -> bool:
    """Loggers write in the same folder; only checkpoints must be intact."""
    suffix = Path(operation.path).suffix
    return suffix in (".ckpt", ".tmp") or operation.name == "mkdir" or operation.content is None


def moved(log: list[Operation], at: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The milestones, counted in the operations that are wanted."""
    return [(sum(map(wanted, log[:number])), step) for number, step in at]


@contextmanager
def linking(allowed: bool) -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    with pytest.MonkeyPatch.context() as patch:
        if not allowed:
            patch.setattr(os, "link", refuse)
        yield


def losses(chain: Chain, scratch: Path) -> tuple[int, list[str]]:
    """Cut the chain after each operation; returns the number of cuts and what was lost where."""
    disk, bad, cuts = Disk(), [], 0
    known: dict[tuple[Any, ...], int] = {}
    for number, operation in enumerate(chain.operations, 1):
        disk.apply(operation)
        promised = chain.promised(number)
        for loss in LOSSES if promised >= 0 else ():
            left = disk.after_power_loss(loss)
            key = tuple(sorted(left.items(), key=lambda item: item[0]))
            if key not in known:
                known[key] = newest(left, chain.folder, scratch)
            cuts += 1
            if known[key] < promised:
                where = f"operation {number} ({operation.name} {Path(operation.path).name})"
                bad.append(f"{where}, lost {loss}: step {known[key]} of {promised} is found")
    assert {path for path in disk.seen if "/checkpoints/" in path} == chain.names
    return cuts, bad


def newest(left: dict[str, bytes | None], folder: Path, scratch: Path) -> int:
    """The step that a run started after the power loss would continue from; -1 for none."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path, content in sorted(left.items()):
        target = scratch / Path(path).relative_to(folder)
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)
    found = find_checkpoint(scratch, "last")
    return -1 if found is None else read_checkpoint(found).metadata["loop"]["global_step"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kept", SAVERS)
def test_every_prefix_of_the_operations_leaves_what_was_reported_as_saved(
    tmp_path: Path, kept: str, asynchronous: bool
) -> None:
    chain = train(tmp_path / "run", kept, asynchronous=asynchronous)
    kinds = {operation.name for operation in chain.operations}
    assert kinds - {"link"} == {"mkdir", "create", "write", "fsync", "rename", "remove"}
    assert ("link" in kinds) == (kept == "best")
    assert chain.promised(len(chain.operations)) == STEPS
    cuts, bad = losses(chain, tmp_path / "after")
    assert not bad, "\n".join(bad[:20])
    report(
        f"power loss, {kept} kept" + (", written by a thread" if asynchronous else ""),
        "every prefix leaves a loadable checkpoint",
        f"{cuts} of {cuts} ({len(chain.operations)} operations, {len(LOSSES)} kinds of loss)",
    )


def test_without_hard_links_copies_are_as_safe(tmp_path: Path) -> None:
    chain = train(tmp_path / "run", "best", links=False)
    assert "link" not in {operation.name for operation in chain.operations}
    assert losses(chain, tmp_path / "after")[1] == []


class WithoutFileSync:
    """`os` as a writer sees it that syncs folders only."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            os.fsync(descriptor)


def skip_file_syncs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atomic, "os", WithoutFileSync())


def skip_folder_syncs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(atomic, "sync_folder", lambda folder: None)


def remove_first(patch: pytest.MonkeyPatch) -> None:
    publish = atomic.publish_file

    def careless(path: Path, link: Path | None, retired: list[Path], write: Any) -> None:
        for old in retired:
            old.unlink()
        publish(path, link, [], write)

    patch.setattr("jtlightning.callbacks.model_checkpoint.publish_file", careless)


def write_in_place(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def careless(path: Path) -> Iterator[Any]:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        yield lambda data: atomic._write_all(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)

    patch.setattr("jtlightning.checkpoint.container.atomic_file", careless)


@pytest.mark.parametrize(
    "mistake", [skip_file_syncs, skip_folder_syncs, remove_first, write_in_place]
)
def test_the_model_sees_a_writer_that_is_careless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Any
) -> None:
    mistake(monkeypatch)
    chain = train(tmp_path / "run", "newest")
    monkeypatch.undo()
    assert losses(chain, tmp_path / "after")[1] != []
