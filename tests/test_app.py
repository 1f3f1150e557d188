import io
import json
import os
import struct
import zipfile
import zlib
from dataclasses import replace

import gradio as gr
import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from matplotlib import colormaps
from PIL import Image
from scipy.special import softmax

from tests.toys import linear_model, small_digits, tiny_vit
from vitlab.app.overlay import colour, occlusion_map, paint_overlay
from vitlab.app.page import (
    Facts,
    build_page,
    explain_file,
    predict_all,
    predict_file,
    show_prediction,
)
from vitlab.app.prediction import Calibration, Prediction
from vitlab.app.predictors import Predictor, predict_files
from vitlab.app.serving import SESSIONS, open_predictor, read_facts, serve
from vitlab.app.torch_model import TorchModel
from vitlab.app.uploads import Limits, UploadError, read_upload
from vitlab.compress.export import export_onnx
from vitlab.compress.session import OnnxClassifier, read_image
from vitlab.compress.sidecar import read_sidecar, sidecar_path
from vitlab.data.reading import read_file
from vitlab.files import write_json
from vitlab.pictures import FORMATS, IMAGE_SUFFIXES
from vitlab.schema import Transform

LIMITS = Limits(megabytes=0.2, megapixels=1, files=5)


class Brightness:
    """Dark or bright, by the mean of the left half alone: an answer that can be computed by
    hand.
    """

    classes = ("dark", "bright")
    transform = Transform(size=(28, 28), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def predict(self, images):
        bright = np.array(
            [
                np.asarray(image.convert("L").resize((28, 28)))[:, :14].mean() / 255
                for image in images
            ]
        )
        return np.stack([1 - bright, bright], axis=1)


@pytest.fixture
def predictor():
    return Predictor(Brightness(), Calibration(limits=(0.6, 0.6), alpha=0.1))


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey(value, size=(40, 30)):
    return Image.new("RGB", size, (value, value, value))


def bare_png(width, height):
    """The signature and header of a PNG of any size, and pixels that are not there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zip_bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50_000_000))
    return buffer.getvalue()


noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
BAD = {
    "empty": (b"", "empty", False),
    "text": (b"I am no image, whatever my name says.", "not an image", False),
    "zip": (zip_bomb(), "not an image", False),
    "huge": (bare_png(100_000, 100_000), "megapixels", True),
    "large": (bare_png(1001, 1000), "1,001 x 1,000 pixels", True),
    "truncated": (encode(noise, "JPEG")[:4000], "damaged or truncated", False),
    "pixels_missing": (bare_png(200, 200), "damaged or truncated", False),
    "heavy": (encode(noise.resize((400, 400)), "BMP"), "0.5 MB", True),
    "strip": (encode(grey(9, (900, 3))), "strip", False),
    "nan": (
        encode(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"),
        "not numbers",
        False,
    ),
    "postscript": (encode(grey(9), "EPS"), "not an image", False),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_told_why(name, tmp_path):
    content, message, too_large = BAD[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(content)
    for file in (content, path):
        with pytest.raises(UploadError, match=message) as caught:
            read_upload(file, LIMITS)
        assert caught.value.too_large == too_large


def test_a_large_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UploadError, match="megapixels"):
        read_upload(bare_png(5000, 5000), LIMITS)


def test_good_uploads_are_read_upright():
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[274] = 6  # turned by 90 degrees
    assert read_upload(encode(image, "JPEG", exif=exif), LIMITS).size == (30, 40)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_what_training_accepts_the_demo_accepts(suffix, tmp_path):
    """Every ending that a data set may have: the same pixels in training, by upload and in an ONNX
    classifier.
    """
    format = next(name for name, suffixes in FORMATS.items() if suffix in suffixes)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encode(noise if suffix != ".pbm" else noise.convert("1"), format))
    expected = np.asarray(read_file({"one": path}, "one"))
    for image in (
        read_upload(path, LIMITS),
        read_upload(path.read_bytes(), LIMITS),
        read_image(path),
    ):
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_sixteen_bits_are_scaled_as_in_training(tmp_path):
    """C7: the value range of the training images is kept beside the ONNX file, and the demo uses
    it.
    """
    model = linear_model(
        torch.randn(2, 192, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2),
        ("a", "b"),
        8,
    )
    model = replace(model, transform=replace(model.transform, value_range=(0.0, 4095.0)))
    data = replace(
        small_digits(), classes=("a", "b"), samples=small_digits().samples.assign(label="a")
    )
    classifier = OnnxClassifier(export_onnx(model, tmp_path / "model.onnx", data, limit=4).path)
    assert classifier.transform.value_range == (0.0, 4095.0)
    eight = np.random.default_rng(0).integers(0, 256, (8, 8))
    twelve = encode(Image.fromarray((eight * 4095 / 255).round().astype(np.uint16)), "PNG")
    plain = encode(Image.fromarray(eight.astype(np.uint8)), "PNG")
    answers = [
        Predictor(classifier, Calibration()).predict([read_upload(file, LIMITS)])[0]
        for file in (twelve, plain)
    ]
    assert answers[0].probabilities == pytest.approx(answers[1].probabilities, abs=0.02)
    as_sixteen = replace(classifier.transform, value_range=(0.0, 65535.0))
    classifier.transform = as_sixteen  # how it was: nearly black
    dark = Predictor(classifier, Calibration()).predict([read_upload(twelve, LIMITS)])[0]
    assert dark.as_dict()["probabilities"]["a"] != pytest.approx(
        answers[1].as_dict()["probabilities"]["a"], abs=0.05
    )


@pytest.mark.parametrize(
    ("probabilities", "sure", "headline", "members"),
    [
        ((0.1, 0.7, 0.2), True, "b", ("b",)),
        ((0.45, 0.5, 0.05), False, "Not sure", ("b", "a")),
        ((0.34, 0.33, 0.33), False, "Not sure", ()),
        ((0.42, 0.38, 0.2), True, "a", ("a",)),
        # the set and the most probable class contradict each other
        ((0.1, 0.49, 0.41), False, "Not sure", ("c",)),
    ],
)
def test_a_prediction_is_sure_only_of_a_set_of_one(probabilities, sure, headline, members):
    prediction = Prediction.from_probabilities(
        np.array(probabilities), ("a", "b", "c"), Calibration(limits=(0.4, 0.5, 0.4))
    )
    assert (prediction.sure, prediction.headline, prediction.members) == (sure, headline, members)
    assert list(prediction.probabilities) == sorted(probabilities, reverse=True)


def test_without_limits_the_most_probable_class_is_the_answer():
    prediction = Prediction.from_probabilities(np.array([0.4, 0.6]), ("a", "b"), Calibration())
    assert (prediction.sure, prediction.headline, prediction.coverage) == (True, "b", None)
    with pytest.raises(ValueError, match="2 probabilities and 3 limits"):
        Prediction.from_probabilities(
            np.array([0.4, 0.6]), ("a", "b"), Calibration(limits=(0.1, 0.1, 0.1))
        )


def test_occlusion_finds_the_half_that_decides(predictor):
    frame = predictor.frame(grey(230, (28, 28)))
    values = occlusion_map(predictor.classifier.predict, frame, 1, (128, 128, 128), (14, 14))
    assert values.shape == (14, 14)
    assert (values[:, :7] > 0).all()
    assert values[:, 8:] == pytest.approx(0)
    with pytest.raises(ValueError, match="a window of 2 patches on a grid of 1x1"):
        occlusion_map(predictor.classifier.predict, frame, 1, (0, 0, 0), (1, 1))


def test_the_overlay_glows_where_the_map_is_high_and_has_the_colours_of_the_figures():
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 1, -1
    painted = np.asarray(paint_overlay(grey(100, (64, 64)), values), dtype=float)
    assert painted[2, 2].max() > 150
    assert (painted[60, 60] == 100).all()
    assert (np.asarray(paint_overlay(grey(100), np.zeros((4, 4)))) == 100).all()
    at = np.linspace(0, 1, 9)
    assert colour(at) == pytest.approx(255 * colormaps["inferno"](at)[:, :3], abs=1)
    assert (
        np.abs(
            colour(np.linspace(0, 1, 99)) - 255 * colormaps["inferno"](np.linspace(0, 1, 99))[:, :3]
        ).max()
        < 20
    )


def test_a_batch_has_a_line_for_every_file(predictor, tmp_path):
    paths = [tmp_path / name for name in ("bright.png", "=SUM(A1).png", "broken.jpg")]
    paths[0].write_bytes(encode(grey(250)))
    paths[1].write_bytes(encode(grey(120)))
    paths[2].write_bytes(b"no")
    table = predict_files(predictor, paths, LIMITS)
    assert list(table.columns) == [
        "file",
        "answer",
        "sure",
        "set",
        "prob_dark",
        "prob_bright",
        "problem",
    ]
    assert table["file"].tolist() == ["bright.png", "'=SUM(A1).png", "broken.jpg"]
    assert table["answer"].tolist() == ["bright", "dark", ""]
    assert table["sure"].tolist() == ["yes", "no", ""]
    assert table["prob_bright"].iloc[0] == pytest.approx(250 / 255, abs=1e-3)
    assert "not an image" in table["problem"].iloc[2]
    for wrong, message in (([], "no files"), (paths * 2, "6 files are more")):
        with pytest.raises(UploadError, match=message):
            predict_files(predictor, wrong, LIMITS)


def test_old_sheets_are_removed(predictor, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(encode(grey(250)))
    sheets = tmp_path / "sheets"
    (sheets / "old").mkdir(parents=True)
    os.utime(sheets / "old", (0, 0))
    _, first = predict_all(predictor, LIMITS, sheets, [str(image)])
    _, second = predict_all(predictor, LIMITS, sheets, [str(image)])
    assert (
        pd.read_csv(first)["answer"].tolist()
        == pd.read_csv(second)["answer"].tolist()
        == ["bright"]
    )
    assert len(list(sheets.iterdir())) == 2


def test_the_page_answers_kindly_and_escapes_what_it_shows(predictor, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(BAD["truncated"][0])
    assert "damaged or truncated" in predict_file(predictor, LIMITS, str(path))
    assert explain_file(predictor, LIMITS, str(path), "occlusion")[0] is None
    assert "Send an image" in predict_file(predictor, LIMITS, None)
    evil = Prediction.from_probabilities(np.array([0.3, 0.7]), ("<script>", "a&b"), Calibration())
    assert "<script>" not in show_prediction(evil)
    path.write_bytes(encode(grey(240)))
    overlay, said = explain_file(predictor, LIMITS, str(path), "occlusion")
    assert min(overlay.size) >= 420
    assert "lower the odds of bright more when they are covered" in said
    with pytest.raises(ValueError, match="no map by 'lime' here; choose one of occlusion"):
        predictor.explain(grey(1), "lime", "dark")


def test_each_map_of_the_app_says_what_it_shows():
    """Attention rollout knows nothing of the class, so its sentence names none."""
    predictor = Predictor(Brightness(), Calibration(), TorchModel(tiny_vit()))
    said = {method: predictor.describe(method, "sunny") for method in predictor.methods}
    assert (
        set(said) == {"grad_cam", "transformer_attribution", "rollout", "occlusion"}
        and len(set(said.values())) == 4
    )
    assert {method for method, text in said.items() if "sunny" in text} == set(said) - {"rollout"}
    assert "does not depend on the predicted class" in said["rollout"]


def test_the_page_hands_uploads_on_unopened(predictor):
    page = build_page(predictor, Facts("Dark or bright?"), LIMITS)
    image = next(
        block
        for block in page.blocks.values()
        if isinstance(block, gr.Image) and block.interactive is not False
    )
    events = [event for event in page.fns.values() if image in event.inputs]
    assert len(events) == 3
    assert not any(event.preprocess for event in events)  # gr.Image itself would have opened it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A linear model of the digits as ONNX, with a temperature and limits beside it, and one
    example.
    """
    data = small_digits()
    generator = np.random.default_rng(0)
    import torch

    weight = torch.tensor(generator.normal(0, 0.2, (10, 192)), dtype=torch.float32)
    model = linear_model(weight, torch.zeros(10), data.classes, 8)
    folder = tmp_path_factory.mktemp("served")
    path = export_onnx(model, folder / "model.onnx", data).path
    noted = {"temperature": 2.0, "alpha": 0.1, "limits": dict.fromkeys(data.classes, 0.7)}
    write_json(sidecar_path(path), read_sidecar(path) | {"calibration": noted})
    (folder / "app.json").write_text(json.dumps({"title": "Digits"}))
    (folder / "examples").mkdir()
    data.read(data.samples["sample_id"].iloc[0]).save(folder / "examples" / "1.png")
    return folder


def test_a_folder_is_opened_with_what_lies_beside_the_model(folder):
    predictor = open_predictor(folder)
    assert predictor.methods == ("occlusion",)
    assert predictor.calibration.limits == pytest.approx((0.3,) * 10)
    image = Image.open(folder / "examples" / "1.png")
    logits = predictor.classifier.predict_logits([image])
    prediction = predictor.predict([image])[0]
    assert max(prediction.probabilities) == pytest.approx(
        softmax(logits / 2, axis=1).max(), abs=1e-5
    )
    assert read_facts(folder).title == "Digits"


def test_a_folder_without_a_model_or_with_damaged_texts_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.onnx"):
        open_predictor(tmp_path)
    (tmp_path / "app.json").write_text("{")
    with pytest.raises(ValueError, match=r"app\.json is damaged"):
        read_facts(tmp_path)


@pytest.fixture(scope="module")
def address(folder):
    page, address = serve(folder, port=None, limits=LIMITS, block=False)
    assert address.startswith("http://127.0.0.1:")  # by default, only for this machine
    assert page.app.state_holder.capacity == SESSIONS
    yield address.rstrip("/")
    page.close()


def test_it_answers_over_http_after_every_bad_upload(address, folder):
    good = (folder / "examples" / "1.png").read_bytes()
    with httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/health").json()["status"] == "ok"
        first = client.post("/predict", content=good).json()
        assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        for content, message, too_large in BAD.values():
            reply = client.post("/predict", content=content)
            assert reply.status_code == (413 if too_large else 422)
            assert message in reply.json()["error"] or "empty" in reply.json()["error"]
            assert client.post("/predict", content=good).json() == first
        # sent in chunks, no length announced
        endless = client.post("/predict", content=(bytes(50_000) for _ in range(100)))
        assert endless.status_code == 413
        too_long = client.post(
            "/gradio_api/upload", files={"files": ("a.png", bytes(LIMITS.bytes + 1))}
        )
        assert too_long.status_code == 413
        assert client.get("/").status_code == 200


def test_the_page_itself_answers_through_its_queue(address, folder, tmp_path):
    client = Client(address, verbose=False)
    shown = client.predict(handle_file(folder / "examples" / "1.png"), api_name="/answer")
    assert 'class="panel' in shown
    bad = tmp_path / "text.jpg"
    bad.write_text("no image")
    assert "not an image" in client.predict(handle_file(bad), api_name="/answer")
    table, sheet = client.predict(
        [handle_file(folder / "examples" / "1.png"), handle_file(bad)], api_name="/answer_all"
    )
    assert len(table["data"]) == 2
    assert pd.read_csv(sheet)["problem"].notna().tolist() == [False, True]
    with pytest.raises(AppError, match="no files yet"):
        client.predict([], api_name="/answer_all")


def test_an_example_is_answered_like_an_upload(address):
    """A click on an example gives the visitor's session an Image of its own; what was set on the
    page's one is not on it.
    """
    with httpx.Client(base_url=address, timeout=30) as client:
        events = client.get("/config").json()["dependencies"]
        click = next(event["id"] for event in events if event["api_name"] == "load_example")
        sent = {"data": [0], "fn_index": click, "session_hash": "visitor"}
        chosen = (
            client.post("/gradio_api/run/predict", json=sent)
            .raise_for_status()
            .json()["data"][0]["value"]
        )
        sent = {
            "data": [chosen],
            "fn_index": next(event["id"] for event in events if event["api_name"] == "answer"),
        }
        client.post(
            "/gradio_api/queue/join", json={**sent, "session_hash": "visitor"}
        ).raise_for_status()
        stream = (
            client.get("/gradio_api/queue/data", params={"session_hash": "visitor"})
            .raise_for_status()
            .text
        )
    assert '"success":true' in stream
    assert 'class=\\"bar' in stream
