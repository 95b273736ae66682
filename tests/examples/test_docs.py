"""What docs/extending.md and docs/porting.md show is what runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return [code for name, code in BLOCK.findall(text) if name == language]


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The names that the blocks of extending.md define, in their order."""
    names: dict[str, Any] = {"__name__": "extending"}
    for code in blocks("extending.md", "python"):
        # Without the __future__ import of this file.
        exec(compile(code, "extending.md", "exec", dont_inherit=True), names)
    return names


def test_blocks_of_extending_train_together(tmp_path: Path, shown: dict[str, Any]) -> None:
    trainer = shown["main"](str(tmp_path))
    assert trainer.metrics["val/accuracy"] > 0.9
    assert trainer.metrics["train/worst"] == trainer.metrics["train/worst_loss"] > 0
    rows = json.loads((trainer.run.path / "memory.json").read_text())
    assert {row["step"] for row in rows} == set(range(10, 201, 10))


def test_state_of_the_shown_callback_and_logger_survives(
    tmp_path: Path, shown: dict[str, Any]
) -> None:
    from jtlightning import Trainer

    worst, continued = shown["WorstBatch"](), shown["WorstBatch"]()
    worst.worst = 2.0
    continued.load_state_dict(worst.state_dict())
    assert continued.worst == 2.0
    for max_steps, ckpt_path in ((20, None), (30, "last")):
        memory = shown["Memory"]()
        trainer = Trainer(
            max_steps=max_steps,
            default_root_dir=str(tmp_path),
            log_every_n_steps=10,
            logger=memory,
        )
        task = shown["CircleTask"](shown["Triangle"]())
        trainer.fit(task, datamodule=shown["CircleData"](), ckpt_path=ckpt_path)
    assert {row["step"] for row in memory.rows} == {10, 20, 30}


def test_shown_profiler_measures_every_part(tmp_path: Path, shown: dict[str, Any]) -> None:
    from jtlightning import Trainer

    profiler = shown["Slowest"]()
    trainer = Trainer(max_steps=5, default_root_dir=str(tmp_path), logger=False)
    trainer.observers.append(profiler.observe)  # what the argument `profiler` does
    task = shown["CircleTask"](shown["Triangle"]())
    trainer.fit(task, datamodule=shown["CircleData"]())
    parts = {"CircleTask.training_step", "train_next_batch", "to_device", "optimizer_step"}
    assert {*profiler.seconds} >= {*parts, "backward", "synchronize"}
    assert "CircleTask.training_step" in profiler.report()


def test_ported_script_of_the_page_is_the_example() -> None:
    _, port = blocks("porting.md", "python")
    assert port in (ROOT / "examples" / "ported.py").read_text()
    assert port.startswith("import tempfile")


def test_lines_of_the_diff_are_in_the_scripts() -> None:
    """Each line, apart from how it is broken into several."""
    before, after = (re.sub(r"\s+", "", code) for code in blocks("porting.md", "python"))
    (diff,) = blocks("porting.md", "diff")
    for line in filter(str.strip, diff.splitlines()):
        changed = re.sub(r"\s+", "", line[1:])
        script, other = (before, after) if line[0] == "-" else (after, before)
        # A call that is broken into lines ends with a comma more.
        assert changed.replace("}}", "},}") in script or changed in script, line
        assert changed not in other, line


def test_lightning_script_imports_what_it_uses() -> None:
    tree = ast.parse(blocks("porting.md", "python")[0])
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported <= used
