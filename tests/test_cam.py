"""Grad-CAM against numbers worked out by hand, and against the chain rule followed block by block."""

import numpy as np
import pytest
import torch
from torch import nn

from vitlab.explain import explain
from vitlab.models import build_model
from vitlab.schema import Anatomy, ModelBundle, Transform


def bundle(module, anatomy, size, classes=("a", "b")):
    return ModelBundle("tiny", module, classes, Transform(size, (0.5,) * 3, (0.5,) * 3), anatomy)


@pytest.fixture
def small_cnn():
    """Two feature maps (red - green, and blue), averaged, then logits a = 2 f1 - f2, b = 4 f2 - f1."""
    features, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    features.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])[..., None, None]
    head.weight.data = torch.tensor([[2.0, -1.0], [-1.0, 4.0]])
    module = nn.Sequential(features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return bundle(module.eval(), Anatomy("cnn", (), (), 0, (2, 2), ("0",)), (2, 2))


IMAGE = torch.tensor([[[3.0, 0.0], [1.0, 5.0]], [[1.0, 2.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 2.0]]])[None]


def test_worked_out_by_hand(small_cnn):
    # features before ReLU: f1 = [[2, -2], [1, 4]], f2 = [[0, 4], [1, 2]]; the mean over 4 cells gives each a gradient of w / 4
    # where ReLU lets it through. For class a: f1 gets 2/4 at 3 of 4 cells, mean 0.375; f2 gets -1/4 at 3 of 4, mean -0.1875
    found = explain(small_cnn, IMAGE, "grad_cam", "a").values[0]
    expected = np.maximum(0.375 * np.array([[2, -2], [1, 4]]) - 0.1875 * np.array([[0, 4], [1, 2]]), 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # class b: -1/4 * 3/4 = -0.1875 for f1, 4/4 * 3/4 = 0.75 for f2
    found = explain(small_cnn, IMAGE, "grad_cam", "b").values[0]
    expected = np.maximum(-0.1875 * np.array([[2, -2], [1, 4]]) + 0.75 * np.array([[0, 4], [1, 2]]), 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_layer(small_cnn):
    found = explain(small_cnn, IMAGE, "grad_cam", "a", layer="1").values[0]  # behind ReLU: no cell of the gradient is lost
    np.testing.assert_allclose(
        found, np.maximum(0.5 * np.array([[2, 0], [1, 4]]) - 0.25 * np.array([[0, 4], [1, 2]]), 0), atol=1e-6
    )


def test_coarse_maps_are_enlarged_between_the_centres_of_cells():
    """A 1x2 map with 1 at the left and 5 at the right, on an image of 2x4: 1, 2, 4, 5 in each row."""
    features = nn.Conv2d(3, 1, 2, stride=2, bias=False)
    features.weight.data = torch.full((1, 3, 2, 2), 1 / 12)
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[2.0], [-2.0]])
    module = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model = bundle(module.eval(), Anatomy("cnn", (), (), 0, (1, 2), ("0",)), (2, 4))
    images = torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(1, 3, 2, 4)
    np.testing.assert_allclose(explain(model, images, "grad_cam").values[0], [[1, 2, 4, 5]] * 2, atol=1e-6)
    assert (explain(model, images, "grad_cam", "b").values == 0).all()  # all of it speaks against b


def test_tokens_of_a_vit_by_the_chain_rule():
    model = build_model("vit_scratch", ["a", "b", "c"], size=(16, 24), patch_size=8, embed_dim=24, depth=2, num_heads=2)
    vit, images, targets = model.module, torch.randn(2, 3, 16, 24), [2, 0]
    found = explain(model, images, "grad_cam", [model.classes[target] for target in targets]).values
    tokens = vit.blocks[0](vit.embed_tokens(images)).detach()
    last = vit.blocks[1]
    seen = last.norm1(tokens).detach().requires_grad_()  # (B, T, C)
    out = tokens + last.attn(seen)
    logits = vit.head(vit.pool(out + last.mlp(last.norm2(out))))
    maps = []
    for i, target in enumerate(targets):
        (gradient,) = torch.autograd.grad(logits[i, target], seen, retain_graph=True)
        weights = gradient[i, 1:].mean(dim=0)  # over the 6 patches, not the class token
        maps.append((seen[i, 1:] @ weights).relu().reshape(2, 3))
    maps = torch.stack(maps).detach()
    expected = nn.functional.interpolate(maps[:, None], size=(16, 24), mode="bilinear")[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-7, rtol=1e-4)
    assert expected.std() > 1e-5


def test_behind_the_last_attention_of_a_class_token_model_there_is_nothing():
    model = build_model("vit_scratch", ["a", "b"], size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    with pytest.raises(ValueError, match=r"patches at layer 'blocks\.1'.*leave layer out"):
        explain(model, torch.randn(1, 3, 16, 16), "grad_cam", layer="blocks.1")
    assert explain(model, torch.randn(1, 3, 16, 16), "grad_cam", layer="blocks.0").values.shape == (1, 16, 16)


def test_hybrid_takes_the_last_map_of_the_stem():
    model = build_model("hybrid_vit", ["a", "b"], pretrained=False, size=64, embed_dim=24, depth=1, num_heads=2)
    images = torch.randn(2, 3, 64, 64)
    stem, tokens = (explain(model, images, "grad_cam", layer=layer).values for layer in ("stem", "blocks.0.norm1"))
    np.testing.assert_array_equal(explain(model, images, "grad_cam").values, stem)
    assert tokens.shape == stem.shape and not np.allclose(tokens, stem)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("block.0", "no layer 'block.0'"),
        ("head_drop", "neither"),  # (B, C) behind the class token
        ("embed.norm", "neither"),  # (B, 112, T): neither tokens nor a map
    ],
)
def test_layers_that_cannot_be_drawn(layer, message):
    model = build_model("hybrid_vit", ["a", "b"], pretrained=False, size=64, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=message):
        explain(model, torch.randn(1, 3, 64, 64), "grad_cam", layer=layer)


class Forked(nn.Module):
    """A network with a part that is not used, one that gives two tensors, and one that the logits do not depend on."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1)
        self.unused = nn.Conv2d(3, 2, 1)
        self.aside = nn.Conv2d(3, 2, 1)
        self.pair = nn.MaxPool2d(1, return_indices=True)

    def forward(self, images):
        self.aside(images)
        return self.pair(self.features(images))[0].mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("layer", "message"), [("unused", "takes no part"), ("pair", "a tuple, not one tensor"), ("aside", "do not depend on layer")]
)
def test_layers_off_the_way_from_image_to_logits(layer, message):
    module = Forked()
    with pytest.raises(ValueError, match=message):
        explain(
            bundle(module, Anatomy("cnn", (), (), 0, (4, 4), ("features",)), (4, 4)),
            torch.randn(1, 3, 4, 4),
            "grad_cam",
            layer=layer,
        )
    assert not any(part._forward_hooks for part in module.modules())


def test_an_untrained_classifier_of_zeros_is_an_error(small_cnn):
    nn.init.zeros_(small_cnn.module[-1].weight)
    with pytest.raises(ValueError, match=r"no target logit reacts to the patches at layer '0'.*train the classifier first"):
        explain(small_cnn, IMAGE, "grad_cam")


def test_no_gradient_is_computed_before_the_layer(small_cnn):
    small_cnn.module.insert(0, nn.Conv2d(3, 3, 1))
    seen = []
    small_cnn.module[0].register_forward_hook(lambda _, __, output: seen.append(output.requires_grad))
    explain(small_cnn, IMAGE, "grad_cam", layer="1")
    assert seen and not any(seen)
