"""What holds for every model that a comparison may ask for: any size, colour or grey, in stages,
with any head.
"""

import pytest
import torch
from torch import nn

from vitlab.data import fit_image
from vitlab.models import build_model, load_model, save_model, split_stages

CLASSES = ("a", "b", "c")
SMALL = {"depth": 2, "embed_dim": 32}
MODELS = {  # name -> options that make it small, a size, another size
    "vit_tiny_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "vit_small_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "vit_base_patch16_224": ({**SMALL, "num_heads": 2}, 32, (32, 64)),
    "deit_tiny_distilled_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
        56,
        112,
    ),
    "mobilevit_xxs": ({}, 64, 96),
    "mixer_s32_224": ({}, 64, 96),
    "convnext_tiny": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 32, 64),
    "resnet18": ({}, 32, 64),
    "resnet50": ({}, 32, 64),
    "efficientnet_b0": ({}, 32, 64),
    "efficientnet_lite0": ({}, 32, 64),
    "hybrid_vit": ({"embed_dim": 64, "depth": 1}, 32, (32, 64)),
    "vit_scratch": ({**SMALL, "num_heads": 2}, 48, 96),
}


def build(name, **arguments):
    options, size, _ = MODELS[name]
    return build_model(name, CLASSES, pretrained=False, **{"size": size, **options, **arguments})


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_pieces(name, in_chans, gradient_image):
    model = build(name, in_chans=in_chans)
    pixels = fit_image(gradient_image, model.transform)
    assert pixels.shape == (in_chans, *model.transform.size) and pixels.dtype == torch.uint8
    images = torch.randn(2, in_chans, *model.transform.size)
    for parameter in split_stages(model.module)[-1][1].parameters():
        nn.init.normal_(parameter)  # a Mixer's head begins with zeros
    with torch.inference_mode():
        logits = model.module(images)
        composed, chain = images, split_stages(model.module)
        for _, stage in chain:
            composed = stage(composed)
    assert (
        logits.shape == (2, 3)
        and torch.isfinite(logits).all()
        and not torch.equal(logits[0], logits[1])
    )
    torch.testing.assert_close(composed, logits, atol=1e-5, rtol=1e-5)
    names = [name for name, _ in chain]
    assert len(names) > 1 and names[-1] == "head"
    linear = [part for part in chain[-1][1].modules() if list(part.parameters(recurse=False))]
    assert linear and all(
        isinstance(part, nn.Linear) and part.out_features == 3 for part in linear
    ), "the classifier alone"


@pytest.mark.parametrize("name", MODELS)
def test_another_size(name):
    other = MODELS[name][2]
    model = build(name, size=other)
    expected = (other, other) if isinstance(other, int) else other
    assert model.transform.size == expected
    with torch.inference_mode():
        assert model.module(torch.randn(1, 3, *expected)).shape == (1, 3)


@pytest.mark.parametrize("name", MODELS)
def test_head_with_a_hidden_layer(name):
    model = build(name, head_hidden=7, head_dropout=0.25)
    head = split_stages(model.module)[-1][1]
    heads = 2 if "distilled" in name else 1
    kinds = [type(part) for part in head.modules() if isinstance(part, nn.Tanh | nn.Linear)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear] * heads
    assert model.module(torch.randn(2, 3, *model.transform.size)).shape == (2, 3)
    assert sum(isinstance(part, nn.Dropout) and part.p == 0.25 for part in head.modules()) == heads


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "hybrid_vit", "vit_scratch", "resnet18"]
)
def test_saved_and_loaded_with_its_options(name, tmp_path):
    model = build(name, in_chans=1, head_hidden=7)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    images = torch.randn(2, 1, *model.transform.size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(images), model.module(images), atol=0, rtol=0)
    assert loaded.transform == model.transform


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_scratch", {"in_chans": 4}, "in_chans=4: images have 3 channels .colour. or 1"),
        ("vit_scratch", {"head_dropout": 0.2}, "set head_hidden as well"),
        ("vit_scratch", {"head_hidden": -1}, "head_hidden=-1"),
        (
            "vit_scratch",
            {"drop_path": 0.1},
            "unknown option of vit_scratch 'drop_path'. Did you mean drop_path_rate",
        ),
        (
            "resnet18",
            {"drop_rat": 0.1},
            "timm cannot build resnet18 with these options: .*'drop_rat'",
        ),
        (
            "vit_tiny_patch16_224",
            {"size": 40},
            "cannot take images of 40x40 pixels; multiples of 16 suit it",
        ),
        ("swin_tiny_patch4_window7_224", {"size": 10}, "cannot take images of 10x10"),
    ],
)
def test_what_cannot_be_built(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
