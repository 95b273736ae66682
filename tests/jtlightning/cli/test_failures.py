"""Which errors are shown without a traceback."""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

import numpy as np
import pytest

from jtlightning.checkpoint.container import read_checkpoint
from jtlightning.cli.failures import is_mistake, show
from jtlightning.data.datamodule import DataModule
from jtlightning.data.recipe import Recipe

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


def test_full_disk_without_a_file_name_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_mistake(error, PACKAGES)
    show(error, "segtasks", packages=PACKAGES, with_traceback=False)
    message = capsys.readouterr().err
    assert message.startswith("segtasks: error: No space left on device where the run directory")


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> Any:
        raise self.error


def shown(cause: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    error = raised(Recipe(Broken(cause), None, np.stack).batch, [7], 0, 0)
    show(error, "segtasks", packages=PACKAGES, with_traceback=False)
    return capsys.readouterr().err


def test_sample_that_our_data_refuse_is_shown_without_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusal = type("DataError", (ValueError,), {"__module__": "jtlightning.anything"})
    message = shown(refusal("a.png: is cut short"), capsys)
    assert message == "segtasks: error: sample 7 failed: a.png: is cut short\n"


def test_bug_in_the_users_data_set_is_shown_with_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = shown(ZeroDivisionError("oops"), capsys)
    assert "sample 7 failed" in message
    assert "in __getitem__" in message
    assert "ZeroDivisionError: oops" in message


def test_error_of_a_constructor_comes_out_as_it_is(run: Any) -> None:
    refusing = "--task.init_args.model.class_path", "standins.refuse"
    with pytest.raises(ValueError, match=r"^drop is 0\.1$") as caught:
        run("fit", "--config", "demo.yaml", *refusing)
    assert isinstance(caught.value.__cause__, KeyError)
    modules = {frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(caught.tb)}
    assert not any(name.startswith("jsonargparse") for name in modules)
