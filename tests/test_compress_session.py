"""Prediction from an ONNX file and its JSON, without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.toys import linear_digits, small_digits
from vitlab.compress.export import export_onnx
from vitlab.compress.session import OnnxClassifier, read_image
from vitlab.compress.sidecar import read_sidecar, sidecar_path
from vitlab.data import preprocess
from vitlab.files import write_json

LIMITS = {str(digit): 0.7 for digit in range(9)} | {"9": None}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = export_onnx(
        linear_digits(), tmp_path_factory.mktemp("model") / "model.onnx", small_digits(), limit=4
    ).path
    write_json(
        sidecar_path(path),
        read_sidecar(path) | {"calibration": {"temperature": 2.0, "alpha": 0.1, "limits": LIMITS}},
    )
    return path


@pytest.fixture
def copied(exported, tmp_path):
    for file in (exported, sidecar_path(exported)):
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


def read_images(count):
    data = small_digits()
    return [data.read(sample_id) for sample_id in data.samples["sample_id"].iloc[:count]]


def test_probabilities_are_those_of_torch_at_the_temperature(exported):
    model, images = linear_digits(), read_images(40)
    logits = model.module(torch.stack([preprocess(image, model.transform) for image in images]))
    prob = OnnxClassifier(exported, threads=1).predict(images)
    np.testing.assert_allclose(prob, torch.softmax(logits / 2, dim=1).detach().numpy(), atol=1e-5)
    assert OnnxClassifier(exported).predict([]).shape == (0, 10)


def test_files_and_images_in_memory_are_alike(exported, tmp_path):
    image = read_images(1)[0]
    image.save(tmp_path / "digit.png")
    classifier = OnnxClassifier(exported)
    np.testing.assert_array_equal(
        classifier.predict([tmp_path / "digit.png"]), classifier.predict([image])
    )
    np.testing.assert_array_equal(
        classifier.predict(tmp_path / "digit.png"), classifier.predict(image)
    )


def test_table_and_sets(exported):
    classifier = OnnxClassifier(exported)
    prob = classifier.predict(read_images(6))
    table = classifier.predict_table(read_images(6), sample_ids=list("abcdef"))
    assert table["sample_id"].tolist() == list("abcdef")
    assert table["pred"].tolist() == [str(k) for k in prob.argmax(axis=1)]
    np.testing.assert_array_equal(table["in_3"], prob[:, 3] >= 0.3)
    assert table["in_9"].all()  # a class without a limit is in every set
    assert table["sure"].tolist() == (table["size"] == 1).tolist()
    assert classifier.predict_table([]).shape[0] == 0


def test_no_limits_no_sets(tmp_path):
    path = export_onnx(linear_digits(), tmp_path / "plain.onnx", small_digits(), limit=4).path
    classifier = OnnxClassifier(path)
    assert classifier.temperature == 1.0 and "sure" not in classifier.predict_table(read_images(1))
    with pytest.raises(ValueError, match="has no conformal limits"):
        classifier.find_sets(np.eye(10))


def test_imports_neither_torch_nor_timm(exported):
    code = (
        "import sys; from PIL import Image; from vitlab.compress.session import OnnxClassifier; "
        f"print(OnnxClassifier({str(exported)!r}).predict_table([Image.new('L', (9, 5))]).shape, "
        "{'torch', 'torchvision', 'timm', 'onnx', 'sklearn'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "(1, 25) set()"


def test_a_truncated_file(copied):
    copied.write_bytes(copied.read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged or of another export"):
        OnnxClassifier(copied)


def test_a_damaged_file_whose_checksum_fits(copied):
    import hashlib

    copied.write_bytes(copied.read_bytes()[:500])
    description = json.loads(sidecar_path(copied).read_text())
    description["sha256"] = hashlib.sha256(copied.read_bytes()).hexdigest()
    sidecar_path(copied).write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot run"):
        OnnxClassifier(copied)


def test_missing_files(copied):
    sidecar_path(copied).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.onnx\.json is missing"):
        OnnxClassifier(copied)
    with pytest.raises(FileNotFoundError, match=r"other\.onnx is missing"):
        OnnxClassifier(copied.with_name("other.onnx"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ("[]", "damaged"), ('{"name": 1}', "lacks calibration, classes")],
)
def test_a_damaged_description(copied, text, message):
    sidecar_path(copied).write_text(text)
    with pytest.raises(ValueError, match=message):
        OnnxClassifier(copied)


def test_threads(exported):
    with pytest.raises(ValueError, match="threads=0"):
        OnnxClassifier(exported, threads=0)
    with pytest.raises(ValueError, match="2 sample_ids do not name 1 images"):
        OnnxClassifier(exported).predict_table(read_images(1), sample_ids=["a", "b"])


def test_uploads_that_are_no_images(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        whole
    )
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:4000])
    for name, message in (
        ("text.jpg", "not an image"),
        ("half.jpg", "is damaged"),
        ("none.jpg", "no file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="200 x 200 pixels; at most 100 are taken"):
        read_image(whole, max_pixels=100)
    assert read_image(whole).size == (200, 200)
