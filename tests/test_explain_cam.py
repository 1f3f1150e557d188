"""Class activation maps against numbers worked out by hand, the chain rule followed block by block,
and pytorch-grad-cam.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tests.families import build_family, family
from vitlab.explain import explain, suitable_methods
from vitlab.explain.cam import choose_layer
from vitlab.models import build_model
from vitlab.schema import Anatomy, ModelBundle, Transform


def bundle(module, anatomy, size, classes=("a", "b")):
    return ModelBundle("tiny", module, classes, Transform(size, (0.5,) * 3, (0.5,) * 3), anatomy)


@pytest.fixture
def small_cnn():
    """Two feature maps (red - green, and blue), averaged, then logits a = 2 f1 - f2, b = 4 f2 -
    f1.
    """
    features, head = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    features.weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])[..., None, None]
    head.weight.data = torch.tensor([[2.0, -1.0], [-1.0, 4.0]])
    module = nn.Sequential(
        features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    return bundle(module.eval(), Anatomy("cnn", (), (), 0, (2, 2), ("0",)), (2, 2))


IMAGE = torch.tensor(
    [[[3.0, 0.0], [1.0, 5.0]], [[1.0, 2.0], [0.0, 1.0]], [[0.0, 4.0], [1.0, 2.0]]]
)[None]


def test_worked_out_by_hand(small_cnn):
    # features before ReLU: f1 = [[2, -2], [1, 4]], f2 = [[0, 4], [1, 2]]; the mean over 4 cells
    # gives each a gradient of w / 4 where ReLU lets it through. For class a: f1 gets 2/4 at 3 of 4
    # cells, mean 0.375; f2 gets -1/4 at 3 of 4, mean -0.1875
    found = explain(small_cnn, IMAGE, "grad_cam", "a").values[0]
    expected = np.maximum(
        0.375 * np.array([[2, -2], [1, 4]]) - 0.1875 * np.array([[0, 4], [1, 2]]), 0
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # class b: -1/4 * 3/4 = -0.1875 for f1, 4/4 * 3/4 = 0.75 for f2
    found = explain(small_cnn, IMAGE, "grad_cam", "b").values[0]
    expected = np.maximum(
        -0.1875 * np.array([[2, -2], [1, 4]]) + 0.75 * np.array([[0, 4], [1, 2]]), 0
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_layer(small_cnn):
    # behind ReLU: no cell of the gradient is lost
    found = explain(small_cnn, IMAGE, "grad_cam", "a", layer="1").values[0]
    np.testing.assert_allclose(
        found,
        np.maximum(0.5 * np.array([[2, 0], [1, 4]]) - 0.25 * np.array([[0, 4], [1, 2]]), 0),
        atol=1e-6,
    )


def test_coarse_maps_are_enlarged_between_the_centres_of_cells():
    """A 1x2 map with 1 at the left and 5 at the right, on an image of 2x4: 1, 2, 4, 5 in each
    row.
    """
    features = nn.Conv2d(3, 1, 2, stride=2, bias=False)
    features.weight.data = torch.full((1, 3, 2, 2), 1 / 12)
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[2.0], [-2.0]])
    module = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model = bundle(module.eval(), Anatomy("cnn", (), (), 0, (1, 2), ("0",)), (2, 4))
    images = torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(1, 3, 2, 4)
    np.testing.assert_allclose(
        explain(model, images, "grad_cam").values[0], [[1, 2, 4, 5]] * 2, atol=1e-6
    )
    assert (explain(model, images, "grad_cam", "b").values == 0).all()  # all of it speaks against b


def test_after_the_last_attention_of_a_class_token_model_there_is_nothing():
    model, images = family("vit_scratch"), torch.randn(1, 3, 32, 48)
    with pytest.raises(
        ValueError, match=r"patches at layer 'blocks\.1' \(after the last attention"
    ):
        explain(model, images, "grad_cam", layer="blocks.1")
    assert explain(model, images, "grad_cam", layer="blocks.0").values.any()


class Forked(nn.Module):
    """A network with parts that are not used, used twice, that give two tensors, that the logits do
    not depend on, and that give no map.
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1)
        self.unused = nn.Conv2d(3, 2, 1)
        self.aside = nn.Conv2d(3, 2, 1)
        self.twice = nn.ReLU()
        self.pair = nn.MaxPool2d(1, return_indices=True)
        self.last = nn.Identity()

    def forward(self, images):
        self.aside(images)
        found, _ = self.pair(self.twice(self.twice(self.features(images))))
        return self.last(found.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("feature", "no layer 'feature'"),
        ("unused", "runs 0 times"),
        ("twice", "runs 2 times"),
        ("pair", "a tuple, not one tensor"),
        ("aside", "do not depend on layer"),
        ("last", "neither"),
    ],
)
def test_layers_without_a_map(layer, message):
    model = bundle(Forked(), Anatomy("cnn", (), (), 0, (4, 4), ("features",)), (4, 4))
    with pytest.raises(ValueError, match=message):
        explain(model, torch.randn(1, 3, 4, 4), "grad_cam", layer=layer)
    assert not any(part._forward_hooks for part in model.module.modules())


def test_an_untrained_classifier_of_zeros_is_an_error(small_cnn):
    nn.init.zeros_(small_cnn.module[-1].weight)
    with pytest.raises(
        ValueError,
        match=r"no target logit depends on the patches at layer '0'.*untrained",
    ):
        explain(small_cnn, IMAGE, "grad_cam")


def test_no_gradient_is_computed_before_the_layer(small_cnn):
    small_cnn.module.insert(0, nn.Conv2d(3, 3, 1))
    seen = []
    small_cnn.module[0].register_forward_hook(
        lambda _, __, output: seen.append(output.requires_grad)
    )
    explain(small_cnn, IMAGE, "grad_cam", layer="1")
    assert seen and not any(seen)


PEERS = {
    "grad_cam": "GradCAM",
    "layer_cam": "LayerCAM",
    "score_cam": "ScoreCAM",
    "eigen_cam": "EigenCAM",
}
FAMILIES = {  # the layer whose output the peer is to be given
    "test_resnet": "layer4",
    "vit_tiny_patch16_224": "blocks.1.norm1",
    "hybrid_vit": "stem",
    "swin_tiny_patch4_window7_224": "norm",
}


def loud_model(name, std):
    """Logits so large that the constant by which the peer avoids a division by zero (1e-6 beside
    squared gradients) is lost.
    """
    model = build_family(name)
    *_, head = (
        part
        for part in model.module.modules()
        if isinstance(part, nn.Linear) and part.out_features == 3
    )
    nn.init.normal_(head.weight, std=std)
    return model, FAMILIES[name]


def apply_peer(method, model, layer, images, targets):
    """pytorch-grad-cam on this layer: maps (N, h, w) in 0..1."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def reshape(tensor):
        if tensor.ndim == 3:
            tokens = tensor[:, model.anatomy.num_prefix_tokens :]
            return tokens.transpose(1, 2).reshape(len(tensor), -1, *model.anatomy.grid)
        return tensor.permute(0, 3, 1, 2) if "swin" in model.name else tensor

    with getattr(pytorch_grad_cam, PEERS[method])(
        model.module, [model.module.get_submodule(layer)], reshape
    ) as cam:
        return cam(images, [ClassifierOutputTarget(target) for target in targets])


def normalise(maps):
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-30)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", PEERS)
def test_equals_pytorch_grad_cam_on_the_default_layer(method, name, monkeypatch):
    get_2d_projection = pytest.importorskip("pytorch_grad_cam").eigen_cam.get_2d_projection
    model, layer = loud_model(name, std=1 if method == "score_cam" else 1e5)
    if name == "hybrid_vit" and method == "grad_cam":
        layer = "blocks.1.norm1"
    images = torch.randn(2, 3, *model.transform.size)
    targets = model.module(images).argmax(dim=1).tolist()
    options = {"channels": None} if method == "score_cam" else {}
    found = explain(
        model, images, method, [model.classes[target] for target in targets], **options
    ).values
    expected = apply_peer(method, model, layer, images, targets)
    # a component has no sign: the peer shows one half of the map or the other, as it happens
    if method == "eigen_cam":
        monkeypatch.setattr(
            "pytorch_grad_cam.eigen_cam.get_2d_projection", lambda found: -get_2d_projection(found)
        )
        opposite = apply_peer(method, model, layer, images, targets)
        near = [
            np.abs(normalise(found) - other).max(axis=(1, 2), keepdims=True)
            for other in (expected, opposite)
        ]
        expected = np.where(near[0] < near[1], expected, opposite)
    np.testing.assert_allclose(normalise(found), expected, atol=1e-4)
    assert max(found[i].std() for i in range(2)) > 0


def test_score_cam_tries_the_channels_of_largest_variance(small_cnn):
    # variances of f1 and f2 behind ReLU: 2.19 and 2.19 are equal here, so blue is made brighter;
    # one channel has weight 1
    images = IMAGE * torch.tensor([1.0, 1.0, 2.0])[:, None, None]
    found = explain(small_cnn, images, "score_cam", "a", layer="1", channels=1).values[0]
    np.testing.assert_allclose(found, [[0, 8], [2, 4]], atol=1e-6)
    for channels in (0, 1.5):
        with pytest.raises(ValueError, match="channels must be a whole number"):
            explain(small_cnn, images, "score_cam", "a", channels=channels)


def test_the_component_is_positive_where_features_are_strong():
    """A bright blob in the dark, whatever the sign of the channels."""
    images = torch.zeros(2, 3, 4, 4)
    images[:, :, 1:3, 2:] = torch.tensor([1.0, -1.0])[:, None, None, None]
    module = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = bundle(module.eval(), Anatomy("cnn", (), (), 0, (4, 4), ("0",)), (4, 4))
    found = explain(model, images, "eigen_cam").values
    np.testing.assert_array_equal(found > 0, (images[:, 0] != 0).numpy())


def test_the_default_layer_of_hybrids():
    """Measured on planted stamps, see the docstring of grad_cam."""
    ours = family("hybrid_vit")
    assert choose_layer(ours, None) == ("blocks.1.attn", True)
    assert choose_layer(ours, None, local=True) == ("stem", False)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "pretrained": False}
    timm = build_model("vit_tiny_r_s16_p8_224", ["a", "b"], size=64, **options)
    assert choose_layer(timm, None) == ("patch_embed.proj", False)
    assert choose_layer(timm, "norm") == ("norm", False)


def test_every_method_that_suits_coat_explains_it():
    """Its position encodings run several times in one pass and are no layers for a map."""
    model = build_model("coat_lite_tiny", ["a", "b"], size=64, pretrained=False)
    for method in suitable_methods(model, ["grad_cam", "layer_cam", "eigen_cam"]):
        assert explain(model, torch.randn(1, 3, 64, 64), method).values.shape == (1, 64, 64)
