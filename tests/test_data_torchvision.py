"""torchvision:NAME on small files in the formats of the real ones; nothing is downloaded."""

import gzip
import hashlib
import pickle
import socket
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
from torchvision import datasets as torchvision_datasets

from vitlab.data import check_name, data_version, load_dataset, torchvision_sets
from vitlab.data.torchvision_sets import PUBLISHED, data_folder, set_names

PIXELS = np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
NAMES = ["airplane", "automobile", "bird"]


def write_cifar(folder, dataset_class, labels_key, parts, monkeypatch):
    """Pickled batches of CIFAR, with the checksums that torchvision holds them against."""
    folder.mkdir(parents=True)
    start = 0
    for attribute, files in parts.items():
        checked = []
        for file, count in files.items():
            batch = {
                "data": PIXELS[start : start + count].reshape(count, -1),
                labels_key: [i % 3 for i in range(count)],
            }
            (folder / file).write_bytes(pickle.dumps(batch))
            checked.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
            start += count
        monkeypatch.setattr(dataset_class, attribute, checked)
    meta = dict(dataset_class.meta)
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: NAMES}))
    monkeypatch.setattr(
        dataset_class,
        "meta",
        meta | {"md5": hashlib.md5((folder / meta["filename"]).read_bytes()).hexdigest()},
    )


CIFAR10_PARTS = {
    "train_list": {"data_batch_1": 12, "data_batch_2": 18},
    "test_list": {"test_batch": 9},
}


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "cifar-10-batches-py"
    write_cifar(folder, torchvision_datasets.CIFAR10, "labels", CIFAR10_PARTS, monkeypatch)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """The address of no server is known; asking for one is counted."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments[0])
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_cifar10_keeps_its_test_part_and_gets_a_validation_split(cifar10, no_network):
    data = load_dataset("torchvision:CIFAR10", seed=0)
    assert data.classes == tuple(NAMES)
    samples = data.samples.set_index("sample_id")
    assert list(samples.index) == [f"test{i:05d}" for i in range(9)] + [
        f"train{i:05d}" for i in range(30)
    ]
    assert set(samples.loc[samples.index.str.startswith("test"), "split"]) == {"test"}
    # 0.15 of 10 of each class: 2
    assert samples["split"].value_counts().to_dict() == {"train": 24, "test": 9, "val": 6}
    assert set(samples["group"]) == {"all"}
    assert samples.loc["train00013", "label"] == NAMES[1]  # the second image of the second batch
    assert np.array_equal(np.asarray(data.read("train00013")), PIXELS[13].transpose(1, 2, 0))
    assert np.array_equal(np.asarray(data.read("test00002")), PIXELS[32].transpose(1, 2, 0))
    assert "Krizhevsky" in data.citation and data.licence == "none stated; see the source"
    assert no_network == []


def test_splits_of_an_earlier_run_are_used_as_they_are(cifar10, tmp_path):
    first = load_dataset("torchvision:CIFAR10", seed=0)
    first.samples.to_csv(tmp_path / "splits.csv", index=False)
    again = load_dataset(
        "torchvision:CIFAR10", seed=1, samples=pd.read_csv(tmp_path / "splits.csv")
    )
    pd.testing.assert_frame_equal(again.samples, first.samples)


def test_cifar100_has_the_fine_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path))
    parts = {"train_list": {"train": 30}, "test_list": {"test": 6}}
    write_cifar(
        tmp_path / "cifar-100-python",
        torchvision_datasets.CIFAR100,
        "fine_labels",
        parts,
        monkeypatch,
    )
    data = load_dataset("torchvision:CIFAR100")
    assert data.classes == tuple(NAMES) and len(data.samples) == 36


def test_mnist_is_grey(mnist_files):
    data = load_dataset("torchvision:MNIST")
    assert data.classes[3] == "3 - three" and data.samples["label"][:4].tolist() == list(
        data.classes[:4]
    )
    image = data.read("train00021")
    assert (image.mode, image.size) == ("L", (28, 28))
    raw = (mnist_files / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    assert np.array_equal(
        np.asarray(image).ravel(), np.frombuffer(raw, np.uint8).reshape(40, -1)[21]
    )


@pytest.mark.parametrize(
    "sample_id", ["train00030", "test00009", "train30", "val00001", "train0003²", ""]
)
def test_an_unknown_sample_is_an_error(cifar10, sample_id):
    with pytest.raises(
        ValueError, match=r"unknown sample_id '.*torchvision:CIFAR10 are like train00017"
    ):
        load_dataset("torchvision:CIFAR10").read(sample_id)


# files that are not there


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST", "USPS"])
def test_without_files_and_network_the_error_is_quick_and_says_what_can_be_done(
    name, tmp_path, monkeypatch, no_network
):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as raised:
        load_dataset(f"torchvision:{name}")
    assert time.perf_counter() - start < 5
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert (
        f"torchvision:{name} is not (whole) in {tmp_path / 'data'}" in message
        and "Name or service not known" in message
    )
    assert "By hand: put" in message and "elpv, digits and folder:PATH" in message
    assert no_network and socket.getdefaulttimeout() is None


def test_a_server_that_says_nothing_is_left_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torchvision_sets, "NETWORK_TIMEOUT_S", 0.3)
    for variable in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", url)
        start = time.perf_counter()
        with pytest.raises(FileNotFoundError, match="timed out"):
            load_dataset("torchvision:CIFAR10")
    assert time.perf_counter() - start < 5


def test_an_archive_put_there_by_hand_is_unpacked(cifar10, monkeypatch, no_network):
    archive = cifar10.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar10, cifar10.name)
    monkeypatch.setattr(
        torchvision_datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest()
    )
    for file in cifar10.iterdir():
        file.unlink()
    assert len(load_dataset("torchvision:CIFAR10").samples) == 39
    assert no_network == []


def test_mnist_put_there_by_hand_is_unpacked(mnist_files, monkeypatch, no_network):
    resources = []
    for file in sorted((mnist_files / "MNIST" / "raw").iterdir()):
        packed = file.with_name(file.name + ".gz")
        packed.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
        file.unlink()
    monkeypatch.setattr(torchvision_datasets.MNIST, "resources", resources)
    assert len(load_dataset("torchvision:MNIST").samples) == 60
    assert no_network == []


def test_a_damaged_file_is_named_as_such(mnist_files, no_network):
    file = mnist_files / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"torchvision:MNIST is not \(whole\)"):
        load_dataset("torchvision:MNIST")


def test_files_are_kept_with_the_reports(reports_folder, monkeypatch):
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    assert data_folder() == reports_folder / "cache" / "datasets"


# names


def test_the_names_are_those_of_labelled_sets_that_need_nothing_else():
    assert {"CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"} <= set(set_names())
    assert set(set_names()).isdisjoint({"Kitti", "PhotoTour", "ImageNet", "FakeData"})
    assert set(PUBLISHED) <= set(set_names())


@pytest.mark.parametrize(
    ("name", "message"),
    [("CIFAR1O", "CIFAR10"), ("cifar10", "CIFAR10"), ("mnist", "MNIST"), ("", "")],
)
@pytest.mark.parametrize("function", [load_dataset, check_name, data_version])
def test_a_misspelt_name_is_an_error_with_near_ones(function, name, message):
    with pytest.raises(
        ValueError,
        match=rf"unknown image set of torchvision '{name}'\..*{message}.*Write torchvision:NAME",
    ):
        function(f"torchvision:{name}")


# what is known without the files


def test_the_version_is_known_without_a_file(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    known = data_version("torchvision:CIFAR100")
    assert known.endswith("CIFAR100") and data_version("torchvision:CIFAR10") != known
    assert no_network == [] and not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["digits", "elpv:grade"])
def test_the_version_of_a_set_at_hand_is_that_of_the_loaded_one(name):
    assert data_version(name) == load_dataset(name, seed=2).version
