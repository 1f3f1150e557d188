"""Models that were not built here: torchvision's, Hugging Face's, one's own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from vitlab.explain import explain
from vitlab.models import save_model, wrap_model
from vitlab.schema import Transform

CLASSES = ("a", "b", "c")
TRANSFORM = Transform(size=(48, 64), mean=(0.5,) * 3, std=(0.5,) * 3)


def build_hugging_face(**options):
    transformers = pytest.importorskip("transformers")
    options = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        **options,
    }
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=(48, 64), num_labels=3, **options)
    )


class Small(nn.Module):
    """A CNN whose output is put into whatever `pack` makes of it."""

    def __init__(self, pack=lambda logits: logits, num_logits=3):
        super().__init__()
        self.pack = pack
        self.one, self.two = (
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
        )
        self.head = nn.Linear(8, num_logits)

    def forward(self, images):
        return self.pack(self.head(self.two(self.one(images).relu()).relu().mean(dim=(-2, -1))))


def test_a_module_that_gives_logits_stays_what_it_is():
    module = resnet18(num_classes=3).train()
    model = wrap_model(module, list(CLASSES), TRANSFORM)
    assert model.module is module and not module.training
    assert (model.name, model.classes, model.transform) == ("ResNet", CLASSES, TRANSFORM)
    assert (model.anatomy.kind, model.anatomy.stages[-1], model.anatomy.grid) == (
        "cnn",
        "layer4",
        (2, 2),
    )
    assert wrap_model(module, CLASSES, TRANSFORM, "mine").name == "mine"


def test_a_size_stands_for_the_colours_of_imagenet():
    module = VisionTransformer(
        48, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3
    )
    model = wrap_model(module, CLASSES, 48)
    assert model.transform == Transform((48, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (model.anatomy.kind, model.anatomy.num_prefix_tokens, model.anatomy.grid) == (
        "vit",
        1,
        (3, 3),
    )


@pytest.mark.parametrize(
    "pack",
    [
        lambda logits: SimpleNamespace(loss=None, logits=logits),
        lambda logits: {"logits": logits},
        lambda logits: (logits, logits * 2),
    ],
)
def test_logits_are_taken_out_of_what_holds_them(pack):
    module, images = Small(pack), torch.randn(2, 3, 48, 64)
    model = wrap_model(module, CLASSES, TRANSFORM)
    assert model.module.network is module and model.anatomy.stages == ("network.one", "network.two")
    module.pack = lambda logits: logits
    assert torch.equal(model.module(images), module(images))


def test_hugging_face_is_explained():
    module, images = build_hugging_face(), torch.randn(2, 3, 48, 64)
    model = wrap_model(module, CLASSES, TRANSFORM)
    assert model.name == "ViTForImageClassification"
    assert model.anatomy.attention == (
        "network.vit.layers.0.attention",
        "network.vit.layers.1.attention",
    )
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), module(images).logits)
    found = explain(model, images, "rollout", "b")
    assert found.values.shape == (2, 48, 64) and found.values.std() > 0


@pytest.mark.parametrize(
    ("module", "classes", "message"),
    [
        (Small(num_logits=5), CLASSES, r"Small gives 5 logits, and there are 3 classes: a, b, c"),
        (Small(num_logits=1), ("a", "b"), r"one logit an image; return torch.cat"),
        (
            Small(lambda logits: logits[:, :, None]),
            CLASSES,
            r"gives \(4, 3, 1\) for 4 images, not \(4, 3\)",
        ),
        (
            Small(lambda logits: logits.mean(dim=0, keepdim=True)),
            CLASSES,
            r"gives \(1, 3\) for 4 images",
        ),
        (
            Small(lambda logits: logits.softmax(dim=1)),
            CLASSES,
            "gives probabilities, not logits; take off the softmax",
        ),
        (Small(lambda logits: logits / 0 * 0), CLASSES, "NaN or infinite"),
        (Small(lambda logits: {"scores": logits}), CLASSES, "gives a dict without logits; wrap it"),
        (Small(lambda logits: None), CLASSES, "gives a NoneType without logits"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(7, 3)),
            CLASSES,
            r"Sequential cannot take images of shape \(4, 3, 48, 64\)",
        ),
        (nn.Flatten(), CLASSES, "Flatten has no parameters"),
        (Small(), "abc", "at least two different class names"),
    ],
)
def test_what_is_no_classifier_is_refused(module, classes, message):
    module.train()
    with pytest.raises(ValueError, match=message):
        wrap_model(module, classes, TRANSFORM)
    assert module.training


@pytest.mark.parametrize("size", [None, "48", (48,), 0])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="neither a number of pixels nor"):
        wrap_model(Small(), CLASSES, size)


def test_what_cannot_be_built_again_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Small was wrapped, not built by name"):
        save_model(wrap_model(Small(), CLASSES, TRANSFORM), tmp_path / "model")
    assert not (tmp_path / "model").exists()
