"""Every shipped configuration names classes and arguments that exist, and builds its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segtasks.__main__ import main

ROOT = Path(__file__).parents[2]
CONFIGS = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.parent.name != "base"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_resolves(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(config.relative_to(ROOT / "configs"))
    assert main(["fit", "--config", name, "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["task"]["init_args"]["model"]["class_path"].startswith("segtasks.models.")
    assert resolved["trainer"]["callbacks"]
