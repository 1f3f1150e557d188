"""Each strategy moves the parameters that it says, and no others."""

import pytest
import torch
from torch import nn

from tests.toys import small_digits, tiny_hybrid, tiny_vit
from vitlab.training import build_optimizer, find_border, fit, recipe, split_model
from vitlab.training.strategy import lowest_border

NAMES = ["embed", "block0", "block1", "block2", "neck", "head"]
QUICK = {
    "batch_size": 32,
    "precision": "fp32",
    "augment": "none",
    "warmup_epochs": 0.0,
    "learning_rate": 1e-2,
}


def moved(model, **arguments):
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fit(model, small_digits(), config=recipe(model.name, **{"epochs": 1, **QUICK, **arguments}))
    return {
        name
        for name, value in model.module.state_dict().items()
        if not torch.equal(value, before[name])
    }


def named(module, *beginnings):
    return {name for name, _ in module.named_parameters() if name.startswith(beginnings)}


@pytest.mark.parametrize(
    ("arguments", "beginnings"),
    [
        ({"strategy": "full"}, ("",)),
        ({"strategy": "linear_probe"}, ("head",)),
        ({"strategy": "last_blocks", "last_blocks": 1}, ("blocks.2", "norm", "head")),
        ({"strategy": "last_blocks", "last_blocks": 2}, ("blocks.1", "blocks.2", "norm", "head")),
        ({"train_from": "block1"}, ("blocks.1", "blocks.2", "norm", "head")),
        ({"strategy": "gradual", "last_blocks": 0}, ("head",)),  # in the first of its epochs
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_what_moves(arguments, beginnings, cache):
    model = tiny_vit()
    assert moved(model, cache=cache, **arguments) == named(model.module, *beginnings)
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize(
    ("epoch", "last_blocks", "every", "border"),
    [
        (1, 0, 1, "head"),
        (2, 0, 1, "block2"),
        (3, 0, 1, "block1"),
        (5, 0, 1, "embed"),
        (9, 0, 1, "embed"),
        (9, 2, 1, "block1"),
        (2, 0, 2, "head"),
        (3, 0, 2, "block2"),
    ],
)
def test_gradual_unfreezing_schedule(epoch, last_blocks, every, border):
    config = recipe(
        "vit_scratch", strategy="gradual", last_blocks=last_blocks, unfreeze_every=every, epochs=20
    )
    assert NAMES[find_border(NAMES, config, epoch)] == border


def test_gradual_unfreezing_moves_block_after_block():
    model = tiny_vit()
    assert moved(model, strategy="gradual", last_blocks=2, epochs=2, ema=0.5) >= named(
        model.module, "blocks.2", "norm", "head"
    )
    assert moved(tiny_vit(), strategy="gradual", last_blocks=2, epochs=3) == named(
        model.module, "blocks.1", "blocks.2", "norm", "head"
    )
    assert (
        lowest_border(NAMES, recipe("vit_scratch", strategy="gradual", last_blocks=0, epochs=3))
        == 2
    )


def test_more_blocks_than_there_are():
    with pytest.raises(
        ValueError, match=r"last_blocks=4, but the model has 3 blocks; choose 1 to 3"
    ):
        find_border(NAMES, recipe("vit_scratch", strategy="last_blocks", last_blocks=4))
    with pytest.raises(ValueError, match=r"write strategy='linear_probe'"):
        find_border(NAMES, recipe("vit_scratch", strategy="last_blocks", last_blocks=0))


def test_frozen_batch_norms_keep_their_statistics():
    model = tiny_hybrid()
    changed = moved(model, strategy="last_blocks", last_blocks=1)
    assert not {name for name in changed if name.startswith("stem") or "running" in name}
    assert {"head.weight", "blocks.0.attn.qkv.weight"} <= changed


def test_weight_decay_spares_norms_biases_and_positions():
    module = tiny_vit().module
    optimizer = build_optimizer(module, recipe("vit_scratch"))
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    names = {name for name, parameter in module.named_parameters() if id(parameter) in decayed}
    assert names and all(name.endswith("weight") and "norm" not in name for name in names)


def test_layer_decay_by_hand():
    """embed, three blocks, then norm and head: five layers in all, the head at the full rate."""
    module = tiny_vit().module
    optimizer = build_optimizer(module, recipe("vit_scratch", layer_decay=0.5, learning_rate=1.0))
    rates = {
        id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]
    }
    named_rates = {name: rates[id(parameter)] for name, parameter in module.named_parameters()}
    assert named_rates["head.weight"] == 1.0
    blocks = [named_rates[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert named_rates["patch_embed.proj.weight"] == named_rates["pos_embed"] == 0.0625


@pytest.mark.parametrize("name", ["hybrid_vit", "vit_scratch"])
def test_layer_decay_falls_towards_the_input(name):
    module = (tiny_hybrid() if name == "hybrid_vit" else tiny_vit()).module
    optimizer = build_optimizer(module, recipe(name, layer_decay=0.8, learning_rate=1.0))
    rates = {
        id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]
    }
    order = [rates[id(parameter)] for parameter in module.parameters()]
    assert (
        len(set(order)) >= 3
        and min(order) < 0.8
        and max(order) == 1.0 == rates[id(module.head.weight)]
    )


def test_split_parts_make_the_model():
    module = tiny_hybrid().module.eval()
    images = torch.randn(2, 3, 32, 32)
    frozen, trained = split_model(module, 7)
    torch.testing.assert_close(trained(frozen(images)), module(images), atol=1e-5, rtol=1e-5)
    assert isinstance(frozen[0], nn.Module) and len(split_model(module, 0)[0]) == 0


def test_dropout_stochastic_depth_and_patch_dropout_reach_the_model():
    plain = fit(tiny_vit(), small_digits(), config=recipe("vit_scratch", epochs=1, **QUICK))
    for option in ({"drop_rate": 0.3}, {"drop_path_rate": 0.5}, {"patch_drop_rate": 0.5}):
        changed = fit(
            tiny_vit(**option), small_digits(), config=recipe("vit_scratch", epochs=1, **QUICK)
        )
        assert changed["train_loss"][0] != plain["train_loss"][0], option


def test_accumulation_and_checkpointing_change_memory_only():
    histories = [
        fit(
            tiny_vit(), small_digits(), config=recipe("vit_scratch", epochs=3, **QUICK, **arguments)
        )["train_loss"]
        for arguments in (
            {},
            {"accumulation": 4},
            {"gradient_checkpointing": True},
            {"channels_last": False},
        )
    ]
    for history in histories[1:]:
        torch.testing.assert_close(
            torch.tensor(history), torch.tensor(histories[0]), atol=1e-4, rtol=0
        )
