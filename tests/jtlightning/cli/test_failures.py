"""Which errors are shown without a traceback."""

from __future__ import annotations

from typing import Any

import pytest

from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.cli.failures import is_mistake
from jtlightning.data.datamodule import DataModule

PACKAGES = ("jtlightning",)


def raised(call: Any, *args: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any: the caller judges it)
        call(*args)
    return caught.value


def test_errors_that_our_packages_define_or_report_are_mistakes() -> None:
    assert is_mistake(raised(read_checkpoint, "/proc/nowhere.ckpt"), PACKAGES)
    assert is_mistake(raised(DataModule().train_dataloader), PACKAGES)


def test_value_error_counts_by_where_it_is_raised() -> None:
    source = "def refuse(): raise ValueError('x')"
    ours: dict[str, Any] = {"__name__": "jtlightning.trainer"}
    theirs: dict[str, Any] = {"__name__": "jtlightning_addon"}
    for names in (ours, theirs):
        exec(source, names)
    assert is_mistake(raised(ours["refuse"]), PACKAGES)
    assert not is_mistake(raised(theirs["refuse"]), PACKAGES)


def test_missing_file_is_a_mistake_and_an_arithmetic_error_a_bug() -> None:
    assert is_mistake(raised(open, "/proc/nowhere"), PACKAGES)
    assert not is_mistake(raised(lambda: 1 / 0), PACKAGES)
    assert not is_mistake(OSError("no file is named"), PACKAGES)
