"""`segtasks benchmark`: counts against the papers and by hand, times of a network of our own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from segtasks.commands.benchmark import main
from segtasks.commands.benchmark_measure import (
    BenchmarkError,
    Speed,
    count,
    input_shapes,
    measure,
    network_of,
    passes,
)
from segtasks.commands.published import PUBLISHED, find_published

#: Configuration -> parameters of the official network for NYUDepthv2.
VARIANTS = {
    "dformer_t": 6_003_912,
    "dformer_s": 18_747_144,
    "dformer_b": 29_524_840,
    "dformer_l": 39_030_392,
    "dformerv2_s": 26_686_018,
    "dformerv2_b": 53_923_050,
    "dformerv2_l": 95_550_074,
}


def counted(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The results of a run that only counts."""
    file = tmp_path / "found.json"
    assert main([*options, "--no-latency", "--json", str(file)]) == 0
    results: list[dict[str, Any]] = json.loads(file.read_text())["results"]
    return results


def test_parameters_and_operations_agree_with_the_papers_on_nyudepthv2(tmp_path: Path) -> None:
    results = counted(tmp_path, "--config", *(f"{name}.yaml" for name in VARIANTS))

    assert {found["config"]: found["trainable"] for found in results} == VARIANTS
    segmenters = {model for model in PUBLISHED if not model.startswith("rtdetr")}
    assert {found["model"] for found in results} == segmenters
    for found in results:
        printed = found["published"]
        assert found["inputs"] == [[1, 3, 480, 640]] * 2
        assert found["trainable"] == pytest.approx(1e6 * printed["parameters_m"], rel=0.005)
        assert found["flops"] == pytest.approx(1e9 * printed["flops_g"], rel=0.02)


def test_operations_agree_with_the_papers_on_sunrgbd(tmp_path: Path) -> None:
    names = [f"{name}_sunrgbd.yaml" for name in VARIANTS]
    first, second = names[:4], names[4:]

    results = counted(tmp_path, "--config", *first, "--size", "530", "730")
    # The papers count DFormerv2 with the heads for NYUDepthv2.
    heads = {"dformerv2_s": 512, "dformerv2_b": 512, "dformerv2_l": 1024}
    for name, head in zip(second, heads.values(), strict=True):
        width = f"--task.model.decoder_embed_dim={head}"
        results += counted(tmp_path, "--config", name, "--size", "530", "730", width)

    for found in results:
        assert found["published"]["dataset"] == "SUNRGBD"
        assert found["flops"] == pytest.approx(1e9 * found["published"]["flops_g"], rel=0.02)


#: Configuration -> learnable elements of the official detector, frozen ones among them.
DETECTORS = {
    "rtdetr_r18": 20_184_464,
    "rtdetr_r34": 31_441_668,
    "rtdetr_r50_m": 36_593_772,
    "rtdetr_r50": 42_891_372,
    "rtdetr_r101": 76_556_268,
}


def test_detectors_agree_with_the_paper_without_their_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = ["--data.root", str(tmp_path / "absent")]

    results = counted(tmp_path, "--config", *(f"{name}.yaml" for name in DETECTORS), *root)

    sizes = {found["config"]: found["trainable"] + found["frozen"] for found in results}
    assert sizes == DETECTORS
    assert "counting with 80 classes" in caplog.text
    for found in results:
        assert found["inputs"] == [[1, 3, 640, 640]]
        assert found["flops"] == 2 * found["macs_layers"]
        assert found["flops"] == pytest.approx(1e9 * found["published"]["flops_g"], rel=0.03)


def test_absent_data_whose_classes_are_named_needs_no_published_number(tmp_path: Path) -> None:
    root = ["--data.root", str(tmp_path / "absent")]

    (found,) = counted(tmp_path, "--config", "rtdetr_r18_voc.yaml", *root)

    assert found["trainable"] < DETECTORS["rtdetr_r18"]
    assert found["published"] is None


def test_a_table_puts_what_is_published_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "table.md"
    options = ["--no-latency", "--markdown", str(file)]

    assert main(["--config", "dformer_t.yaml", "demo.yaml", *options]) == 0

    printed = capsys.readouterr().out
    assert "6,003,912" in printed
    lines = [line.strip("| \n").split(" | ") for line in file.read_text().splitlines()]
    assert lines[0][:2] == ["configuration", "input"]
    assert lines[2][0] == "dformer_t"
    assert lines[2][4:7] == ["6 M (+0.1 %)", "11.70", "11.8 G (-0.9 %)"]
    assert lines[3][:2] == ["demo", "96x128"]
    assert [line[4] for line in lines[:1]] == ["published"]
    assert lines[3][4].strip() == ""
    assert not any("ms" in title for title in lines[0])


def test_operations_are_compared_at_the_size_of_the_paper_only(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    options = ["--no-latency", "--size", "96", "128", "--markdown", str(file)]

    assert main(["--config", "dformer_t.yaml", *options]) == 0

    assert "6 M (+0.1 %)" in file.read_text()
    assert "11.8 G" not in file.read_text()


def test_options_of_fit_are_for_every_configuration(tmp_path: Path) -> None:
    names = ["demo.yaml", "debug/dformer_tiny.yaml"]

    results = counted(tmp_path, "--config", *names, "--task.model.decoder", "mlp")

    assert [found["config"] for found in results] == ["demo", "dformer_tiny"]
    with_ham = counted(tmp_path, "--config", *names)
    for mlp, ham in zip(results, with_ham, strict=True):
        assert mlp["trainable"] != ham["trainable"]


def test_another_decoder_and_other_classes_have_nothing_published() -> None:
    assert find_published("dformer_tiny", 40) is not None
    assert find_published("dformer_tiny", 40, "mlp") is None
    assert find_published("dformer_tiny", 12) is None
    assert find_published("my_network", 40) is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--config", "absent.yaml"], "there is no configuration file absent.yaml"),
        (["--config", "demo.yaml", "--task.model.drop_pth", "1"], "did you mean"),
        (["--config", "demo.yaml", "--json", "nowhere/x.json"], "there is no folder nowhere"),
        (["--config", "demo.yaml", "--markdown", "nowhere/x.md"], "there is no folder nowhere"),
        (["--config", "demo.yaml", "--print_config"], "only options that set a value"),
    ],
)
def test_a_wrong_request_gives_2_before_any_work(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert main(options) == 2

    assert complaint in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["--runs", "--warm-up", "--batch"])
def test_numbers_are_whole_and_positive(option: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--config", "demo.yaml", option, "0"])
    assert raised.value.code == 2


class Network(nn.Module):
    """Adds its two inputs after a batch norm, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm(3), nn.Conv2d(3, 4, 3)
        self.conv.bias.stop_grad()
        self.calls: list[tuple[int, ...]] = []
        self.modes: list[bool] = []
        self.mib = 0

    def execute(self, image: jt.Var, depth: jt.Var) -> jt.Var:
        self.calls.append(tuple(image.shape))
        self.modes.append(self.is_training())
        np.ones(self.mib * 2**17).sum()
        return self.conv(self.norm(image) + depth)


SHAPES = [(1, 3, 6, 8), (1, 3, 6, 8)]


def test_passes_are_timed_after_the_warm_up_in_evaluation_mode() -> None:
    network, told = Network(), []
    network.train()

    speed = measure(network, SHAPES, batch=2, warm_up=2, runs=3, progress=lambda: told.append(1))

    assert network.calls == [(2, 3, 6, 8)] * 5
    assert not any(network.modes)
    assert network.is_training()
    assert len(speed.milliseconds) == 3
    assert min(speed.milliseconds) > 0
    assert len(told) == 5


def test_memory_is_the_peak_of_these_passes_alone() -> None:
    network = Network()
    small = measure(network, SHAPES, batch=1, warm_up=1, runs=1).peak_mib
    network.mib = 200
    large = measure(network, SHAPES, batch=1, warm_up=1, runs=1).peak_mib
    network.mib = 0
    again = measure(network, SHAPES, batch=1, warm_up=1, runs=1).peak_mib

    assert small is not None
    assert large is not None
    assert again is not None
    assert large > small + 150
    assert again < large - 100


def test_elements_are_told_apart() -> None:
    counts = count(Network(), SHAPES)

    assert (counts.trainable, counts.frozen, counts.statistics) == (6 + 4 * 3 * 9, 4, 6)
    assert counts.macs_layers == 4 * 4 * 6 * 27
    assert counts.macs_products == 0


def test_speed_is_that_of_the_median() -> None:
    speed = Speed(4, (10.0, 20.0, 90.0), None)

    assert speed.images_per_s == pytest.approx(200)
    assert speed.percentile(95) == pytest.approx(83)


def test_batches_hold_all_images() -> None:
    assert [passes(n, 8) for n in (1, 8, 9, 300)] == [1, 1, 2, 38]


def test_inputs_are_those_of_one_image() -> None:
    data = SimpleNamespace(input_shapes=((8, 3, 96, 128), (8, 1, 96, 128)))

    assert input_shapes(data, None) == [(1, 3, 96, 128), (1, 1, 96, 128)]
    assert input_shapes(data, (32, 64)) == [(1, 3, 32, 64), (1, 1, 32, 64)]
    with pytest.raises(BenchmarkError, match="SimpleNamespace has no `input_shapes`"):
        input_shapes(SimpleNamespace(), None)


def test_the_network_is_the_task_or_its_model() -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Network()

    task, network = Task(), Network()
    assert network_of(task) is task.model
    assert network_of(network) is network
    del task.model
    with pytest.raises(BenchmarkError, match=r"Task has neither execute\(\) nor a `model`"):
        network_of(task)


CONFIG = """
data:
  class_path: segtasks.data.RoomsDataModule
  init_args: {crop_size: [6, 8]}
task:
  class_path: segtasks.tasks.SegmentationTask
  init_args: {model: {class_path: network_of_a_benchmark.Sum}}
"""
NETWORK = """
from jittor import nn

class Sum(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.conv = num_classes, nn.Conv2d(3, num_classes, 3)

    def execute(self, image, depth):
        return self.conv(image + depth)
"""


def test_a_run_gives_times_and_memory_of_both_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("network_of_a_benchmark.py").write_text(NETWORK)
    Path("sum.yaml").write_text(CONFIG)
    options = ["--warm-up", "1", "--runs", "3", "--batch", "2", "--markdown", "table.md"]

    assert main(["--config", "sum.yaml", "--json", "found.json", *options]) == 0

    found = json.loads(Path("found.json").read_text())
    assert found["protocol"]["mode"] == "evaluation"
    assert found["protocol"]["device"] == "cpu"
    (row,) = found["results"]
    assert row["model"] == "Sum"
    for batch, number in ((1, 3), (2, 2)):
        speed = row[f"batch_{batch}"]
        assert speed["passes"] == number
        assert speed["images_per_s"] == pytest.approx(1000 * batch / speed["median_ms"])
        assert speed["p5_ms"] <= speed["median_ms"] <= speed["p95_ms"]
        assert speed["peak_mib"] > 10
    table = Path("table.md").read_text()
    assert "images/s, batch 2" in table
    assert "published" not in table
