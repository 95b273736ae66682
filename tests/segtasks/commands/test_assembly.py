"""Parts of a configuration, built one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jittor as jt
import pytest

from jtlightning.cli.config import ConfigError
from segtasks.commands.assembly import Assembly

CONFIG = """
trainer: {accelerator: cpu, seed: 3}
data:
  class_path: segtasks.data.RGBDDataModule
  init_args: {root: nowhere, num_classes: 5}
task:
  class_path: segtasks.tasks.SegmentationTask
  init_args:
    model: {class_path: small_network.Small}
    optimizer:
      class_path: jtlightning.optim.SGD
      init_args: {lr: 0.02, momentum: 0.8, weight_decay: 1.e-4, nesterov: true}
"""
NETWORK = """
from jittor import nn

class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.conv = num_classes, nn.Conv2d(3, num_classes, 1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small_network.py").write_text(NETWORK)
    Path("small.yaml").write_text(CONFIG)


def optimizer(*overrides: str) -> Any:
    """What trains the network, by the configuration."""
    assembly = Assembly(["small.yaml"], overrides)
    return assembly.task(assembly.data()).configure_optimizers()[0]


def test_momentum_is_said_in_a_file() -> None:
    sgd = optimizer()

    assert type(sgd) is jt.optim.SGD
    assert (sgd.lr, sgd.momentum, sgd.nesterov) == (0.02, 0.8, True)
    assert [group["weight_decay"] for group in sgd.param_groups] == [1e-4, 0.0]


def test_momentum_is_said_on_the_command_line() -> None:
    adam = "jtlightning.optim.AdamW"

    assert optimizer("--task.optimizer.momentum", "0.5").momentum == 0.5
    assert "AdamW" in type(optimizer("--task.optimizer", adam)).__name__
    with pytest.raises(ValueError, match="momentum"):
        optimizer("--task.optimizer.momentum", "1")


def test_the_task_takes_its_classes_from_the_data() -> None:
    assembly = Assembly(["small.yaml"])
    assert assembly.model_class == "Small"
    data = assembly.data()
    assert assembly.task(data).model.num_classes == data.num_classes == 5


def test_other_classes_than_the_data_s_are_refused() -> None:
    assembly = Assembly(["small.yaml"], ["--task.model.num_classes", "4"])
    with pytest.raises(ConfigError, match=r"num_classes is 4 .* but data.num_classes is 5"):
        assembly.task(assembly.data())


def test_a_trainer_is_the_configuration_s() -> None:
    assert Assembly(["small.yaml"], ["--trainer.max_epochs", "7"]).trainer().max_epochs == 7


@pytest.mark.parametrize(
    ("config", "overrides", "complaint"),
    [
        (CONFIG, ["--config", "other.yaml"], "only options that set a value"),
        (CONFIG, ["--task.modle", "x"], "did you mean task.init_args.model"),
        (CONFIG, ["--data.num_classes", "many"], "num_classes is 'many'"),
        (CONFIG.partition("data:")[0], [], "no data is named"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(
    config: str, overrides: list[str], complaint: str
) -> None:
    Path("small.yaml").write_text(config)
    with pytest.raises(ConfigError, match=complaint):
        Assembly(["small.yaml"], overrides)
