"""What the commands build, from which layers, and what they leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from jtlightning.checkpoint.container import Checkpoint, read_checkpoint, write_checkpoint
from jtlightning.cli.command import capture_chatter, main
from jtlightning.run_directory import RunDirectoryError

Run = Callable[..., int]


def made(standins: ModuleType) -> Any:
    """The trainer of the last run."""
    return standins.events[-1][1]


def test_trainer_is_made_before_data_and_data_before_the_task(
    run: Run, standins: ModuleType
) -> None:
    assert run("fit", "--config", "demo.yaml") == 0
    stage, trainer = standins.events[-1]
    assert standins.events[:-1] == ["trainer", "data", "task"]
    assert stage == "fit"
    assert trainer.arguments["max_epochs"] == 3
    assert trainer.datamodule.root == "rooms"
    assert trainer.ckpt_path is None


def test_number_of_classes_comes_from_the_data(run: Run, standins: ModuleType) -> None:
    assert run("fit", "--config", "demo.yaml", "--data.num_classes", "7") == 0
    assert made(standins).task.model.num_classes == 7


def test_model_without_that_argument_is_left_alone(run: Run, standins: ModuleType) -> None:
    argv = ("--task.model", "standins.wide", "--task.model.width", "9")
    assert run("fit", "--config", "demo.yaml", *argv) == 0
    assert made(standins).task.model.num_classes == 9


def test_given_number_of_classes_has_to_agree_with_the_data(
    run: Run, standins: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "--task.init_args.model.init_args.num_classes"
    assert run("fit", "--config", "demo.yaml", key, "5") == 0
    assert run("fit", "--config", "demo.yaml", key, "13") == 2
    error = capsys.readouterr().err
    assert (
        "task.init_args.model.init_args.num_classes is 13 (command line), but data.num_classes "
        "is 5 (Rooms); leave task.init_args.model.init_args.num_classes out" in error
    )


def test_data_that_cannot_fill_a_link_is_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", "demo.yaml", "--data", "standins.Bare") == 2
    assert "Bare has no num_classes to take it from" in capsys.readouterr().err


def test_later_files_variables_and_options_override_earlier_layers(
    run: Run, standins: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 4, limit_train_batches: 2}\n")
    two = ("--config", "demo.yaml", "--config=more.yaml")
    run("fit", *two)
    assert made(standins).arguments["max_epochs"] == 4
    monkeypatch.setenv("SEGTASKS_TRAINER__MAX_EPOCHS", "5")
    monkeypatch.setenv("SEGTASKS_TASK__INIT_ARGS__LR", "1e-4")
    run("fit", *two)
    assert made(standins).arguments["max_epochs"] == 5
    assert made(standins).task.lr == 1e-4
    run("fit", *two, "--trainer.max_epochs", "6")
    arguments = made(standins).arguments
    assert arguments["max_epochs"] == 6
    # A whole number stays one: as a float it would mean twice all batches.
    assert arguments["limit_train_batches"] == 2
    assert isinstance(arguments["limit_train_batches"], int)


def test_bases_lie_under_the_file_that_names_them(
    run: Run, standins: ModuleType, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped"
    (shipped / "base").mkdir(parents=True)
    (shipped / "base" / "long.yaml").write_text(
        "trainer: {max_epochs: 500, max_time: 10:00:00:00, learning_rate: 1}"
    )
    (shipped / "base" / "rooms.yaml").write_text((tmp_path / "demo.yaml").read_text())
    (shipped / "rooms_long.yaml").write_text(
        "base: [base/rooms.yaml, base/long.yaml]\ntrainer: {learning_rate: 1e-3}\n"
    )
    assert run("fit", "--config", "rooms_long.yaml") == 0
    arguments = made(standins).arguments
    assert arguments["max_epochs"] == 500
    assert arguments["max_time"] == "10:00:00:00"
    assert arguments["learning_rate"] == 1e-3
    assert arguments["default_root_dir"] == "runs/rooms_long"


def test_another_class_starts_with_its_own_defaults(run: Run, standins: ModuleType) -> None:
    drop = ("--task.model.drop", "0.5")
    run("fit", "--config", "demo.yaml", *drop)
    assert made(standins).task.model.drop == 0.5
    run("fit", "--config", "demo.yaml", *drop, "--task.model", "standins.tiny")
    assert made(standins).task.model.drop == 0.5
    run("fit", "--config", "demo.yaml", *drop, "--task.model", "standins.base")
    assert made(standins).task.model.drop == 0.2


def test_callback_from_a_file_of_the_user_is_appended_and_configured(
    run: Run, standins: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_callbacks.py").write_text(
        "import standins\n\n\nclass Mine(standins.Callback):\n"
        "    def __init__(self, word: str, many: int = 1) -> None:\n"
        "        self.word, self.many = word, many\n"
    )
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    argv = ("--trainer.callbacks+=standins.Stop", "--trainer.callbacks.monitor=val/loss")
    more = ("--trainer.callbacks+=my_callbacks.Mine", "--trainer.callbacks.word=hello")
    assert run("fit", "--config", "demo.yaml", *argv, *more) == 0
    _, stop, mine = made(standins).callbacks
    assert (stop.monitor, stop.patience) == ("val/loss", 3)
    assert (type(mine).__module__, mine.word, mine.many) == ("my_callbacks", "hello", 1)


def test_lists_and_mappings_can_be_given_inline(run: Run, standins: ModuleType) -> None:
    stop = "[{class_path: standins.Stop, init_args: {monitor: a, patience: 9}}]"
    argv = ("--data.scales=[0.5, 1, 2]", "--trainer.callbacks", stop)
    assert run("fit", "--config", "demo.yaml", *argv) == 0
    assert made(standins).datamodule.scales == [0.5, 1.0, 2.0]
    assert made(standins).callbacks[1].patience == 9


def test_printed_configuration_reads_back_as_itself(
    run: Run, standins: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--trainer.max_time", "10:00:00:00", "--data.root", "1e-3", "--task.lr", "1e-5")
    stop = ("--trainer.callbacks+=standins.Stop", "--trainer.callbacks.monitor", "on")
    assert run("fit", "--config", "demo.yaml", *options, *stop, "--print_config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert run("fit", "--config", "printed.yaml", "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert standins.events == []
    values = yaml.safe_load(printed)
    assert values["trainer"]["max_epochs"] == 3
    assert values["trainer"]["accelerator"] == "auto"
    assert values["data"]["init_args"] == {"root": "1e-3", "num_classes": 5, "scales": None}
    # Neither what the data will fill in, nor what the file's name decides.
    assert values["task"]["init_args"]["model"]["init_args"] == {"drop": 0.1, "decoder": "ham"}
    assert "default_root_dir" not in values["trainer"]


def test_checkpoint_holds_what_a_test_needs(run: Run, standins: ModuleType, tmp_path: Path) -> None:
    run("fit", "--config", "demo.yaml", "--data.num_classes=7", "--task.lr=0.5")
    assert "ckpt_path" not in read_checkpoint("made.ckpt").metadata["config"]
    (tmp_path / "demo.yaml").unlink()
    assert run("test", "--ckpt_path", "made.ckpt", "--data.root", "elsewhere") == 0
    stage, trainer = standins.events[-1]
    assert (stage, trainer.ckpt_path) == ("test", "made.ckpt")
    assert trainer.task.lr == 0.5
    assert (trainer.datamodule.root, trainer.datamodule.num_classes) == ("elsewhere", 7)
    assert trainer.task.model.num_classes == 7
    assert trainer.arguments["default_root_dir"] == "runs/demo"


def test_checkpoint_without_configuration_asks_for_one(
    run: Run, standins: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint("bare.ckpt", Checkpoint(metadata={"loop": {}}))
    assert run("test", "--ckpt_path", "bare.ckpt") == 2
    error = capsys.readouterr().err
    assert "bare.ckpt holds no configuration" in error
    assert "--config FILE" in error
    assert run("test", "--ckpt_path", "bare.ckpt", "--config", "demo.yaml") == 0


def test_damaged_checkpoint_is_an_error_without_traceback(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.ckpt").write_bytes(b"\0\0")
    assert run("test", "--ckpt_path", "short.ckpt") == 1
    error = capsys.readouterr().err
    assert "short.ckpt" in error
    assert "Traceback" not in error


def test_measured_metrics_are_printed(
    run: Run, standins: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run("test", "--config", "demo.yaml")
    shown = capsys.readouterr()
    assert shown.out == "test/miou      0.25\ntest/accuracy  0.333333\n"
    assert re.search(r"test took \d+\.\d s, 0\.0 s of it compiling", shown.err)


def test_words_of_yaml_1_1_are_words(run: Run, standins: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("trainer: {max_time: off}\ndata: {init_args: {root: no}}")
    assert run("fit", "--config=demo.yaml", "--config=more.yaml") == 0
    assert made(standins).arguments["max_time"] == "off"
    assert made(standins).datamodule.root == "no"


def test_words_for_checkpoints_reach_the_trainer(run: Run, standins: ModuleType) -> None:
    assert run("fit", "--config", "demo.yaml", "--ckpt_path", "auto") == 0
    assert made(standins).ckpt_path == "auto"


def test_signal_exit_code_passes_through(
    run: Run, standins: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standins.Trainer, "fit", lambda *args, **kwargs: sys.exit(143))
    with pytest.raises(SystemExit) as caught:
        run("fit", "--config", "demo.yaml")
    assert caught.value.code == 143


def test_bug_of_the_user_keeps_its_traceback(
    run: Run, standins: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standins.Trainer, "fit", lambda *args, **kwargs: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        run("fit", "--config", "demo.yaml")


def test_unwritable_file_is_one_line_unless_a_traceback_is_asked_for(
    run: Run,
    standins: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(*args: Any, **kwargs: Any) -> None:
        os.mkdir("/proc/nowhere")  # noqa: PTH102 (the error of the system itself)

    monkeypatch.setattr(standins.Trainer, "fit", fit)
    assert run("fit", "--config", "demo.yaml") == 1
    assert capsys.readouterr().err == "segtasks: error: /proc/nowhere: No such file or directory\n"
    assert run("fit", "--config", "demo.yaml", "--traceback") == 1
    assert "in fit" in capsys.readouterr().err
    monkeypatch.setenv("SEGTASKS_TRACEBACK", "1")
    assert run("fit", "--config", "demo.yaml") == 1
    assert "in fit" in capsys.readouterr().err


def test_help_explains_how_and_lists_the_trainer_first(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--help") == 0
    text = capsys.readouterr().out
    places = [
        text.index(f"\n  --{name}") for name in ("config", "trainer.max_epochs", "data", "task")
    ]
    assert places == sorted(places)
    assert "Epochs to train for. (type: int | null, default: null)" in " ".join(text.split())
    assert "--KEY.help CLASS" in text
    assert "Path to a configuration file" not in text


def test_help_of_a_class_lists_its_arguments(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--task.help", "standins.SegTask") == 0
    assert "Learning rate. (type: float, default: 0.001)" in capsys.readouterr().out
    assert run("fit", "--task.model.help=standins.tiny") == 0
    assert "--task.model.decoder {ham,mlp}" in capsys.readouterr().out


def test_help_of_a_class_leaves_out_endless_lists(
    run: Run, standins: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", "--task.help", "standins.SegTask")
    assert "known subclasses: standins.Segmenter" in " ".join(capsys.readouterr().out.split())
    for number in range(30):
        name = f"Segmenter{number}"
        setattr(standins, name, type(name, (standins.Segmenter,), {"__module__": "standins"}))
    run("fit", "--task.help", "standins.SegTask")
    text = " ".join(capsys.readouterr().out.split())
    assert "Gives the logits. (required, type: <class 'Segmenter'>)" in text


def test_experiment_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"file/runs: .*trainer\.default_root_dir"):
        capture_chatter(tmp_path / "file" / "runs")


def test_folder_instead_of_a_checkpoint_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("test", "--ckpt_path", str(tmp_path)) == 2
    assert f"{tmp_path} is a folder; give a .ckpt file in it" in capsys.readouterr().err


def test_other_data_for_a_checkpoint_say_what_it_needs(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", "demo.yaml") == 0
    assert run("test", "--ckpt_path", "made.ckpt", "--data.num_classes", "9") == 2
    assert "data.num_classes has to be 5 for this checkpoint" in capsys.readouterr().err


def test_measuring_without_a_checkpoint_is_pointed_out(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("fit", "--config", "demo.yaml") == 0
    assert run("test", "--ckpt_path", "made.ckpt") == 0
    assert "no ckpt_path" not in caplog.text
    assert run("test", "--config", "demo.yaml") == 0
    assert "no ckpt_path is given" in caplog.text


def test_help_lists_offered_classes_even_of_a_lazy_package(
    standins: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lazy.py").write_text(
        "import standins\n__all__ = ['Extra']\ndef __getattr__(name):\n"
        "    globals()[name] = type(name, (standins.Task,), {'__module__': __name__})\n"
        "    return globals()[name]\n"
    )
    classes = {
        "task_base": standins.Task,
        "data_base": standins.Data,
        "trainer_class": standins.Trainer,
    }
    assert main(["fit", "--help"], prog="segtasks", **classes, offered=["lazy"]) == 0
    assert "lazy.Extra" in capsys.readouterr().out


_INTERRUPTED = """
import os, signal
from jtlightning.cli import command
try:
    command._program("segtasks", None, None, None)
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_python_s_again_once_jittor_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True)
    assert done.stdout == "interrupted\n"
