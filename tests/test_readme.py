"""What README, its Chinese twin and the pages in docs/ say is true: files, commands, programs."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jtlightning.callbacks.base import Callback
from jtlightning.checkpoint.container import Checkpoint, write_checkpoint
from segtasks.__main__ import COMMANDS, TRAINER_COMMANDS, main
from segtasks.commands import audit, benchmark, data, reproduce
from segtasks.commands.data_check import build_data
from segtasks.data.rooms import CLASS_NAMES, RoomsFolder

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", ROOT / "README_CN.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [text for name, text in _BLOCK.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[list[str]]:
    """Shell commands of a page, split into words: from its bash blocks, and from inline code."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    prose = _BLOCK.sub("", page.read_text())
    lines += re.findall(r"`(segtasks [a-z]+[^`]*)`", prose)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def segtasks_commands() -> list[tuple[str, ...]]:
    """Every distinct `segtasks` command line of all pages, without patterns and mere names."""
    lines = {tuple(words[1:]) for page in PAGES for words in commands(page) if "segtasks" in words}
    return sorted(x for x in lines if (len(x) > 1 or x == ("doctor",)) and "CLASS" not in x)


def test_both_readmes_hold_the_same_blocks() -> None:
    english, chinese = READMES
    for language in ("python", "yaml"):
        assert blocks(english, language) == blocks(chinese, language)
        assert blocks(english, language)
    assert commands(english) == commands(chinese)


def test_both_readmes_point_to_the_same_files() -> None:
    english, chinese = (sorted(set(links(page))) for page in READMES)
    assert [x for x in english if x != "README_CN.md"] == [x for x in chinese if x != "README.md"]


def links(page: Path) -> list[str]:
    """Targets of the page's links to files, without anchors."""
    targets = re.findall(r"\]\(([^)]+)\)", _BLOCK.sub("", page.read_text()))
    return [t.partition("#")[0] for t in targets if not t.startswith(("https:", "#"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    targets = [(page.parent / name).resolve().relative_to(ROOT) for name in links(page)]
    missing = [t.as_posix() for t in targets if not (ROOT / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings(page: Path) -> None:
    for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        target = (page.parent / name) if name else page
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]


def test_named_make_targets_exist() -> None:
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert {"demo", "test"} <= named <= rules


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder in which every command of the pages finds what it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "my_callbacks.py").write_text(blocks(READMES[0], "python")[1])
    (tmp_path / "callback.yaml").write_text(blocks(READMES[0], "yaml")[0])
    demo = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    checkpoint = Checkpoint(metadata={"config": demo})
    write_checkpoint(tmp_path / "runs/demo/RUN/checkpoints/last.ckpt", checkpoint)
    sys.modules.pop("my_callbacks", None)
    yield
    sys.modules.pop("my_callbacks", None)


def dry(argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the real parser of a command read its options, without the work behind it."""

    def rooms(out: Path, train: int, val: int, *_: Any, **__: Any) -> RoomsFolder:
        shares = [1 / len(CLASS_NAMES)] * len(CLASS_NAMES)
        return RoomsFolder(out, {"train": shares, "val": shares}, rendered=True)

    monkeypatch.setattr(data, "write_rooms", rooms)
    monkeypatch.setattr(audit, "audit", lambda *_: 0)
    monkeypatch.setattr(benchmark, "benchmark", lambda arguments, _: _resolve(arguments.config))
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: 0)
    monkeypatch.setattr(data, "check", lambda configs, _, options: _build(configs, options))
    if argv[0] in TRAINER_COMMANDS and "--help" not in argv:
        argv = (*argv, "--print_config")
    return main(argv)


def _resolve(configs: list[str]) -> list[Any]:
    """See that configurations are there, patterns as a shell expands them in a checkout."""
    for config in configs:
        assert list(ROOT.glob(config)) or (ROOT / "configs" / config).is_file(), config
    return []


def _build(configs: list[str], options: list[str]) -> int:
    build_data(configs, options)
    return 0


@pytest.mark.parametrize("argv", segtasks_commands(), ids=" ".join)
@pytest.mark.usefixtures("folder")
def test_commands_are_understood(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The doctor's answer, 0 or 1, is about the machine.
    assert dry(argv, monkeypatch) in ((0, 1) if argv[0] == "doctor" else (0,)), capsys.readouterr()


def test_every_command_is_named_and_no_other() -> None:
    named = {words[1] for page in PAGES for words in commands(page) if words[0] == "segtasks"}
    assert named == {*TRAINER_COMMANDS, *COMMANDS}


@pytest.mark.usefixtures("folder")
def test_a_wrong_option_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dry(("fit", "--config", "demo.yaml", "--data.batchsize", "4"), monkeypatch) == 2


@pytest.mark.usefixtures("folder")
def test_the_yaml_block_configures_the_callback_of_the_python_block(
    capsys: pytest.CaptureFixture[str],
) -> None:
    layers = ("--config", "demo.yaml", "--config", "callback.yaml")
    assert main(("fit", *layers, "--print_config")) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    (callback,) = printed["trainer"]["callbacks"]
    assert callback["class_path"] == "my_callbacks.WorstLoss"


def test_the_python_blocks_of_the_readme_train(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    for text in blocks(READMES[0], "python"):
        exec(compile(text, "README.md", "exec"), names)
    points = np.random.default_rng(0).uniform(-1, 1, (20, 64, 2)).astype(np.float32)
    labels = ((points**2).sum(2) < 0.5).astype(np.int32)
    trainer = names["Trainer"](
        max_epochs=5,
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        callbacks=[names["WorstLoss"]()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(names["Classifier"](), list(zip(points, labels, strict=True)))
    # log(2) is what answering at random costs.
    assert 0 < trainer.metrics["train/worst_loss"] < np.log(2)
    assert list(tmp_path.glob("*/checkpoints/last.ckpt"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_blocks_can_be_read(page: Path) -> None:
    for text in blocks(page, "python"):
        ast.parse(text)
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


def hook_names() -> set[str]:
    return {name for name in vars(Callback) if name.startswith("on_")} | {"setup", "teardown"}


def test_the_documented_hooks_are_those_that_the_order_test_pins() -> None:
    (listing,) = blocks(ROOT / "docs" / "trainer.md", "text")
    listed = re.findall(r"^ *(setup|teardown|on_\w+)", listing, re.MULTILINE)
    elsewhere = {"on_exception", "on_save_checkpoint"}
    fit_hooks = {n for n in hook_names() if not re.match("on_(test|predict)_", n)}
    assert set(listed) == fit_hooks - elsewhere
    assert listed == sorted(listed, key=pinned_position())


def pinned_position() -> Callable[[str], int]:
    """Where the specification in tests/jtlightning/test_hooks.py has a hook first, in an epoch."""
    from tests.jtlightning.test_hooks import EPOCH

    order = ["setup", "on_load_checkpoint", "on_fit_start"]
    order += ["on_sanity_check_start", "on_sanity_check_end", "on_train_start"]
    # The window's second micro-batch is the first one with an update.
    micro = EPOCH[5 : EPOCH.index("on_validation_start")]
    order += [
        "on_train_epoch_start",
        *dict.fromkeys([*micro, *EPOCH[EPOCH.index("on_validation_start") :]]),
    ]
    order += ["on_train_end", "on_fit_end", "teardown"]
    return order.index
