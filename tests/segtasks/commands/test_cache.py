"""`segtasks cache`: what it prints, and its exit codes; the archives have tests of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from jtlightning.runtime import cache_archive
from jtlightning.runtime.cache_archive import Packed, Unpacked
from segtasks.commands.cache import main


def test_what_was_packed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_archive, "pack", lambda *_: Packed(1001, 377, 78_226_211))
    assert main(["pack", "k.tar.gz"]) == 0
    said = "k.tar.gz: 1,001 kernels and 377 files of Jittor itself, 78.2 MB\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("core", "said"), [(362, "362 files of Jittor itself"), (0, "Jittor itself was there")]
)
def test_what_was_unpacked_is_said(
    core: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k.tar.gz").touch()
    monkeypatch.setattr(cache_archive, "unpack", lambda *_: Unpacked(3, 1_200, core))
    assert main(["unpack", "k.tar.gz"]) == 0
    assert capsys.readouterr().out == f"k.tar.gz: 3 kernels added, 1,200 were there; {said}\n"


def test_what_cannot_be_unpacked_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "k.tar.gz"
    damaged.write_text("half")
    for file, said in ((tmp_path / "none.tar.gz", "there is no file"), (damaged, "is damaged")):
        assert main(["unpack", str(file)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.strip().count("\n") == 0


def test_an_archive_that_cannot_be_written_gives_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: Path, *_: object) -> Packed:
        raise OSError(2, "No such file or directory", str(file))

    monkeypatch.setattr(cache_archive, "pack", refuse)
    assert main(["pack", "nowhere/k.tar.gz"]) == 2
    assert "nowhere/k.tar.gz: No such file or directory" in capsys.readouterr().err
