from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segtasks.commands.data import main

SMALL = ["--train", "2", "--val", "1", "--size", "48", "64"]


def test_rooms_are_written_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rooms"

    assert main(["rooms", "--out", str(out), *SMALL]) == 0

    assert len(list((out / "RGB").iterdir())) == 3
    printed = capsys.readouterr().out
    assert f"rendered 2 training and 1 validation scenes in {out}" in printed
    assert "cabinet" in printed
    assert "%" in printed


def test_a_second_call_says_that_nothing_was_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rooms", "--out", str(tmp_path / "rooms"), *SMALL]
    main(arguments)
    capsys.readouterr()

    assert main(arguments) == 0

    assert "already there" in capsys.readouterr().out


def test_a_foreign_folder_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("")

    assert main(["rooms", "--out", str(tmp_path), *SMALL]) == 2

    captured = capsys.readouterr()
    assert f"error: {tmp_path} is not empty" in captured.err
    assert "Traceback" not in captured.err


def test_a_number_out_of_range_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rooms", "--out", str(tmp_path / "rooms"), "--train", "0"]) == 2

    assert "train and val must be 1 or more, got 0" in capsys.readouterr().err


def test_help_names_the_options_and_needs_no_jittor() -> None:
    code = (
        "import sys\n"
        "from segtasks.commands.data import main\n"
        "try:\n    main(['rooms', '--help'])\n"
        "finally:\n    assert 'jittor' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for option in ("--out", "--train", "--val", "--size", "--seed"):
        assert option in done.stdout
