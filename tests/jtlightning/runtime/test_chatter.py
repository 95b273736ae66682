from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import REPOSITORY, RunPython

CAPTURE = """
import os, subprocess, sys
from pathlib import Path
import jtlightning
from jtlightning import runtime
handle = runtime.capture_chatter(Path(sys.argv[1]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run" / "jittor.log"


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A program with a compiler's name that works for 1.8 s."""
    path = tmp_path / "cc1plus"
    path.write_text("#!/bin/sh\nsleep 1.8\n")
    path.chmod(0o755)
    return path


def test_c_level_output_goes_to_the_log_and_python_stays(run_python: RunPython, log: Path) -> None:
    result = run_python(
        CAPTURE + "os.write(2, b'from C\\n'); print('from Python', file=sys.stderr)", str(log)
    )
    assert (result.returncode, result.stderr) == (0, "from Python\n")
    assert log.read_text() == "from C\n"


def test_colours_and_rewritten_lines_are_made_plain(run_python: RunPython, log: Path) -> None:
    run_python(CAPTURE + "os.write(2, b'\\x1b[32m[i] one\\x1b[m\\rtwo\\r\\n\\nrest')", str(log))
    assert log.read_text() == "[i] one\ntwo\nrest\n"


def test_everything_arrives_in_order(run_python: RunPython, log: Path) -> None:
    count = 50_000
    run_python(CAPTURE + f"[os.write(2, b'%d\\n' % i) for i in range({count})]", str(log))
    assert log.read_text().split() == list(map(str, range(count)))


def test_close_gives_stderr_back(run_python: RunPython, log: Path) -> None:
    result = run_python(CAPTURE + "handle.close(); os.write(2, b'from C\\n')", str(log))
    assert result.stderr == "from C\n"
    assert log.read_text() == ""


@pytest.mark.parametrize("name", ["SEGTASKS_VERBOSE", "log_v"])
def test_nothing_is_captured_when_the_user_wants_to_see_it(
    run_python: RunPython, log: Path, name: str
) -> None:
    result = run_python(CAPTURE + "os.write(2, repr(handle).encode())", str(log), **{name: "1"})
    assert result.stderr == "None"
    assert not log.exists()


def test_a_second_call_keeps_the_first_log(run_python: RunPython, log: Path) -> None:
    result = run_python(
        CAPTURE + "print(runtime.capture_chatter(Path(sys.argv[1] + '.2')) is handle)", str(log)
    )
    assert result.stdout == "True\n"


def test_a_killed_process_leaves_its_last_words(run_python: RunPython, log: Path) -> None:
    result = run_python(
        CAPTURE + "os.write(2, b'Caught segfault\\n'); os.kill(os.getpid(), 9)", str(log)
    )
    assert result.returncode == -9
    assert f"Jittor's log: {log}\nIts last lines:\nCaught segfault\n" in result.stderr


def test_a_python_error_is_no_crash(run_python: RunPython, log: Path) -> None:
    result = run_python(CAPTURE + "raise SystemExit('sorry')", str(log))
    assert (result.returncode, result.stderr) == (1, "sorry\n")


def test_the_end_is_not_held_up_by_processes_that_go_on(run_python: RunPython, log: Path) -> None:
    began = time.monotonic()
    run_python(
        CAPTURE
        + "subprocess.Popen(['sleep', '5'], stdout=subprocess.DEVNULL)\n"
        + "os.write(2, b'last words'); os._exit(0)",
        str(log),
    )
    assert time.monotonic() - began < 4
    assert log.read_text() == "last words\n"


def test_signals_to_the_group_do_not_reach_the_writer(run_python: RunPython, log: Path) -> None:
    result = run_python(
        "import os, signal; os.setsid()\n"
        + CAPTURE
        + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + "os.killpg(0, signal.SIGTERM); os.write(2, b'still here\\n')",
        str(log),
    )
    assert result.returncode == 0, result.stderr
    assert log.read_text() == "still here\n"


def test_compiling_is_counted_and_shown_as_a_plain_line(
    run_python: RunPython, log: Path, compiler: Path
) -> None:
    result = run_python(
        CAPTURE
        + "subprocess.run([sys.argv[2], '/cache/jit/one.cc'])\n"
        + "print(handle.kernels, runtime.compile_seconds())",
        str(log),
        str(compiler),
    )
    kernels, seconds = result.stdout.split()
    assert kernels == "1"
    # The compiler works for 1.8 s, and is looked for five times a second.
    assert 1.2 < float(seconds) < 2.6
    assert result.stderr == "Compiling kernels: 1 files, 0:01\n"


def test_progress_is_shown_without_any_compiler(run_python: RunPython, log: Path) -> None:
    result = run_python(
        CAPTURE
        + "import time; handle.show_progress(3, 9); time.sleep(1)\n"
        + "handle.show_progress(0, 0); time.sleep(0.5)",
        str(log),
    )
    assert result.stderr == "Compiling kernels: 0 files, 0:00, batch 3 of 9\n"


def read_to_the_end(terminal: int) -> str:
    """All that was written, until the last process has closed the other end."""
    parts = []
    with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_compiling_is_one_line_on_a_terminal_and_vanishes(
    log: Path, compiler: Path, home: Path
) -> None:
    terminal, other_end = os.openpty()
    code = CAPTURE + "subprocess.run([sys.argv[2], '/cache/core.cc'])"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-c", code, str(log), str(compiler)],
        env={**environment, "TERM": "xterm"}, stderr=other_end, check=True, timeout=60,
    )  # fmt: skip
    os.close(other_end)
    text = read_to_the_end(terminal)
    assert "Compiling Jittor itself (once per machine): 1 files" in text
    assert "\n" not in text
    assert text.endswith("\r\x1b[2K")


def test_nothing_is_shown_when_nothing_compiles(run_python: RunPython, log: Path) -> None:
    result = run_python(CAPTURE + "print(runtime.compile_seconds())", str(log))
    assert (result.stdout, result.stderr) == ("0.0\n", "")


def test_prints_of_jittors_import_go_to_the_log(
    run_python: RunPython, log: Path, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "jittor"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os\nprint('core(1/2)', os.environ['log_silent'])")
    result = run_python(
        CAPTURE + "import jittor; print(jittor.__loader__ is jittor.__spec__.loader)",
        str(log),
        PYTHONPATH=f"{REPOSITORY}:{package.parent}",
    )
    assert result.stdout == "True\n", result.stderr
    assert log.read_text() == "core(1/2) 0\n"


def test_an_unwritable_log_is_an_error_at_once(run_python: RunPython, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run_python(CAPTURE, str(tmp_path / "file" / "jittor.log"))
    assert result.returncode == 1
    assert "Error" in result.stderr.splitlines()[-1]
