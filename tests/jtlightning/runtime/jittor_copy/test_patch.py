from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from jtlightning.runtime import store
from jtlightning.runtime.jittor_copy import edits, patch
from jtlightning.runtime.jittor_copy.edits import EDITS, Edit, EditError
from tests.jtlightning.runtime.cuda.trees import make_jittor

FILES = {"jittor/a.py": "one\ntwo\n", "jittor_utils/__init__.py": "", "jittor/src/b.cc": "int\r\n"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Jittor that is taken for the known one, and one edit for it."""
    folder = tmp_path / "site"
    monkeypatch.setattr(patch, "DIGEST", make_jittor(folder, FILES))
    monkeypatch.setattr(sys, "path", [str(folder)])
    monkeypatch.setattr(edits, "EDITS", (Edit("a.py", "two\n", "2\n"),))
    monkeypatch.setattr(edits.apply, "__defaults__", (edits.EDITS,))
    return folder


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed Jittor, changed."""
    return patch.make(tmp_path_factory.mktemp("cache"))


def test_a_copy_is_changed_and_the_original_is_not(site: Path, tmp_path: Path) -> None:
    copy = patch.make(tmp_path / "cache")
    assert (copy / "jittor" / "a.py").read_text() == "one\n2\n"
    assert (site / "jittor" / "a.py").read_text() == "one\ntwo\n"
    assert (copy / "jittor" / "src" / "b.cc").read_bytes() == b"int\r\n"
    assert (copy / "jittor_utils" / "__init__.py").is_file()


@pytest.mark.filterwarnings("error")
def test_python_files_are_compiled_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Such escapes stand in Jittor's files; each import that compiles them would warn.
    files = {**FILES, "jittor/escapes.py": "a = '\\s'\n"}
    monkeypatch.setattr(patch, "DIGEST", make_jittor(tmp_path / "site", files))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(edits.apply, "__defaults__", ((),))
    copy = patch.make(tmp_path / "cache")
    assert list((copy / "jittor" / "__pycache__").glob("escapes.*.pyc"))
    assert capfd.readouterr() == ("", "")


def test_a_second_call_finds_the_copy(site: Path, tmp_path: Path) -> None:
    copy = patch.make(tmp_path / "cache")
    shutil.rmtree(site / "jittor" / "src")  # would be missed if it were copied again
    assert patch.make(tmp_path / "cache") == copy


def test_other_edits_are_another_copy(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = patch.make(tmp_path / "cache")
    monkeypatch.setattr(edits, "EDITS", (Edit("a.py", "one\n", "1\n"),))
    assert patch.make(tmp_path / "cache") != copy


def test_the_copy_is_not_taken_for_the_installed_one(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = patch.make(tmp_path / "cache")
    monkeypatch.setattr(sys, "path", [str(copy), str(site)])
    assert patch.find() == site
    assert patch.make(tmp_path / "cache") == copy


def test_another_version_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_jittor(tmp_path / "other", FILES, version="1.3.12.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other")])
    with pytest.raises(patch.OtherJittorError, match=r"jittor 1\.3\.12\.0 is not") as caught:
        patch.make(tmp_path / "cache")
    assert caught.value.remedy.endswith("jittor==1.3.11.0")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("how", ["altered", "deleted"])
def test_a_file_that_is_not_the_original_is_named(site: Path, tmp_path: Path, how: str) -> None:
    file = site / "jittor" / "src" / "b.cc"
    file.write_text("long") if how == "altered" else file.unlink()
    with pytest.raises(patch.OtherJittorError, match=r"1 files .*: jittor/src/b\.cc"):
        patch.make(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("jittor*")) == []


def test_jittor_from_elsewhere_is_refused(site: Path, tmp_path: Path) -> None:
    shutil.rmtree(site / "jittor-1.3.11.0.dist-info")
    with pytest.raises(patch.OtherJittorError, match="was not installed by pip"):
        patch.make(tmp_path / "cache")


def test_no_jittor_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(patch.OtherJittorError, match="not installed"):
        patch.make(tmp_path / "cache")


@pytest.mark.parametrize(("text", "count"), [("three\n", 0), ("o", 2)])
def test_a_text_that_is_missing_or_not_unique_fails_loudly(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, count: int
) -> None:
    monkeypatch.setattr(edits.apply, "__defaults__", ((Edit("a.py", text, "x"),),))
    with pytest.raises(EditError, match=f"{count} times instead of once"):
        patch.make(tmp_path / "cache")
    assert list((tmp_path / "cache").glob("jittor*")) == []


def test_a_file_that_is_missing_fails_loudly(site: Path) -> None:
    with pytest.raises(EditError, match=r"none\.py"):
        edits.apply(site / "jittor", (Edit("none.py", "a", "b"),))


def test_the_installed_jittor_is_the_one_that_is_known(changed: Path) -> None:
    site = patch.find()
    hashes = patch.recorded(site)
    assert len(hashes) == 646
    assert patch.altered(site, hashes) == []


def test_every_edit_stands_in_the_copy_and_nothing_else_differs(changed: Path) -> None:
    site = patch.find()
    for edit in EDITS:
        assert edit.new in (changed / "jittor" / edit.file).read_bytes().decode()
    differing = {
        name
        for name in patch.recorded(site)
        if (site / name).read_bytes() != (changed / name).read_bytes()
    }
    assert differing == {f"jittor/{edit.file}" for edit in EDITS}
    assert not (changed / "jittor" / "test").exists()


@pytest.mark.parametrize("file", sorted({edit.file for edit in EDITS if edit.file.endswith(".py")}))
def test_changed_python_files_compile(changed: Path, file: str) -> None:
    path = changed / "jittor" / file
    compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)


def test_the_standard_of_c_plus_plus_depends_on_the_compiler(changed: Path) -> None:
    text = (changed / "jittor" / "compiler.py").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith('cc_flags += " -Wall'))
    for nvcc, version, standard in (("nvcc", [13, 0], 17), ("nvcc", [12, 2], 14), ("", [], 14)):
        names = {"cc_flags": "", "nvcc_path": nvcc, "nvcc_version": version}
        exec(line, names)
        assert f"-std=c++{standard} " in names["cc_flags"]


def test_the_copy_is_checked_when_it_is_found_again(changed: Path) -> None:
    assert store.is_whole(changed)
