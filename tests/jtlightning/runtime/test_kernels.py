from __future__ import annotations

import os
from pathlib import Path

from jtlightning.runtime.kernels import added, stamps


def test_no_folder_holds_no_kernels(tmp_path: Path) -> None:
    assert stamps(tmp_path) == {}


def test_new_and_rewritten_kernels_are_added_ones(tmp_path: Path) -> None:
    folder = tmp_path / "jit"
    folder.mkdir()
    for name in ("old.so", "again.so", "old.cc", "old.so.key"):
        (folder / name).touch()
        os.utime(folder / name, ns=(1, 1))
    before = stamps(tmp_path)
    assert before == {"old.so": 1, "again.so": 1}
    for name in ("new.so", "again.so", "new.cc"):
        (folder / name).touch()
    assert added(before, stamps(tmp_path)) == ["again.so", "new.so"]
