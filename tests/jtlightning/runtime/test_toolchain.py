from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jtlightning.runtime import checks, toolchain


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home folder, and no variable of Jittor's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("JITTOR_HOME", "python_config_path", "cc_path"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def remember(home: Path, text: str) -> None:
    note = home / ".cache" / "jittor" / "config.json"
    note.parent.mkdir(parents=True)
    note.write_text(text)


def test_home_is_the_variable_then_the_note_then_the_home_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toolchain.jittor_home() == home
    remember(home, json.dumps({"JITTOR_HOME": "/remembered"}))
    assert toolchain.jittor_home() == Path("/remembered")
    monkeypatch.setenv("JITTOR_HOME", "/set")
    assert toolchain.jittor_home() == Path("/set")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_damaged_note_counts_as_none(home: Path, text: str) -> None:
    remember(home, text)
    assert toolchain.jittor_home() == home


def test_the_home_folder_is_written_even_with_jittor_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path_factory.mktemp("other")))
    assert toolchain.unwritable_folder() is None
    (home / ".cache" / "jittor").rmdir()
    (home / ".cache" / "jittor").touch()
    assert toolchain.unwritable_folder() == home / ".cache" / "jittor"


def test_the_written_python_config_answers_jittor(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "python_config", lambda: None)
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    script = toolchain.missing_python_config(home)
    assert script is not None
    answers = [
        subprocess.check_output([script, option], text=True).strip()
        for option in ("--includes", "--extension-suffix")
    ]
    header = Path(answers[0].removeprefix("-I"), "Python.h")
    assert header.is_file()
    assert answers[1] == sysconfig.get_config_var("EXT_SUFFIX")


def test_the_script_of_the_base_interpreter_comes_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = home / "bin" / f"python3.{sys.version_info.minor}-config"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(toolchain, "python_config", lambda: None)
    monkeypatch.setattr(sys, "base_prefix", str(home))
    assert toolchain.missing_python_config(home) == str(script)


def test_no_headers_mean_no_script_but_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "python_config", lambda: None)
    monkeypatch.setattr(toolchain, "python_header", lambda: None)
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    assert toolchain.missing_python_config(home) is None
    finding = next(item for item in checks.check() if item.name == "Python headers")
    assert finding.level == "error"
    assert f"python3.{sys.version_info.minor}-dev" in finding.remedy


def test_a_compiler_that_the_user_named_must_exist(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("cc_path", "/nowhere/g++")
    finding = next(item for item in checks.check_toolchain() if item.name == "C++ compiler")
    assert finding.level == "error"
    assert "/nowhere/g++" in finding.found


def test_paths_that_jittor_fails_on_are_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("mkl_include_path", "/x")
    monkeypatch.setenv("mkl_lib_path", "/x")
    finding = next(item for item in checks.check() if item.name == "oneDNN")
    assert (finding.level, finding.remedy) == ("error", "unset mkl_include_path mkl_lib_path")


@pytest.mark.parametrize("before", [None, "", '{"JITTOR_HO', '{"JITTOR_HOME": "/other"}', "[]"])
@pytest.mark.parametrize("chosen", ["/chosen", None])
def test_the_note_of_jittor_s_home_can_be_read_by_jittor(
    home: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, chosen: str | None
) -> None:
    note = home / ".cache" / "jittor" / "config.json"
    if before is not None:
        note.parent.mkdir(parents=True)
        note.write_text(before)
    if chosen is not None:
        monkeypatch.setenv("JITTOR_HOME", chosen)
    toolchain.note_home()
    remembered = "/other" if before and "other" in before else None
    wanted = chosen or remembered
    if wanted is None:
        assert not note.exists() or json.loads(note.read_text()) == {}
    else:
        assert json.loads(note.read_text()) == {"JITTOR_HOME": wanted}
    assert not list(home.glob(".cache/jittor/config.json.*"))


@pytest.mark.parametrize("started_as", ["python", "python3", "python3.11"])
def test_an_interpreter_has_one_name_however_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started_as: str
) -> None:
    for name in ("python3.11", "python3", "python"):
        (tmp_path / name).symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / started_as))
    assert toolchain.python_path() == str(tmp_path / "python")


def test_another_interpreter_beside_it_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").touch()
    (tmp_path / "python3").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert toolchain.python_path() == str(tmp_path / "python3")


def test_jittor_is_told_that_name() -> None:
    import jittor as jt

    assert jt.flags.python_path == toolchain.python_path()
