"""torchvision:NAME and hub:NAME on small files in the formats of the real ones; nothing is
downloaded.
"""

import hashlib
import io
import pickle
import socket
import time

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from vitlab.data import data_version, external, load_dataset
from vitlab.data.datasets import check_name
from vitlab.data.external import data_folder

hugging_face = pytest.importorskip("datasets")
PIXELS = np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
NAMES = ["airplane", "automobile", "bird"]


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Pickled batches of CIFAR-10, with the checksums that torchvision compares them with."""
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    start = 0
    parts = {"train_list": {"data_batch_1": 12, "data_batch_2": 18}, "test_list": {"test_batch": 9}}
    for attribute, files in parts.items():
        checked = []
        for file, count in files.items():
            pixels = PIXELS[start : start + count].reshape(count, -1)
            batch = {"data": pixels, "labels": [i % 3 for i in range(count)]}
            checked.append(write(file, batch))
            start += count
        monkeypatch.setattr(torchvision_datasets.CIFAR10, attribute, checked)
    meta = dict(torchvision_datasets.CIFAR10.meta)
    _, meta["md5"] = write(meta["filename"], {meta["key"]: NAMES})
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "meta", meta)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """No server's address is known; the requests are recorded."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments[0])
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_cifar10_keeps_its_test_part_and_gets_a_validation_split(cifar10, no_network):
    data = load_dataset("torchvision:CIFAR10", seed=0)
    samples = data.samples.set_index("sample_id")
    ids = [f"test{i:05d}" for i in range(9)] + [f"train{i:05d}" for i in range(30)]
    assert data.classes == tuple(NAMES) and list(samples.index) == ids
    assert set(samples.loc[ids[:9], "split"]) == {"test"} and set(samples["group"]) == {"all"}
    # 0.15 of 10 of each class: 2
    assert samples["split"].value_counts().to_dict() == {"train": 24, "test": 9, "val": 6}
    assert samples.loc["train00013", "label"] == NAMES[1]  # the second image of the second batch
    assert np.array_equal(np.asarray(data.read("train00013")), PIXELS[13].transpose(1, 2, 0))
    assert np.array_equal(np.asarray(data.read("test00002")), PIXELS[32].transpose(1, 2, 0))
    assert "CIFAR10" in data.citation and no_network == []


def test_mnist_is_grey_and_its_version_is_known_without_a_file(mnist_files, no_network):
    data = load_dataset("torchvision:MNIST")
    assert data.classes[3] == "3 - three" and data.version == data_version("torchvision:MNIST")
    image = data.read("train00021")
    assert (image.mode, image.size) == ("L", (28, 28))
    raw = (mnist_files / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    pixels = np.frombuffer(raw, np.uint8).reshape(40, -1)
    assert np.array_equal(np.asarray(image).ravel(), pixels[21])
    assert data_version("torchvision:CIFAR100").endswith("CIFAR100") and no_network == []


def test_without_files_and_network_the_error_is_quick_and_helps(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError) as raised:
        load_dataset("torchvision:USPS")
    assert time.perf_counter() - start < 5
    message = str(raised.value)
    assert "Name or service not known" in message and "elpv, digits, folder:PATH" in message
    assert f"torchvision:USPS is not complete in {tmp_path / 'data'}" in message
    assert no_network and socket.getdefaulttimeout() is None


def test_a_silent_server_is_given_up_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(external, "NETWORK_TIMEOUT_S", 0.3)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", url)
        with pytest.raises(FileNotFoundError, match="timed out"):
            load_dataset("torchvision:CIFAR10")


def test_a_damaged_file_is_not_used(mnist_files, no_network):
    file = mnist_files / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match="torchvision:MNIST is not complete"):
        load_dataset("torchvision:MNIST")


def test_every_name_is_a_set_of_torchvision_whose_files_go_to_the_cache(
    reports_folder, monkeypatch
):
    for name in external.TORCHVISION:
        assert name in torchvision_datasets.__all__ and check_name(f"torchvision:{name}") is None
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    assert data_folder() == reports_folder / "cache" / "datasets"


@pytest.mark.parametrize("function", [load_dataset, check_name, data_version])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:cifar10", "unknown image set of torchvision 'cifar10'.*CIFAR10.*Write"),
        ("torchvision:", "unknown image set of torchvision ''"),
        ("hub:/nowhere/at/all", "does not exist. Write hub:owner/name, or hub:PATH"),
        ("hub:.", "holds neither state.json nor dataset_dict.json.*folder:PATH"),
        ("hub:a/b/c", "is no name of a data set"),
        ("hub:", "is no name of a data set"),
    ],
)
def test_impossible_names_are_refused(function, name, message):
    with pytest.raises(ValueError, match=message):
        function(name)


# Hugging Face


def make_part(rows, **changes):
    columns = {
        "picture": [Image.fromarray(PIXELS[row].transpose(1, 2, 0)) for row in rows],
        "animal": [row % 2 for row in rows],
        "name": [f"n{row}" for row in rows],
    } | changes
    features = {
        "picture": hugging_face.Image(),
        "animal": hugging_face.ClassLabel(names=["cat", "dog"]),
        "name": hugging_face.Value("string"),
        "size": hugging_face.ClassLabel(names=["small", "large"]),
        "mask": hugging_face.Image(),
        "group": hugging_face.Value("int64"),
    }
    return hugging_face.Dataset.from_dict(
        columns, hugging_face.Features({name: features[name] for name in columns})
    )


@pytest.fixture
def save(tmp_path):
    def save(parts, folder="saved"):
        parts = hugging_face.DatasetDict(parts) if isinstance(parts, dict) else parts
        parts.save_to_disk(tmp_path / folder)
        return f"hub:{tmp_path / folder}"

    return save


def test_a_saved_set_is_read_pixel_by_pixel_and_has_a_version(save):
    name = save(make_part(range(40)))
    data = load_dataset(name)
    assert data.classes == ("cat", "dog") and len(data.samples) == 40 and len(data.excluded) == 0
    assert data.samples["split"].value_counts().to_dict() == {"train": 28, "test": 8, "val": 4}
    assert data.samples["label"].tolist() == ["cat", "dog"] * 20
    assert np.array_equal(data.read("all00017"), PIXELS[17].transpose(1, 2, 0))
    assert data_version(name) == data.version != data_version(save(make_part(range(20)), "other"))


def test_own_splits_are_kept_and_missing_ones_drawn(save):
    parts = {"train": make_part(range(40)), "test": make_part(range(40, 50))}
    data = load_dataset(save(parts, "two"))
    assert data.samples["split"].value_counts().to_dict() == {"train": 34, "test": 10, "val": 6}
    parts = {"validation": make_part(range(20)), "test": make_part(range(20))}
    with pytest.raises(ValueError, match="the splits validation, test, none of them train"):
        load_dataset(save(parts, "three"))


def test_unusable_rows_are_excluded(save):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0, 0]).save(buffer, "PNG")
    pictures = [{"bytes": buffer.getvalue(), "path": None}] * 29
    pictures.append({"bytes": b"no image", "path": None})
    animals = [-1, None] + [row % 2 for row in range(2, 30)]
    train = make_part(range(30), animal=animals, picture=pictures)
    data = load_dataset(save({"train": train, "extra": make_part(range(30, 33))}))
    assert len(data.samples) == 27
    assert data.excluded.set_index("sample_id")["reason"].to_dict() == {
        "train00000": "it has no label",
        "train00001": "it has no label",
        **{f"extra{i:05d}": "its split is none of train, validation, test" for i in range(3)},
        "train00029": "not an image in any known format",
    }


def test_a_column_called_group_is_used_and_ambiguous_columns_are_named(save):
    data = load_dataset(save(make_part(range(40), group=[i // 4 for i in range(40)])), seed=0)
    assert data.samples["group"].nunique() == 10
    masks = save(make_part(range(12), mask=[Image.fromarray(PIXELS[0, 0])] * 12), "masks")
    sizes = save(make_part(range(12), size=[0, 1] * 6), "sizes")
    for name, message in [
        (masks, r"2 columns \(picture, mask\) of the type Image, not one.*save_to_disk"),
        (sizes, r"2 columns \(animal, size\) of the type ClassLabel.*select_columns"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_dataset(name)


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"hub:owner/name is not on .*save_to_disk.*hub:F"):
        load_dataset("hub:owner/name")
    assert data_version("hub:owner/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            hugging_face.exceptions.DatasetNotFoundError("It cannot be accessed."),
            "cannot be accessed.*accept its terms.*hf auth login",
        ),
        (ValueError("Config name is missing; one of ['a', 'b']"), r"\['a', 'b'\].*save_to_disk"),
    ],
)
def test_what_the_hub_refuses_is_a_value_error(error, message, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(hugging_face, "load_dataset", refuse)
    external._load_hub.cache_clear()
    with pytest.raises(ValueError, match=message):
        load_dataset("hub:owner/name")
