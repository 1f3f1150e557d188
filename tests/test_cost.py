"""FLOPs of a training against counts made by hand, and the rate of this machine."""

import pytest
import torch
from torch import nn

from vitlab.models import build_model
from vitlab.schema import Anatomy, ModelBundle, Transform
from vitlab.training import cost
from vitlab.training.config import TrainConfig
from vitlab.training.cost import build_blank, estimate_training, forward_flops, measure_speed, training_flops

# a ViT on 32 x 32 pixels, patches of 8, width 48, MLP of 192, two blocks, ten classes: 16 patches, 17 tokens
SMALL = {"size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
EMBED = 16 * (3 * 8 * 8) * 48  # multiply-adds
BLOCK = 17 * 48 * (3 * 48) + 2 * 17 * 17 * 48 + 17 * 48 * 48 + 2 * 17 * 48 * 192  # qkv, scores and sums, projection, MLP
HEAD = 48 * 10


@pytest.fixture(scope="module")
def small_vit():
    return build_blank("vit_scratch", 10, **SMALL)


def test_a_multiply_add_is_two_flops():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 7, device="meta"), nn.ReLU(), nn.Linear(7, 2, device="meta"))
    transform = Transform(size=(4, 4), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = ModelBundle("toy", layers, ("a", "b"), transform, Anatomy("other", (), (), 0, (0, 0), ()))
    assert forward_flops(model) == (0, 2 * (48 * 7 + 7 * 2))
    assert training_flops(model, TrainConfig(epochs=5), 100) == 100 * 5 * 3 * 2 * (48 * 7 + 7 * 2)


def test_forward_flops_of_a_vit_are_those_counted_by_hand(small_vit):
    assert forward_flops(small_vit) == (0, 2 * (EMBED + 2 * BLOCK + HEAD))
    assert forward_flops(small_vit, border=2) == (2 * (EMBED + BLOCK), 2 * (BLOCK + HEAD))  # pieces: embed, block0, block1, head
    assert not small_vit.module.training


@pytest.mark.parametrize(
    ("arguments", "multiply_adds"),
    [
        ({}, 4 * 3 * (EMBED + 2 * BLOCK + HEAD)),
        ({"gradient_checkpointing": True}, 4 * 4 * (EMBED + 2 * BLOCK + HEAD)),
        ({"strategy": "linear_probe"}, EMBED + 2 * BLOCK + 4 * 3 * HEAD),
        ({"strategy": "linear_probe", "views": 3}, 3 * (EMBED + 2 * BLOCK) + 4 * 3 * HEAD),
        ({"strategy": "linear_probe", "views": 3, "augment": "none"}, EMBED + 2 * BLOCK + 4 * 3 * HEAD),
        ({"strategy": "linear_probe", "cache": False}, 4 * (EMBED + 2 * BLOCK) + 4 * 3 * HEAD),
        ({"strategy": "last_blocks", "last_blocks": 1}, EMBED + BLOCK + 4 * 3 * (BLOCK + HEAD)),
        ({"strategy": "from_piece", "train_from": "block0"}, EMBED + 4 * 3 * (2 * BLOCK + HEAD)),
        (  # the head for two epochs, then the last block, too
            {"strategy": "gradual", "last_blocks": 1, "unfreeze_every": 2},
            (EMBED + 2 * BLOCK + 2 * 3 * HEAD) + (EMBED + BLOCK + 2 * 3 * (BLOCK + HEAD)),
        ),
    ],
)
def test_what_is_frozen_is_passed_forward_only(small_vit, arguments, multiply_adds):
    assert training_flops(small_vit, TrainConfig(epochs=4, **arguments), images=11) == 11 * 2 * multiply_adds


@pytest.mark.parametrize("name", ["vit_scratch", "hybrid_vit", "deit_small_patch16_224.fb_in1k"])
def test_a_blank_model_has_shapes_and_no_content(name):
    blank, real = build_blank(name, 10, size=96), build_model(name, [str(i) for i in range(10)], pretrained=False, size=96)
    assert {tensor.device.type for tensor in blank.module.state_dict().values()} == {"meta"}
    shapes = [{name: tensor.shape for name, tensor in model.module.state_dict().items()} for model in (blank, real)]
    assert shapes[0] == shapes[1]


def test_tokens_dropped_in_training_are_left_out():
    half, whole = (forward_flops(build_blank("hybrid_vit", 10, patch_drop_rate=share), border=6)[1] for share in (0.5, 0.0))
    assert 0.4 < half / whole < 0.65


@pytest.mark.parametrize(
    ("model", "gflops"),
    [("vit_base_patch16_224.orig_in21k", 35.1), ("resnet50.a1_in1k", 8.2), ("swin_tiny_patch4_window7_224.ms_in1k", 9.0)],
)
def test_forward_flops_of_known_models_are_the_published_ones(model, gflops):
    """Twice the multiply-adds in the papers: 17.6 (DeiT, table 5), 4.1 and 4.5 (Swin, table 1) thousand millions."""
    assert forward_flops(build_blank(model, 1000, size=224))[1] / 1e9 == pytest.approx(gflops, rel=0.02)


def test_an_estimate_from_parameters_alone():
    found = estimate_training({"dataset": "torchvision:CIFAR10", "model": "vit_scratch", "seed": 0, "size": 48, "epochs": 3})
    model = build_blank("vit_scratch", 10, size=48)
    assert (found["images"], found["epochs"], found["precision"], found["problem"]) == (42_500, 3, "auto", "")
    assert found["flops"] == 42_500 * 3 * 3 * forward_flops(model)[1]


def test_defaults_of_none_mean_the_recipe():
    empty = dict.fromkeys(["pretrained", "size", "epochs", "learning_rate", "train_from", "drop_rate", "precision"])
    plain = estimate_training({"dataset": "digits", "model": "vit_scratch"})
    assert estimate_training({"dataset": "digits", "model": "vit_scratch", "run_name": "", **empty}) == plain
    assert plain["epochs"] == 8


def test_mistakes_and_what_cannot_be_known(monkeypatch):
    parameters = {"dataset": "digits", "model": "vit_scratch"}
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        estimate_training(parameters | {"precision": "fp8"})
    wrong = estimate_training(parameters | {"size": 97})
    assert wrong["flops"] is None and wrong["problem"].startswith("size 97x97 is not divisible")
    monkeypatch.delitem(cost.outline_dataset.__globals__["OUTLINES"]["torchvision:"].__globals__["PUBLISHED"], "USPS")
    unknown = estimate_training(parameters | {"dataset": "torchvision:USPS"})
    assert unknown["flops"] is None and "not known before they are downloaded" in unknown["problem"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
def test_the_rate_of_a_processor_is_measured_in_fp32():
    speed = measure_speed("auto", seconds=0.2)
    assert speed["precision"] == "fp32" and speed["device"].startswith("cpu") and speed["flops_per_s"] > 1e8
    refused = measure_speed("fp16")
    assert refused["flops_per_s"] is None and "needs a GPU" in refused["problem"]


def test_the_rate_is_that_of_the_quickest_product(monkeypatch):
    monkeypatch.setattr(cost, "_time_product", lambda matrix: {256: 1e-3, 512: 1e-3, 1024: 1.0}[len(matrix)])
    assert cost._time_products(torch.device("cpu"), torch.float32, seconds=1.0) == 2 * 512**3 / 1e-3
