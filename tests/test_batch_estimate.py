"""The cost that a dry run shows: what is measured, what is counted, the arithmetic, and that nothing is fetched."""

import io
import pkgutil
import re
import socket
import urllib.request

import pytest
import yaml
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console

from vitlab.batch import load_batch, plan_tasks, run_batch
from vitlab.batch.estimate import REFERENCE_FLOPS_PER_S, UTILISATION, estimate_batch
from vitlab.batch.summary import format_flops, format_seconds, print_plan
from vitlab.kernels import WarmProcess

TRAIN = (
    'dataset = "digits"\nmodel = "vit_scratch"\nseed = 0\npretrained = None\nsize = None\nepochs = None\nlearning_rate = None\n'
    'strategy = None\nprecision = None\nrun_name = ""'
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a notebook that would train, and one that looks at the result. Functions are called in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WarmProcess, "call", lambda self, function, *arguments: pkgutil.resolve_name(function)(*arguments))
    (tmp_path / "batches").mkdir()
    for name, parameters in {"train": TRAIN, "look": 'dataset = "digits"\nmodel = ""\nrun_name = ""'}.items():
        cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell("print(1)")]
        write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def write_batch(project, **content):
    file = project / "batches" / "toy.yml"
    file.write_text(yaml.safe_dump({"chain": [{"notebook": "train"}, {"notebook": "look"}]} | content))
    return file


def answer(function, *arguments):
    """In place of counting and measuring: 8 TFLOP, of which this machine does 2 a second."""
    if function.endswith("measure_speed"):
        return {"device": "toy", "precision": arguments[0], "flops_per_s": 2e12, "problem": ""}
    return {"images": 100, "epochs": 4, "precision": "bf16", "flops": 8e12, "problem": ""}


def show(content):
    console = Console(width=160, record=True, file=io.StringIO())
    print_plan(content, console)
    return console.export_text()


def test_time_is_flops_over_the_used_part_of_the_rate(project):
    tasks = plan_tasks(load_batch(write_batch(project, grid={"model": ["vit_scratch"], "seed": [0, 1]})))
    found = estimate_batch(tasks, range(4), [None, None, None, 30.0], answer)
    train, look, _, other_look = found["tasks"]
    assert train["seconds"] == 8e12 / (2e12 * 0.4) == 10.0
    assert train["reference_s"] == 8e12 / (312e12 * 0.4)
    assert (UTILISATION, REFERENCE_FLOPS_PER_S["fp32"]) == (0.4, 19.5e12)
    assert (look["seconds"], look["flops"]) == (None, None)
    assert (other_look["seconds"], other_look["measured"]) == (30.0, True)
    assert found["totals"] == {
        "tasks": 4,
        "seconds": 50.0,
        "without_seconds": 1,
        "flops": 16e12,
        "reference_s": 2 * train["reference_s"],
    }


def test_what_was_measured_counts_before_what_is_reckoned(project):
    tasks = plan_tasks(load_batch(write_batch(project, grid={"model": ["vit_scratch"]})))
    train = estimate_batch(tasks, [0, 1], [77.0, None], answer)["tasks"][0]
    assert (train["seconds"], train["measured"], train["flops"]) == (77.0, True, 8e12)
    up_to_date = estimate_batch(tasks, [], [77.0, 5.0], answer)
    assert up_to_date["totals"]["seconds"] == 0 and up_to_date["speeds"] == []


def test_points_that_differ_by_their_seed_are_counted_once(project):
    tasks = plan_tasks(load_batch(write_batch(project, grid={"model": ["vit_scratch"], "seed": [0, 1, 2]})))
    asked = []
    estimate_batch(tasks, range(6), [None] * 6, lambda *words: asked.append(words[0]) or answer(*words))
    assert asked == ["vitlab.training.cost:estimate_training", "vitlab.training.cost:measure_speed"]


def test_a_machine_that_cannot_train_so_says_why(project):
    tasks = plan_tasks(load_batch(write_batch(project, grid={"model": ["vit_scratch"]})))

    def refuse(function, *arguments):
        return answer(function, *arguments) | ({"flops_per_s": None, "problem": "no GPU"} if "speed" in function else {})

    train = estimate_batch(tasks, [0, 1], [None, None], refuse)["tasks"][0]
    assert (train["seconds"], train["problem"]) == (None, "no GPU") and train["reference_s"] > 0


@pytest.fixture
def nothing_is_fetched(monkeypatch):
    """Every way to the network, and to weights, is an error."""

    def refuse(*arguments, **options):
        raise AssertionError(f"asked for {arguments}")

    for target, name in ((socket, "getaddrinfo"), (socket.socket, "connect"), (urllib.request, "urlopen")):
        monkeypatch.setattr(target, name, refuse)
    for place in ("vitlab.models.zoo.packaged_checkpoint", "vitlab.models.weights.try_to_load_from_cache"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)


def test_a_dry_run_fetches_nothing_and_asks_no_weights(project, reports_folder, nothing_is_fetched, monkeypatch):
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    parameters = {"pretrained": True, "epochs": 10, "size": 224, "precision": "bf16"}
    grid = {"model": ["deit_small_patch16_224.fb_in1k", "hybrid_vit"], "dataset": ["torchvision:CIFAR10"]}
    content = run_batch(write_batch(project, grid=grid, chain=[{"notebook": "train", "parameters": parameters}]), dry_run=True)
    deit, hybrid = content["estimate"]["tasks"]
    assert (deit["images"], deit["epochs"]) == (42_500, 10)
    assert deit["flops"] == pytest.approx(42_500 * 10 * 3 * 2 * 4.6e9, rel=0.01)  # 4.6 G multiply-adds: DeiT, table 5
    assert hybrid["flops"] < deit["flops"] / 10
    assert content["estimate"]["totals"]["seconds"] == pytest.approx(deit["seconds"] + hybrid["seconds"])
    assert not reports_folder.exists()


def test_the_plan_says_what_and_how(project):
    file = write_batch(project, title="Toy", grid={"model": ["vit_scratch"]}, parameters={"epochs": 2})
    shown = show(run_batch(file, dry_run=True))
    words = " ".join(shown.split())
    assert "1,222 images × 2 epochs" in words  # of 1,797 digits, 0.8 x 0.85 of each class
    assert "To run: 2 of 2 notebooks. Here, 1 of them take about" in words and "Without an estimate: 1." in words
    assert re.search(r"Training alone: [\d.]+ TFLOP, about [\d.]+ s on one NVIDIA A100", words)
    assert "An estimate." in words and "0.4 of the rate of matrix products" in words


def test_seconds_of_an_earlier_call_are_shown(project):
    file = write_batch(project, chain=[{"notebook": "look", "grid": {}}])
    took = run_batch(file)["tasks"][0]["seconds"]
    done = run_batch(file, dry_run=True)
    assert (done["estimate"]["tasks"][0]["seconds"], done["estimate"]["totals"]["tasks"]) == (took, 0)
    assert "up to date" in show(done) and "nothing would run" in show(done)
    again = run_batch(file, dry_run=True, force=True)
    assert again["estimate"]["totals"]["seconds"] == took and again["tasks"][0]["note"] == "asked for"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision": "fp8"}, r"^train model=vit_scratch: unknown precision 'fp8'"),
        ({"strategy": "ful"}, r"^train model=vit_scratch: unknown strategy 'ful'. Did you mean 'full'"),
        ({"epochs": 0}, r"^train model=vit_scratch: epochs must be at least 1"),
        ({"dataset": "torchvision:CIFAR"}, r"unknown image set of torchvision 'CIFAR'. Did you mean CIFAR10"),
    ],
)
def test_mistakes_are_errors(project, parameters, message):
    with pytest.raises(ValueError, match=message):
        run_batch(write_batch(project, grid={"model": ["vit_scratch"]}, parameters=parameters), dry_run=True)


def test_a_part_that_cannot_be_counted_is_no_obstacle(project):
    content = run_batch(write_batch(project, grid={"model": ["vit_scratch"]}, parameters={"size": 97}), dry_run=True)
    assert content["estimate"]["totals"]["without_seconds"] == 2
    assert "not estimated: size 97x97 is not divisible by patch_size 12" in " ".join(show(content).split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3.21, "3.2 s"), (34.4, "34 s"), (119, "119 s"), (310, "5.2 min"), (12_240, "3.4 h"), (1e6, "12 d")],
)
def test_seconds_in_words(seconds, text):
    assert format_seconds(seconds) == text


def test_flops_in_words():
    assert [format_flops(value) for value in (5e5, 2e9, 4.48e16, 3e18)] == ["0.5 MFLOP", "2.0 GFLOP", "45 PFLOP", "3.0 EFLOP"]
