"""Pretraining on a handful of images: what is read, what is drawn, what is learned, and that a stop costs nothing."""

import csv
import hashlib
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from vitlab.models import build_model
from vitlab.pretrain.images import ImageArray, load_images
from vitlab.pretrain.lessons import CachedLessons, Lesson, OnlineLessons, crop_and_flip
from vitlab.pretrain.loop import log_epoch, pretrain, shape_rate, validate
from vitlab.pretrain.recipe import RECIPES, find_recipe
from vitlab.pretrain.ship import write_weights
from vitlab.pretrain.student import Student, Weights, measure_loss
from vitlab.pretrain.teacher import Advice, AdviceCache, Teacher, enlarge

CPU = torch.device("cpu")
TINY = replace(RECIPES["laptop"], epochs=8, batch_size=4, depth=1, size=32, cached_sizes=(32,))


def make_images(count=8, size=16):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
    return ImageArray(pixels, np.arange(count) % 2, ("n02124075", "n04067472"))


def encode(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def teacher():
    return Teacher().eval()


@pytest.mark.parametrize("wrapped", [False, True], ids=["bytes", "struct"])
def test_reads_parquet_and_decodes_once(tmp_path, wrapped):
    arrays = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    pictures = [{"bytes": encode(array)} if wrapped else encode(array) for array in arrays]
    pd.DataFrame({"image": pictures[:2], "label": [1, 0]}).to_parquet(tmp_path / "train-0.parquet")
    pd.DataFrame({"image": pictures[2:], "label": [1]}).to_parquet(tmp_path / "train-1.parquet")
    (tmp_path / "classes.tsv").write_text("label\twnid\tname\n0\tn1\tcat\n1\tn2\treel\n")
    images = load_images(tmp_path, "train", 8, tmp_path / "cache")
    np.testing.assert_array_equal(images.pixels, arrays.transpose(0, 3, 1, 2))
    assert images.labels.tolist() == [1, 0, 1] and images.classes == ("n1", "n2")
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat().st_mtime_ns
    load_images(tmp_path, "train", 8, tmp_path / "cache")
    assert file.stat().st_mtime_ns == before


def test_reads_a_folder_and_resizes(tmp_path):
    for label, value in (("cat", 10), ("reel", 200)):
        (tmp_path / "val" / label).mkdir(parents=True)
        Image.new("L", (9, 5), value).save(tmp_path / "val" / label / "a.png")
    images = load_images(tmp_path, "val", 4, tmp_path / "cache")
    assert images.classes == ("cat", "reel") and images.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(images.pixels[1], np.full((3, 4, 4), 200))


def test_no_images_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither train\*\.parquet nor a folder train/"):
        load_images(tmp_path, "train", 8, tmp_path)


def test_the_teacher_is_the_packaged_network(teacher):
    pixels = torch.rand(2, 3, 64, 64)
    advice = teacher(pixels)
    bundle = build_model("efficientnet_lite0", [str(i) for i in range(1000)])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.transform.mean, bundle.transform.std))
    with torch.inference_mode():
        expected = bundle.module((pixels - mean) / std)
    logits = teacher.classifier(advice.embedding)
    assert F.cosine_similarity(logits, expected).min() > 0.99  # bfloat16 where the processor has it
    assert advice.features.shape == (2, 112, 4, 4)
    assert teacher.find_classes(("n01440764", "n01484850")).tolist() == [0, 2]
    assert teacher.find_classes(("n01440764", "tench")) is None


def test_the_cache_says_what_the_teacher_says(teacher, tmp_path):
    images = make_images()
    cache = AdviceCache(images, teacher, 32, tmp_path, CPU, batch_size=3)
    advice, expected = cache.take(np.array([5]), CPU), teacher(enlarge(images.take(np.array([5]), CPU)[0], 32))
    assert F.cosine_similarity(advice.embedding, expected.embedding).item() > 0.999
    assert F.cosine_similarity(advice.features.flatten(1), expected.features.flatten(1)).item() > 0.99


class GridCache:
    """Says of each place which it is; made for images whose pixels say the same."""

    size = 64

    def take(self, places, device):
        place = torch.arange(16.0).view(1, 1, 4, 4).expand(len(places), 112, 4, 4)
        return Advice(place, torch.zeros(len(places), 1280))


def test_cached_windows_and_maps_are_cut_alike():
    pixels = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((16, 16), np.uint8))
    images = ImageArray(np.broadcast_to(pixels, (2, 3, 64, 64)), np.zeros(2, np.int64), ("a", "b"))
    lessons = CachedLessons(images, [GridCache()], 32)
    lessons.colours = torch.nn.Identity()
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        lesson = lessons.draw(np.array([0, 1]), CPU)
        shown = F.avg_pool2d(lesson.pixels[:, :1] * 255, 16)
        torch.testing.assert_close(shown, lesson.advice.features[:, :1], rtol=0, atol=1e-3)
        seen.add(tuple(shown[0].flatten().round().int().tolist()))
    assert len(seen) > 6  # nine windows, two sides


def test_online_lessons_mix_images_and_targets_alike():
    images = make_images()

    class Echo:
        def __call__(self, pixels):
            return Advice(pixels, pixels.mean((2, 3)))

    lesson = OnlineLessons(images, Echo(), 32, mixup=1.0).draw(np.arange(8), CPU)
    assert lesson.advice.features is lesson.pixels  # the teacher sees what the student sees
    torch.testing.assert_close(lesson.targets.sum(1), torch.ones(8))
    assert ((lesson.targets > 0) & (lesson.targets < 1)).any()


def test_a_crop_of_everything_is_the_image_or_its_mirror():
    torch.manual_seed(0)
    pixels = torch.rand(6, 3, 16, 16)
    cut = crop_and_flip(pixels, 16, 1.0)
    assert cut.shape == pixels.shape and cut.min() >= 0 and cut.max() <= 1
    square = torch.full((2, 3, 16, 16), 0.3)
    torch.testing.assert_close(crop_and_flip(square, 8, 0.25), torch.full((2, 3, 8, 8), 0.3))


def test_losses_by_hand():
    targets = torch.tensor([[1.0, 0.0]])
    features = torch.randn(1, 112, 2, 2)
    advice = Advice(features, torch.randn(1, 1280))
    kept = torch.tensor([[3, 0]])
    standard = F.layer_norm(features.flatten(2).transpose(1, 2), (112,))[:, [3, 0]]
    outputs = (torch.zeros(1, 2), F.layer_norm(advice.embedding, (1280,)), standard + 0.5, kept)
    advised = torch.tensor([[2 * np.log(3.0), 0.0]])  # at temperature 2: odds of 3 to 1
    parts = measure_loss(outputs, Lesson(None, targets, advice), advised, Weights(1, 1, 1, 1), smoothing=0.0)
    assert parts["labels"].item() == pytest.approx(np.log(2))
    assert parts["teacher"].item() == pytest.approx(4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5)), rel=1e-5)
    assert parts["embedding"].item() == pytest.approx(0, abs=1e-6)
    assert parts["features"].item() == pytest.approx(0.125, rel=1e-5)  # smooth L1 of 0.5
    total = sum(value.item() for name, value in parts.items() if name != "loss")
    assert parts["loss"].item() == pytest.approx(total, rel=1e-6)


def test_the_rate_rises_and_falls():
    assert [shape_rate(at, 0.1) for at in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_patches_left_out_are_those_not_asked_for():
    torch.manual_seed(0)
    student = Student(2, 32, 1, 0.5).train()
    _, _, features, kept = student(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 2, 112) and kept.shape == (2, 2)
    _, _, features, kept = student.eval()(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 4, 112) and kept is None


def test_a_training_learns_and_carries_on_where_it_was_ended(teacher, tmp_path, monkeypatch):
    images = make_images()
    lessons = CachedLessons(images, [AdviceCache(images, teacher, 32, tmp_path / "cache", CPU)], 32)
    rows = torch.cat([teacher.classifier.weight, teacher.classifier.bias[:, None]], 1)[teacher.find_classes(images.classes)]
    whole = pretrain(lessons, rows, images, TINY, tmp_path / "whole", CPU, "fp32")
    with (tmp_path / "whole" / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert [row["epoch"] for row in log] == list("12345678") and float(log[7]["loss"]) < float(log[0]["loss"])

    monkeypatch.setattr("vitlab.pretrain.loop.CHECKPOINT_S", 0)
    draw, count = lessons.draw, iter(range(3))

    def draw_until_power_fails(places, device):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return draw(places, device)

    monkeypatch.setattr(lessons, "draw", draw_until_power_fails)
    with pytest.raises(KeyboardInterrupt):
        pretrain(lessons, rows, images, TINY, tmp_path / "cut", CPU, "fp32")
    monkeypatch.setattr(lessons, "draw", draw)
    carried = pretrain(lessons, rows, images, TINY, tmp_path / "cut", CPU, "fp32")
    with (tmp_path / "cut" / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == list("12345678")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(carried.state_dict()[name], tensor, msg=name)
    assert 0 <= validate(carried, images, CPU) <= 1
    with pytest.raises(ValueError, match="belongs to another training"):
        pretrain(lessons, rows, images, replace(TINY, learning_rate=1.0), tmp_path / "cut", CPU, "fp32")


def test_an_epoch_logged_again_replaces_what_was_there(tmp_path):
    for epoch in (1, 2, 3, 2):
        log_epoch(tmp_path / "log.csv", {"epoch": epoch, "loss": epoch})
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,loss", "1,1", "2,2"]


def test_too_few_images_for_a_batch(tmp_path):
    lessons = CachedLessons(make_images(3), [], 32)
    with pytest.raises(ValueError, match="3 images do not fill a batch of 4"):
        pretrain(lessons, None, make_images(3), TINY, tmp_path, CPU)


def test_weights_are_written_with_their_facts(tmp_path):
    network = Student(2, 32, 1, 0.0).network
    path = write_weights(network, tmp_path, TINY, 0.5)
    stored = load_file(path)
    assert stored.keys() == network.state_dict().keys() and stored["norm.weight"].dtype == torch.bfloat16
    digest, name = (tmp_path / "vit_tiny_vitlab.sha256").read_text().split()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() and name == path.name


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="full, laptop"):
        find_recipe("huge")
