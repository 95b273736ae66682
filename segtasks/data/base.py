"""What the data modules have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from jtlightning.data.datamodule import DataModule
from jtlightning.data.loader import Loader
from segtasks.data.samples import DataError

SplitName = Literal["train", "test"]
"""`train`, or `test`, which validation, test and prediction read."""


class SplitDataModule(DataModule):
    """A data set with two splits, and the processes that load it.

    Args:
        root: Folder of the data set.
        collate: Makes a batch of samples.
        batch_size: Samples per training step; incomplete batches are left out.
        val_batch_size: Samples per batch of validation, test and prediction.
        num_workers: Processes that load data; 0 loads in the main process.
        check_files: Verify the files of both splits before training.
        max_skipped: Training samples that may fail and be replaced by others before that is an
            error, a number or a fraction; 0: none.

    Raises:
        DataError: A number is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        collate: Callable[[list[Any]], Any],
        *,
        batch_size: int,
        val_batch_size: int,
        num_workers: int,
        check_files: bool,
        max_skipped: int | float,
    ) -> None:
        if min(batch_size, val_batch_size) < 1 or num_workers < 0:
            raise DataError(
                "batch_size and val_batch_size must be 1 or more and num_workers 0 or more, got "
                f"{batch_size}, {val_batch_size} and {num_workers}"
            )
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.check_files = check_files
        self.max_skipped = max_skipped
        self._collate = collate
        self._loaders: list[Loader] = []

    def check_batches(self, split: SplitName) -> None:
        """Find what is wrong with a split as a whole, but for its files.

        Raises:
            DataError: Something is.
        """
        raise NotImplementedError

    def _check_files(self) -> None:
        """Look into the files of both splits, or of the test split where `max_skipped` is set."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs; before training, check their files.

        Raises:
            DataError: As `check_batches`, or a file is damaged.
        """
        if stage == "fit":
            self.check_batches("train")
        self.check_batches("test")
        if stage == "fit" and self.check_files:
            self._check_files()

    def test_dataloader(self) -> Loader:
        """Batches of the test split, in its order."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Loader:
        """Batches of the test split, in its order."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        """End the processes that load data."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _loader(self, dataset: Any, transform: Any, *, training: bool) -> Loader:
        skip = training and bool(self.max_skipped)
        loader = Loader(
            dataset,
            self.batch_size if training else self.val_batch_size,
            collate=self._collate,
            transform=transform,
            shuffle=training,
            drop_last=training,
            num_workers=self.num_workers,
            on_bad_sample="skip" if skip else "raise",
            max_skipped=self.max_skipped if skip else 1,
        )
        self._loaders.append(loader)
        return loader


def terminal_bar() -> Progress:
    """A bar that shows on a terminal only, and goes when it is done."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
