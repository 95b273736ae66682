from __future__ import annotations

import subprocess
import sys

import pytest

import jtlightning.callbacks


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
