"""A dry run: the seconds that were measured, mistakes in values, and that nothing is fetched."""

import io
import pkgutil
import socket
import urllib.request

import pytest
import yaml
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from rich.console import Console

from vitlab.batch import run_batch
from vitlab.batch.summary import format_seconds, print_plan
from vitlab.kernels import WarmProcess

TRAIN = (
    'dataset = "digits"\nmodel = "vit_scratch"\nseed = 0\npretrained = None\nsize = None\nepochs ='
    ' None\nlearning_rate = None\nstrategy = None\nprecision = None\nrun_name = ""'
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a notebook that would train, and one that looks at the result. Functions are
    called in this process.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        WarmProcess,
        "call",
        lambda self, function, *arguments: pkgutil.resolve_name(function)(*arguments),
    )
    (tmp_path / "batches").mkdir()
    for name, parameters in {
        "train": TRAIN,
        "look": 'dataset = "digits"\nmodel = ""\nrun_name = ""',
    }.items():
        cells = [
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            new_code_cell("print(1)"),
        ]
        write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    return tmp_path


def write_batch(project, **content):
    file = project / "batches" / "toy.yml"
    file.write_text(
        yaml.safe_dump({"chain": [{"notebook": "train"}, {"notebook": "look"}]} | content)
    )
    return file


def show(content):
    console = Console(width=160, record=True, file=io.StringIO())
    print_plan(content, console)
    return console.export_text()


@pytest.fixture
def nothing_is_fetched(monkeypatch):
    """Every way to the network, and to weights, is an error."""

    def refuse(*arguments, **options):
        raise AssertionError(f"asked for {arguments}")

    for target, name in (
        (socket, "getaddrinfo"),
        (socket.socket, "connect"),
        (urllib.request, "urlopen"),
    ):
        monkeypatch.setattr(target, name, refuse)
    for place in (
        "vitlab.models.zoo.packaged_checkpoint",
        "vitlab.models.weights.try_to_load_from_cache",
    ):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)


def test_a_dry_run_fetches_nothing_and_asks_no_weights(
    project, reports_folder, nothing_is_fetched, monkeypatch
):
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    parameters = {"pretrained": True, "epochs": 10, "size": 224, "precision": "bf16"}
    grid = {
        "model": ["deit_small_patch16_224.fb_in1k", "hybrid_vit"],
        "dataset": ["torchvision:CIFAR10"],
    }
    content = run_batch(
        write_batch(project, grid=grid, chain=[{"notebook": "train", "parameters": parameters}]),
        dry_run=True,
    )
    assert [(task["status"], task["note"]) for task in content["tasks"]] == [("pending", "new")] * 2
    assert content["measured_s"] == [None, None]
    assert not reports_folder.exists()


def test_seconds_of_an_earlier_call_are_shown(project):
    file = write_batch(project, chain=[{"notebook": "look", "grid": {}}])
    new = run_batch(file, dry_run=True)
    assert "To run: 1 of 1 notebooks. Never run before, so of unknown time: 1." in " ".join(
        show(new).split()
    )
    took = run_batch(file)["tasks"][0]["seconds"]
    done = run_batch(file, dry_run=True)
    assert done["measured_s"] == [took]
    assert "up to date" in show(done) and "nothing would run" in show(done)
    again = run_batch(file, dry_run=True, force=True)
    assert again["measured_s"] == [took] and again["tasks"][0]["note"] == "asked for"
    shown = " ".join(show(again).split())
    assert (
        f"To run: 1 of 1 notebooks. 1 of them took {format_seconds(took)} in all when they last"
        " ran." in shown
    )
    assert "unknown" not in shown


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision": "fp8"}, r"^train model=vit_scratch: unknown precision 'fp8'"),
        (
            {"strategy": "ful"},
            r"^train model=vit_scratch: unknown strategy 'ful'. Did you mean 'full'",
        ),
        ({"epochs": 0}, r"^train model=vit_scratch: epochs must be at least 1"),
        (
            {"dataset": "torchvision:CIFAR"},
            r"unknown image set of torchvision 'CIFAR'. Did you mean CIFAR10",
        ),
    ],
)
def test_mistakes_are_errors(project, parameters, message):
    with pytest.raises(ValueError, match=message):
        run_batch(
            write_batch(project, grid={"model": ["vit_scratch"]}, parameters=parameters),
            dry_run=True,
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.21, "3.2 s"),
        (34.4, "34 s"),
        (119, "119 s"),
        (310, "5.2 min"),
        (12_240, "3.4 h"),
        (1e6, "12 d"),
    ],
)
def test_seconds_in_words(seconds, text):
    assert format_seconds(seconds) == text
