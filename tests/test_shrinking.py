import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.toys import small_digits, tiny_vit
from vitlab.explain import (
    explain,
    record_attention,
)
from vitlab.models import (
    build_model,
    count_parameters,
    load_model,
    save_model,
    shrink_model,
)
from vitlab.models.shrinking import shrink

TINY_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4}


SPEC = [{"heads": [1], "neurons": list(range(0, 30, 2))}, None, {"heads": [0, 1], "neurons": 5}]


def tiny_timm(name="vit_tiny_patch16_224", **options):
    return build_model(
        name, small_digits().classes, pretrained=False, size=32, **{**TINY_TIMM, **options}
    )


def tiny_deep_hybrid():
    return build_model(
        "hybrid_vit",
        small_digits().classes,
        pretrained=False,
        size=32,
        embed_dim=32,
        depth=3,
        num_heads=4,
    )


FAMILIES = {
    "vit_scratch": tiny_vit,
    "hybrid_vit": tiny_deep_hybrid,
    "timm vit": tiny_timm,
    "timm vit, layer scale, norm of q and k": lambda: tiny_timm(init_values=0.1, qk_norm=True),
    "deit distilled": lambda: tiny_timm("deit_tiny_distilled_patch16_224"),
}


def draw_images(model, count=3):
    return torch.randn(count, 3, *model.transform.size, generator=torch.Generator().manual_seed(1))


def mask_weights(module, spec):
    """What shrinking is to equal: output weights of heads and neurons that go set to zero, blocks
    that go made the identity.
    """
    for block, entry in zip(module.blocks, spec, strict=True):
        if entry is None:
            block.attn.proj = block.mlp.fc2 = Zero()
            continue
        heads = torch.zeros(block.attn.num_heads)
        heads[entry["heads"]] = 1
        neurons = torch.zeros(block.mlp.fc1.out_features)
        neurons[
            entry["neurons"] if isinstance(entry["neurons"], list) else slice(entry["neurons"])
        ] = 1
        block.attn.proj.weight.data *= heads.repeat_interleave(block.attn.head_dim)
        block.mlp.fc2.weight.data *= neurons


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shrunk_model_gives_the_logits_of_a_masked_one(family, tmp_path):
    full, masked = FAMILIES[family](), FAMILIES[family]()
    images = draw_images(full)
    small = shrink_model(full, SPEC)
    mask_weights(masked.module, SPEC)
    with torch.no_grad():
        expected = masked.module(images)
        assert (small.module(images) - expected).abs().max() < 1e-5
        assert (full.module(images) - expected).abs().max() > 1e-4  # the cut matters
    save_model(small, tmp_path)
    again = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.module(images), small.module(images))
    assert json.loads((tmp_path / "model.json").read_text())["options"]["shrunk"] == [
        {"heads": 1, "neurons": 15},
        None,
        {"heads": 2, "neurons": 5},
    ]
    assert again.anatomy == small.anatomy


def test_parameters_go_down_by_what_was_cut():
    full = tiny_vit()  # C = 16, two heads of 8, 64 neurons, 3 blocks
    small = shrink_model(full, [{"heads": [1], "neurons": 60}, {}, {}])
    head, neuron = 3 * 8 * 16 + 3 * 8 + 16 * 8, 16 + 1 + 16
    assert count_parameters(full.module) - count_parameters(small.module) == head + 4 * neuron
    block = count_parameters(full.module.blocks[0])
    assert (
        count_parameters(full.module) - count_parameters(shrink_model(full, [{}, None, {}]).module)
        == block
    )


def test_shrinking_twice_is_shrinking_once(tmp_path):
    full = tiny_timm()
    once = shrink_model(full, [{"heads": [2], "neurons": [4, 9]}, None, {"neurons": 3}])
    twice = shrink_model(full, [{"heads": [1, 2]}, None, {}])
    twice = shrink_model(twice, [{"heads": [1], "neurons": [4, 9]}, {"neurons": 3}])
    assert once.options == twice.options
    images = draw_images(full)
    with torch.no_grad():
        assert torch.equal(once.module(images), twice.module(images))
    save_model(twice, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).module(images), once.module(images))


def test_a_shrunk_hybrid_is_explained():
    small = shrink_model(tiny_deep_hybrid(), SPEC)
    images = draw_images(small)
    assert small.anatomy.blocks == ("blocks.0", "blocks.1") and small.anatomy.kind == "hybrid"
    with record_attention(small.module, small.anatomy) as attention, torch.no_grad():
        small.module(images)
    assert [layer.shape[1] for layer in attention] == [1, 2]
    for method in ("rollout", "grad_cam", "transformer_attribution"):
        assert np.ptp(explain(small, images, method).values) > 0


def test_a_shrunk_model_trains_and_frozen_parts_stay_frozen():
    module = tiny_vit().module
    module.blocks[0].attn.qkv.weight.requires_grad_(False)
    shrink(module, SPEC)
    module(torch.randn(2, 3, 16, 16)).sum().backward()
    assert module.blocks[0].attn.qkv.weight.grad is None
    assert module.blocks[0].mlp.fc1.weight.grad.shape == (15, 16)


def test_timm_features_of_a_shrunk_model():
    small = shrink_model(tiny_timm(), SPEC)
    assert [info["module"] for info in small.module.feature_info] == ["blocks.0", "blocks.1"]
    maps = small.module.forward_intermediates(draw_images(small), intermediates_only=True)
    assert [tuple(each.shape) for each in maps] == [(3, 24, 4, 4)] * 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([{}, {}], "one entry for each of the 3 blocks"),
        ({"blocks": [{}, {}, {}]}, "for each of the 3 blocks, not {.blocks"),
        ([None, None, None], "drops all 3 blocks"),
        ([{"heads": []}, {}, {}], "block 0 has 2 heads, 0 to 1; a spec keeps at least one"),
        ([{}, {"neurons": 0}, {}], "block 1 has 64 neurons, 0 to 63; a spec keeps at least one"),
        ([{}, {"heads": [2]}, {}], "block 1 has 2 heads, 0 to 1"),
        ([{"neurons": 65}, {}, {}], "block 0 has 64 neurons"),
        ([{"head": [0]}, {}, {}], "heads and neurons"),
    ],
)
def test_specs_that_do_not_fit(spec, message):
    model = tiny_vit()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        shrink(model.module, spec)
    after = model.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "no transformer blocks"),
        (
            timm.create_model(
                "swin_tiny_patch4_window7_224",
                embed_dim=8,
                depths=(1, 1, 1, 1),
                num_heads=(1, 1, 1, 1),
            ),
            "no transformer blocks",
        ),
        (
            timm.create_model("vit_tiny_patch16_224", embed_dim=12, depth=1, scale_attn_norm=True),
            "no transformer blocks",
        ),
        (
            timm.create_model("vit_giant_patch14_dinov2", embed_dim=12, depth=1, num_heads=1),
            "MLP of block 0 is a GluMlp",
        ),
    ],
)
def test_modules_that_cannot_be_shrunk(module, message):
    with pytest.raises(ValueError, match=message):
        shrink(module, [{}])
