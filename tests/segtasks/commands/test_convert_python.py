"""What reading a Python configuration gives, and what it never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segtasks.commands.convert_expressions import Unknown
from segtasks.commands.convert_python import Module, SourceError, read_module


def read(folder: Path, text: str) -> Module:
    (folder / "a.py").write_text(text)
    return read_module(folder / "a.py", folder)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("-1.5e-3", -0.0015),
        ("795 // 8 + 1", 100),
        ("2 / 3 * 480", 320.0),
        ("[1, (2, 'a')][1][0]", 2),
        ("{'k': None, **{'b': True}}", {"k": None, "b": True}),
        ("dict(a=1, b=dict(c=[]))", {"a": 1, "b": {"c": []}}),
        ("[0.5] * 3", [0.5] * 3),
        ("'a' + 'b'", "ab"),
        ("'%s-%03d' % ('x', 7)", "x-007"),
        ("'{}_{n:>4}'.format('x', n=7)", "x_   7"),
        ("f'{known}/{3.14159:.2f}/{known!r}'", "k/3.14/'k'"),
        ("osp.join('a', known, '..')", "a/k/.."),
        ("os.path.abspath('./a/b')", "a/b"),
        ("np.array([1, 2])", [1, 2]),
        ("len([1, 2])", 2),
        ("not True", False),
    ],
)
def test_simple_expressions_have_their_value(tmp_path, expression, value):
    head = "import os\nimport os.path as osp\nimport numpy as np\nknown = 'k'\n"
    assert read(tmp_path, f"{head}x = {expression}").names["x"] == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('touch executed')",
        "open('executed', 'w')",
        "eval('1')",
        "(lambda: 1)()",
        "[i for i in range(9)]",
        "known.upper()",
        "known.__class__",
        "'{0.__class__}'.format(known)",
        "'{0[0]}'.format(known)",
        "'%1000000000d' % 1",
        "f'{1:1000000000}'",
        "'{:1000000000}'.format(1)",
        "'{:{w}}'.format(1, w=1000000000)",
        "'%*d' % (1000000000, 1)",
        "9 ** 9 ** 9",
        "'a' * 10 ** 13",
        "10 ** 13 * [0]",
        "2 ** 64 * 2 ** 64",
        "1 << 10 ** 9",
        "1 / 0",
        "undefined + 1",
        "{}['k']",
        "os.environ['HOME']",
    ],
)
def test_anything_else_is_unknown_with_its_line_and_does_nothing(tmp_path, monkeypatch, expression):
    monkeypatch.chdir(tmp_path)
    names = read(tmp_path, f"known = 'k'\nimport os\nx = {expression}\ny = [x, 1]\nz = x + 1").names
    assert isinstance(names["x"], Unknown)
    assert names["x"].where == "a.py, line 3"
    # It spreads to what is computed from it, and to nothing else.
    assert names["y"] == [names["x"], 1]
    assert isinstance(names["z"], Unknown)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "expression",
    ["'%1000000000d' % 1", "f'{1:1000000000}'", "'{:1000000000}'.format(1)", "'%*d' % (10**9, 1)"],
)
def test_widths_are_refused_before_the_text_is_made(tmp_path, expression):
    assert "would be too long" in read(tmp_path, f"x = {expression}").names["x"].reason


def test_text_that_grows_line_by_line_is_given_up(tmp_path):
    names = read(tmp_path, "x = 'aaaaaaaaaa'\n" + "x = x + x\n" * 60).names
    assert isinstance(names["x"], Unknown)
    names = read(tmp_path, "x = 'aaaaaaaaaa'\n" + "x = f'{x}{x}{x}'\n" * 60).names
    assert isinstance(names["x"], Unknown)


def test_later_assignments_win_and_conditions_decide_nothing(tmp_path):
    text = "a = 1\na += 2\nb = 1\nif a:\n    b = 2\nfor c in (1,): pass\nd, e = 1, 2\n"
    module = read(tmp_path, text)
    assert module.names["a"] == 3
    assert isinstance(module.names["b"], Unknown)
    assert isinstance(module.names["c"], Unknown)
    assert (module.names["d"], module.names["e"]) == (1, 2)
    assert [line.partition(":")[0] for line in module.ignored] == ["a.py, line 4", "a.py, line 6"]


@pytest.mark.parametrize("made", ["C = edict()", "C = Own()", "class C: pass", "import own as own"])
def test_object_is_whatever_gets_attributes(tmp_path, made):
    module = read(tmp_path, f"{made}\nC.a = 1\nC.b = C.a + 1\nD = C\nD.c = 3\nown.d = 4\n")
    assert module.names["C"] == {"a": 1, "b": 2, "c": 3}
    assert module.names["C"].lines["b"] == "a.py, line 3"
    # A library that is imported is none.
    assert ("own" in module.names) == ("import" not in made)


def test_calls_that_might_change_something_are_listed(tmp_path):
    text = 'import sys\n"""words"""\nsys.path.append("x")\ndef f(): pass\n'
    assert read(tmp_path, text).ignored == [
        "a.py, line 3: sys.path.append('x')",
        "a.py, line 4: def f():",
    ]


def test_relative_imports_are_followed_inside_of_the_tree(tmp_path):
    inner = tmp_path / "tree" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "tree" / "base.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "outside.py").write_text("z = 3\n")
    (inner / "a.py").write_text("from ..base import *\nfrom ..base import y as q, w\nx = x + 1\n")
    names = read_module(inner / "a.py", tmp_path / "tree").names
    assert (names["x"], names["q"]) == (2, 2)
    assert isinstance(names["w"], Unknown)
    (inner / "a.py").write_text("from ...outside import *\n")
    with pytest.raises(SourceError, match=r"a.py, line 1: .*lies outside of"):
        read_module(inner / "a.py", tmp_path / "tree")
    (tmp_path / "tree" / "link.py").symlink_to(tmp_path / "outside.py")
    (inner / "a.py").write_text("from ..link import *\n")
    with pytest.raises(SourceError, match="lies outside of"):
        read_module(inner / "a.py", tmp_path / "tree")


def test_imports_by_the_name_of_the_tree_are_followed(tmp_path):
    root = tmp_path / "local_configs"
    (root / "sub").mkdir(parents=True)
    (root / "base.py").write_text("x = 1\n")
    (root / "sub" / "a.py").write_text("from local_configs.base import *\n")
    assert read_module(root / "sub" / "a.py", root).names["x"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from .a import *", "import each other"),
        ("x = (", "line 1: this is no Python"),
        ("from .none import *", "there is no file"),
        ("#" * 300_000, "is larger than"),
        ("x = " + "-" * 100_000 + "1", "cannot be read as Python"),
        ("x = 1" + " + 1" * 200, "line 1: this is nested too deeply"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, text, reason):
    with pytest.raises(SourceError, match=reason):
        read(tmp_path, text)


def test_missing_file_is_named(tmp_path):
    missing: Any = tmp_path / "none.py"
    with pytest.raises(SourceError, match=r"none.py cannot be read: No such file"):
        read_module(missing, tmp_path)
