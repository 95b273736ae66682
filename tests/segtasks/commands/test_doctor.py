from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jtlightning.runtime import cuda, facts, toolchain
from segtasks.commands import doctor
from tests.jtlightning.runtime.cuda.trees import make_jittor

REPOSITORY = Path(__file__).parents[3]
CODE = "import sys; from segtasks.commands.doctor import main; sys.exit(main(sys.argv[1:]))"

Doctor = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_doctor(tmp_path: Path) -> Doctor:
    """Run `segtasks doctor` with an empty home folder."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "200",
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", CODE, *arguments],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_a_good_machine_can_train(run_doctor: Doctor) -> None:
    result = run_doctor()
    assert result.returncode == 0, result.stdout
    assert "Training can run on this machine." in result.stdout
    assert "nvcc_path" in result.stdout


def test_a_missing_compiler_ends_with_one_and_the_command(run_doctor: Doctor) -> None:
    result = run_doctor(PATH="/nowhere")
    assert result.returncode == 1
    assert "install g++" in result.stdout
    assert "Training cannot run on this machine yet." in result.stdout


def test_the_changed_jittor_is_shown_and_why_it_is_not(run_doctor: Doctor, tmp_path: Path) -> None:
    assert re.search(r"Jittor .*1\.3\.11\.0, changed in ", run_doctor().stdout)
    as_it_is = run_doctor(JTLIGHTNING_JITTOR="")
    assert as_it_is.returncode == 0
    assert "unset JTLIGHTNING_JITTOR" in as_it_is.stdout
    other = tmp_path / "other"
    make_jittor(other, {"jittor_utils/__init__.py": ""}, version="1.3.12.0")
    unknown = run_doctor(PYTHONPATH=f"{REPOSITORY}:{other}")
    assert (
        "the installed jittor 1.3.12.0 is not the jittor 1.3.11.0 that is known" in unknown.stdout
    )
    assert "--force-reinstall --no-deps jittor==1.3.11.0" in unknown.stdout


def test_json_says_who_set_a_variable(run_doctor: Doctor) -> None:
    result = run_doctor("--json", use_cutt="1")
    report = json.loads(result.stdout)
    setters = {item["name"]: item["set_by"] for item in report["variables"]}
    assert (setters["use_cutt"], setters["use_cutlass"]) == ("you", "jtlightning")
    assert report["can_train"] is True
    assert report["device"]["name"] in ("cpu", "cuda")
    assert report["packages"]["jittor"].startswith("1.3.11")


def test_the_kernel_cache_is_measured(run_doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "jittor" / "jt" / "jit"
    folder.mkdir(parents=True)
    (folder / "one.so").write_bytes(bytes(3000))
    (folder / "one.cc").write_bytes(bytes(2000))
    cache = json.loads(run_doctor("--json", JTLIGHTNING_JITTOR="").stdout)["cache"]
    assert cache["kernels"] == 1
    # The links to oneDNN are some hundred bytes more.
    assert 5000 <= cache["size"] < 9000


def test_a_remembered_home_is_shown(run_doctor: Doctor, tmp_path: Path) -> None:
    note = tmp_path / ".cache" / "jittor" / "config.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"JITTOR_HOME": str(tmp_path / "old")}))
    cache = json.loads(run_doctor("--json").stdout)["cache"]
    assert cache["remembered_home"] == str(tmp_path / "old")
    assert cache["folder"].startswith(str(tmp_path / "old"))


def test_the_last_lines_of_a_failed_trial_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TRIAL", "raise RuntimeError('no luck')")
    trial = doctor.try_jittor()
    assert not trial.ok
    assert trial.text.endswith("RuntimeError: no luck")


def test_a_failed_trial_ends_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_TRIAL", "raise SystemExit(3)")
    assert doctor.main(["--deep"]) == 1
    assert "Jittor fails although" in capsys.readouterr().out


def gpu_choice(monkeypatch: pytest.MonkeyPatch, *steps: cuda.Step) -> None:
    """Have the doctor find these steps to a GPU."""
    nvcc = "/cuda/bin/nvcc" if all(step.ok for step in steps) else ""
    choice = cuda.Choice(nvcc, steps[-1].found, "", {}, list(steps))
    monkeypatch.setattr(facts, "_choice", lambda: choice)


def test_a_gpu_that_cannot_be_used_is_an_error_only_where_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "pip install 'segtasks[cuda13]'"
    gpu_choice(
        monkeypatch,
        cuda.Step("NVIDIA driver", True, "up to CUDA 13.0, 1 device(s): sm_90", ""),
        cuda.Step("CUDA toolkit", False, "CUDA 13.0 at /cuda lacks cuDNN", command),
    )
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    # Brackets are no markup, and the command stands on a line of its own.
    assert f"warning CUDA toolkit: {command}\n" in output
    assert output.endswith("Training can run on this machine.\n")
    assert doctor.main(["--gpu"]) == 1
    output = capsys.readouterr().out
    assert f"missing CUDA toolkit: {command}\n" in output
    assert output.endswith("Training on a GPU cannot run on this machine yet.\n")


def test_each_step_to_the_gpu_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("NVIDIA device", "NVIDIA driver", "CUDA toolkit", "cuDNN", cuda.JITTOR_STEP)
    gpu_choice(monkeypatch, *(cuda.Step(name, True, f"found {name}", "") for name in names))
    assert doctor.main(["--gpu"]) == 0
    output = capsys.readouterr().out
    assert all(f"found {name}" in output for name in names)
    assert output.endswith("Training on a GPU can run on this machine.\n")


def test_no_gpu_is_no_fault_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda, "has_device_file", lambda: False)
    monkeypatch.setattr(facts, "_choice", cuda.choose)
    assert doctor.main([]) == 0
    assert "--gpus" not in capsys.readouterr().out
    assert doctor.main(["--gpu"]) == 1
    assert "--gpus all" in capsys.readouterr().out


def test_numpy_2_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("numpy.__version__", "2.1.0")
    assert doctor.main([]) == 1
    assert "pip install 'numpy<2'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_trial_convolves_with_onednn() -> None:
    assert toolchain.compiler()
    trial = doctor.try_jittor()
    assert trial.ok, trial.text
    assert trial.text == "convolution correct, with oneDNN"
