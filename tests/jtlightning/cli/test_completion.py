"""What a shell completes, asked of bash itself."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jtlightning.cli.completion import class_paths, script, trainer_arguments
from segtasks.__main__ import main

BASH = shutil.which("bash")
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }
_shtab_segtasks
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BASH is None:
        pytest.skip("there is no bash")
    program = (
        "import sys; from segtasks.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit('Jittor was imported' if 'jittor' in sys.modules else code)"
    )
    command = [sys.executable, "-c", program, "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path_factory.mktemp("completion") / "segtasks.bash"
    file.write_text(done.stdout)
    return file


def complete(file: Path, folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    assert BASH is not None
    command = [BASH, "--norc", "-c", ASK, "bash", str(file), "segtasks", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_commands_are_completed(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "f") == {"fit"}
    assert complete(bash_script, tmp_path, "d") == {"doctor", "data"}


def test_configs_are_completed_shipped_ones_and_files(bash_script: Path, tmp_path: Path) -> None:
    (tmp_path / "dummy.yaml").touch()
    found = complete(bash_script, tmp_path, "fit", "--config", "d")
    assert found >= {"dummy.yaml", "demo.yaml", "dformer_l.yaml"}
    assert complete(bash_script, tmp_path, "fit", "--config", "de") >= {"demo.yaml"}


def test_checkpoints_are_completed_also_after_another_option(
    bash_script: Path, tmp_path: Path
) -> None:
    (tmp_path / "l.ckpt").touch()
    words = ("test", "--config", "demo.yaml", "--ckpt_path", "l")
    assert complete(bash_script, tmp_path, *words) == {"last", "l.ckpt"}


def test_arguments_and_their_values_are_completed(bash_script: Path, tmp_path: Path) -> None:
    assert complete(bash_script, tmp_path, "fit", "--trainer.max_") == {
        "--trainer.max_epochs",
        "--trainer.max_steps",
        "--trainer.max_time",
    }
    words = ("fit", "--trainer.gradient_clip_algorithm", "")
    assert complete(bash_script, tmp_path, *words) == {"norm", "value"}
    assert complete(bash_script, tmp_path, "fit", "--trainer.barebones", "t") == {"true"}


def test_class_paths_are_completed(bash_script: Path, tmp_path: Path) -> None:
    words = ("fit", "--trainer.callbacks+", "jtlightning.callbacks.Ea")
    assert complete(bash_script, tmp_path, *words) == {"jtlightning.callbacks.EarlyStopping"}
    words = ("fit", "--task.model", "segtasks.models.dformer.dformer_t")
    assert complete(bash_script, tmp_path, *words) == {"segtasks.models.dformer.dformer_tiny"}
    words = ("fit", "--trainer.logger.help", "jtlightning.loggers.W")
    assert complete(bash_script, tmp_path, *words) == {"jtlightning.loggers.WandbLogger"}


def test_arguments_read_from_the_source_are_the_trainer_s() -> None:
    from jtlightning.trainer import Trainer

    assert list(trainer_arguments()) == list(inspect.signature(Trainer).parameters)


@pytest.mark.parametrize(
    "package",
    ["segtasks.data", "segtasks.tasks", "segtasks.models.dformer", "jtlightning.callbacks"],
)
def test_class_paths_read_from_the_source_can_be_imported(package: str) -> None:
    module = __import__(package, fromlist=["__all__"])
    assert class_paths(package) == [f"{package}.{name}" for name in module.__all__]
    assert all(hasattr(module, path.rpartition(".")[2]) for path in class_paths(package))


def test_zsh_gets_a_script_of_its_own() -> None:
    text = script("zsh", "segtasks", {"fit": "train"}, {}, ["demo.yaml"], {})
    assert text.startswith("#compdef segtasks\n")
    assert "--trainer.max_epochs" in text


@pytest.mark.parametrize("argv", [[], ["cmd"], ["bash", "zsh"]])
def test_other_shells_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", *argv]) == 2
    assert "choose from bash, " in capsys.readouterr().err
