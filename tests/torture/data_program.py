"""A run over bad data: `python -m tests.torture.data_program FOLDER JSON`.

Writes what was skipped, a hash of all batches and, once an error is caught, the seconds since the
bad sample was asked for; the error then ends the process as it would end a user's script.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from jtlightning.data.loader import Loader
from tests.torture.data_cases import ACCIDENTS, BATCH, Pictures, collate, jitter


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    logging.basicConfig(format="%(message)s")
    wrong = {int(index): kind for index, kind in options["wrong"].items()}
    accidents = {index: kind for index, kind in wrong.items() if kind in ACCIDENTS}
    loader = Loader(
        Pictures(folder, accidents, list(wrong)),
        BATCH,
        collate=collate,
        transform=jitter,
        shuffle=options["shuffle"],
        num_workers=options["workers"],
        **options["loader"],
    )
    try:
        if options["trainer"]:
            train(folder, loader)
        else:
            tell(batches=walk(loader))
    except RuntimeError:  # a LoaderError, or what the trainer made of it
        tell(seconds=time.time() - float((folder / "began").read_text()))
        raise
    finally:
        tell(skipped={str(index): reason for index, reason in loader.skipped.items()})


def walk(loader: Loader) -> str:
    """Two epochs; a hash of all that came."""
    digest = hashlib.sha256()
    for epoch in range(2):
        for batch in loader.batches(epoch):
            digest.update(batch.x.tobytes() + batch.y.tobytes())
    return digest.hexdigest()


def train(folder: Path, loader: Loader) -> None:
    # Only here: workers import this module, and are to stay without Jittor.
    from jtlightning.trainer import Trainer
    from tests.jtlightning.tiny import TinyTask

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder / "runs"),
    )
    trainer.fit(TinyTask(), loader)
    tell(steps=trainer.global_step)


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
