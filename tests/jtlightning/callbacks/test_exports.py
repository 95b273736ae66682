from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml

import jtlightning.callbacks
from jtlightning.callbacks.base import Callback


@pytest.mark.parametrize("name", jtlightning.callbacks.__all__)
def test_every_exported_callback_loads(name: str) -> None:
    assert getattr(jtlightning.callbacks, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="EarlyStoping"):
        _ = jtlightning.callbacks.EarlyStoping


def test_packages_import_no_jittor_and_no_client() -> None:
    code = (
        "import sys, jtlightning.callbacks, jtlightning.loggers\n"
        "print([n for n in ('jittor', 'wandb', 'tensorboardX') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "callbacks.md").read_text()


def test_every_exported_callback_is_documented() -> None:
    names = set(re.findall(r"\w+", PAGE))
    assert not set(jtlightning.callbacks.__all__) - names - {"Callback"}


@pytest.mark.parametrize(
    "text", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
def test_documented_configurations_make_callbacks(text: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--trainer.callbacks", type=list[Callback])
    config = yaml.safe_load(text)
    made = parser.instantiate(parser.parse_object(config)).trainer.callbacks
    wanted = [entry["class_path"] for entry in config["trainer"]["callbacks"]]
    assert [f"jtlightning.callbacks.{type(c).__name__}" for c in made] == wanted
