"""Each mistake of a user gives one message: what, where, what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Run = Callable[..., int]


@pytest.fixture
def refused(
    run: Run, standins: ModuleType, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command that must end with exit code 2 before anything is made; its message."""

    def call(*argv: str) -> str:
        assert run(*argv) == 2
        assert standins.events == []
        message = capsys.readouterr().err
        assert message.startswith("segtasks: error: ")
        assert "Traceback" not in message
        return message.removeprefix("segtasks: error: ").rstrip("\n")

    return call


Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer:\n  max_epoch: 3",
            "unknown key trainer.max_epoch (my.yaml, line 2); did you mean trainer.max_epochs?",
        ),
        ("trianer: {}", "unknown key trianer (my.yaml, line 1); did you mean trainer?"),
        (
            "max_epochs: 3",
            "unknown key max_epochs (my.yaml, line 1); did you mean trainer.max_epochs?",
        ),
        (
            "data:\n  init_args:\n    rot: x",
            "unknown key data.init_args.rot (my.yaml, line 3); did you mean data.init_args.root?",
        ),
        (
            "task: {lr: 1}",
            "unknown key task.lr (my.yaml, line 1); did you mean task.init_args.lr?",
        ),
        (
            "task:\n  init_args:\n    model:\n      init_args:\n        dorp: 0.2",
            "unknown key task.init_args.model.init_args.dorp (my.yaml, line 5); did you mean "
            "task.init_args.model.init_args.drop?",
        ),
        (
            "trainer:\n  callbacks:\n    - class_path: standins.Stop\n      init_args: {monitr: x}",
            "unknown key trainer.callbacks.0.init_args.monitr (my.yaml, line 4); did you mean "
            "trainer.callbacks.0.init_args.monitor?",
        ),
        (
            "task: {init_args: {zzz: 1}}",
            "unknown key task.init_args.zzz (my.yaml, line 1); known there: lr, model",
        ),
    ],
)
def test_unknown_key_names_path_origin_and_nearest(
    refused: Refused, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert refused("fit", "--config", "demo.yaml", "--config", "my.yaml") == message


def test_all_unknown_keys_are_reported_at_once(refused: Refused) -> None:
    message = refused("fit", "--config=demo.yaml", "--trainer.max_epoch=3", "--data.rot=x")
    assert message.splitlines() == [
        "unknown key trainer.max_epoch (command line); did you mean trainer.max_epochs?",
        "unknown key data.init_args.rot (command line); did you mean data.init_args.root?",
    ]


def test_unknown_key_of_a_variable_names_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGTASKS_TRAINER__MAX_EPOCH", "3")
    message = refused("fit", "--config=demo.yaml")
    assert "trainer.max_epoch (variable SEGTASKS_TRAINER__MAX_EPOCH)" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer:\n  max_epochs: many",
            "trainer.max_epochs is 'many' (my.yaml, line 2), but Trainer takes int | None",
        ),
        (
            "trainer: {accelerator: gpu}",
            "trainer.accelerator is 'gpu' (my.yaml, line 1), but Trainer takes "
            "Literal['auto', 'cpu']",
        ),
        (
            "task: {init_args: {model: {init_args: {drop: high}}}}",
            "task.init_args.model.init_args.drop is 'high' (my.yaml, line 1), but tiny takes float",
        ),
        (
            "task: {init_args: {model: {class_path: standins.Stop, init_args: {monitor: x}}}}",
            "task.init_args.model is standins.Stop (my.yaml, line 1), but SegTask takes Segmenter",
        ),
        (
            "trainer: {callbacks: [{class_path: standins.Stop}]}",
            "trainer.callbacks.0.init_args.monitor is missing; Stop needs it (str)",
        ),
        (
            "trainer: {callbacks: [standins.Stopp]}",
            "trainer.callbacks.0.class_path (my.yaml, line 1) is standins.Stopp, but standins has "
            "no Stopp; did you mean Stop?",
        ),
        (
            "trainer: {callbacks: [standins.Segmenter]}",
            "trainer.callbacks.0.init_args.num_classes is missing; Segmenter needs it (int)\n"
            "trainer.callbacks.0.init_args.drop is missing; Segmenter needs it (float)",
        ),
        (
            "task: {class_path: standins.Rooms, init_args: {root: x}}",
            "task.class_path is standins.Rooms (my.yaml, line 1), which is no subclass of "
            "standins.Task",
        ),
        ("trainer: 3", "trainer is 3 (my.yaml, line 1); it must be a section with keys"),
    ],
)
def test_wrong_value_names_key_value_and_expected_type(
    refused: Refused, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert refused("fit", "--config", "demo.yaml", "--config", "my.yaml") == message


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("standins.tinny", "but standins has no tinny; did you mean tiny?"),
        ("standin.tiny", "but there is no module standin; did you mean standins?"),
        ("joson.tiny", "but there is no module joson; did you mean jason?"),
        (
            "jtlightning.callback.EMA",
            "there is no module jtlightning.callback; did you mean jtlightning.callbacks?",
        ),
        ("tiny", "write module and name, such as my_callbacks.MyCallback"),
    ],
)
def test_unknown_class_suggests_the_nearest(
    refused: Refused, tmp_path: Path, class_path: str, message: str
) -> None:
    (tmp_path / "jason.py").touch()  # our own file comes before Python's json
    text = refused("fit", "--config", "demo.yaml", "--task.model", class_path)
    assert text.startswith("task.init_args.model.class_path (command line) is ")
    assert message in text


def test_error_inside_the_file_of_a_class_passes_through(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken_file.py").write_text("import no_such_thing\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        run("fit", "--config", "demo.yaml", "--task", "broken_file.Mine")


def test_missing_file_lists_the_shipped_ones_and_the_nearest(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "shipped" / "base").mkdir(parents=True)
    for name in ("dformer_l.yaml", "base/nyuv2.yaml"):
        (tmp_path / "shipped" / name).write_text("{}")
    assert refused("fit", "--config", "dfromer_l.yaml") == (
        "there is no configuration file dfromer_l.yaml; did you mean dformer_l.yaml? "
        "Shipped: base/nyuv2.yaml, dformer_l.yaml."
    )
    (tmp_path / "my.yaml").write_text("base: base/nyuv.yaml")
    assert "base/nyuv.yaml (a base of my.yaml); did you mean base/nyuv2.yaml?" in refused(
        "fit", "--config", "my.yaml"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: [1", "my.yaml, line 1: this is not valid YAML: "),
        ("trainer: {}\nb: {a: 1}\ntrainer: {}", "my.yaml, line 3: this is not valid YAML: the key"),
        ("- 1", "my.yaml holds a list"),
        ("a: \0", "my.yaml: this is not valid YAML: "),
        ("base: 3", "base is 3 (my.yaml); give a list of configuration files"),
        ("base: my.yaml", "configuration files name each other as base: "),
    ],
)
def test_unreadable_yaml_names_file_and_line(
    refused: Refused, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert refused("fit", "--config", "my.yaml").startswith(message)


def test_file_that_is_not_text_is_named(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused("fit", "--config", "my.yaml").startswith("my.yaml cannot be read: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("fti",), "there is no command 'fti'; did you mean fit?"),
        ((), "there is no command ''; choose from fit, validate"),
        (("fit", "demo.yaml"), "unexpected argument 'demo.yaml'"),
        (("fit", "--config"), "--config needs a value"),
        (
            ("fit", "--trainer.max_epochs", "--config=demo.yaml"),
            "--trainer.max_epochs needs a value",
        ),
        (("fit",), "no data is named; give a file with --config (shipped: none), or a class"),
        (
            ("fit", "--config=demo.yaml", "--data.scales=[1"),
            "--data.scales: '[1' is not valid YAML",
        ),
        (
            ("fit", "--config=demo.yaml", "--data.root.deeper.x=1"),
            "--data.root.deeper.x: data.init_args.root is 'rooms', which has no parts",
        ),
        (
            ("fit", "--config=demo.yaml", "--trainer.callbacks.monitor=x"),
            "trainer.callbacks is {'monitor': 'x'} (command line), but Trainer takes list[",
        ),
    ],
)
def test_misused_option_is_explained(refused: Refused, argv: tuple[str, ...], message: str) -> None:
    assert refused(*argv).startswith(message)
