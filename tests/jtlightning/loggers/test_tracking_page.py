from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).parents[3] / "docs" / "tracking.md"


def classes(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every class_path below a value, with its arguments."""
    if isinstance(value, dict) and "class_path" in value:
        yield value["class_path"], value.get("init_args", {})
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, dict | list):
            yield from classes(item)


def test_the_examples_name_classes_and_arguments_that_exist() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    named = [pair for block in blocks for pair in classes(yaml.safe_load(block))]
    assert len(named) >= 6
    for path, arguments in named:
        module, _, name = path.rpartition(".")
        inspect.signature(getattr(importlib.import_module(module), name)).bind(**arguments)
