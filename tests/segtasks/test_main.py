"""The `segtasks` command: quick to answer, and it finds what is shipped."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from segtasks import __version__
from segtasks.__main__ import COMMANDS, TRAINER_COMMANDS, config_folders, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines if len(line) > 2} >= {*TRAINER_COMMANDS, *COMMANDS}


def test_help_is_quick_and_imports_little() -> None:
    program = (
        "import sys; from segtasks.__main__ import main; main(['--help']); "
        "sys.exit('heavy' if {'jittor', 'jsonargparse', 'rich', 'numpy'} & set(sys.modules) else 0)"
    )
    seconds = []
    # The best of several, as other work on the machine must not decide.
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"segtasks {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tarin"], "there is no command 'tarin'; "),
        (["docter"], "there is no command 'docter'; did you mean doctor?"),
        ([], "which command? Choose from fit, validate, test, predict, doctor"),
    ],
)
def test_unknown_command_is_a_usage_error(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"segtasks: error: {message}")


def test_trainer_commands_read_configurations(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "no_such.yaml"]) == 2
    error = capsys.readouterr().err
    assert "there is no configuration file no_such.yaml" in error
    assert "Shipped:" in error or not config_folders()


def test_mistake_in_a_tool_is_shown_without_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tool.py").write_text("def main(argv):\n    open(argv[0])\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "tool", ("tool", "a tool"))
    assert main(["tool", "/proc/nowhere"]) == 1
    assert capsys.readouterr().err == "segtasks: error: /proc/nowhere: No such file or directory\n"
