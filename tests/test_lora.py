"""Low-rank adapters: what is trained, what a model is like afterwards, and that it learns."""

import numpy as np
import pytest
import torch

from vitlab.data import load_dataset
from vitlab.errors import UserError
from vitlab.models import build_model, count_parameters
from vitlab.training import fit, predict, recipe, strategy_table
from vitlab.training.lora import add_lora, merge_lora


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def build(digits, **options):
    return build_model("vit_scratch", digits.classes, seed=0, size=24, depth=2, **options)


def test_adapters_beside_each_linear_layer_of_the_blocks_and_the_head_are_trained(digits):
    model = build(digits)
    whole = count_parameters(model.module)
    add_lora(model, rank=4)
    trained = [name for name, value in model.module.named_parameters() if value.requires_grad]
    adapters = [name for name in trained if "lora_" in name]
    assert len(adapters) == 2 * 2 * 4  # two blocks, four layers, two matrices
    assert sorted(set(trained) - set(adapters)) == ["head.bias", "head.weight"]
    assert count_parameters(model.module, trainable=True) < whole / 4


def test_merging_gives_the_same_function_in_the_original_network(digits):
    model, original = build(digits), build(digits)
    images = torch.randn(3, 3, 24, 24)
    add_lora(model, rank=4)
    with torch.no_grad():  # B begins at zero: nothing is changed
        same = original.module.eval()(images)
        assert torch.allclose(model.module.eval()(images), same, atol=1e-6)
        for name, value in model.module.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
        adapted = model.module(images)
        merge_lora(model.module)
        assert torch.allclose(model.module(images), adapted, atol=1e-5)
        assert not torch.allclose(adapted, same, atol=1e-3)
    assert model.module.state_dict().keys() == original.module.state_dict().keys()


def test_a_training_moves_the_blocks_by_a_low_rank_and_nothing_before_them(digits):
    model, original = build(digits), build(digits)
    config = recipe("vit_scratch", digits, strategy="lora", epochs=2, lora_rank=2, ema=0.9)
    table = strategy_table(model.module, config).set_index("stage")["trained"]
    assert table.to_dict() == {
        "embed": "no",
        "block0": "rank 2",
        "block1": "rank 2",
        "neck": "no",
        "head": "yes",
    }
    history = fit(model, digits, config=config, show=False)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    before, after = original.module.state_dict(), model.module.state_dict()
    assert before.keys() == after.keys()
    moved = {name: after[name] - before[name] for name in before}
    largest = {name: change.abs().max() for name, change in moved.items()}
    layers = [name for name in moved if name.startswith("blocks") and largest[name] > 1e-6]
    assert len(layers) == 8
    assert all(np.linalg.matrix_rank(moved[name].numpy(), tol=1e-5) == 2 for name in layers)
    still = [name for name in moved if not name.startswith(("blocks", "head"))]
    assert all(largest[name] == 0 for name in still)
    assert predict(model, digits, ["val"])["prob_0"].between(0, 1).all()


def test_a_model_without_transformer_blocks_is_refused(digits):
    model = build_model("efficientnet_lite0", digits.classes, size=32)
    config = recipe("efficientnet_lite0", digits, strategy="lora")
    with pytest.raises(UserError, match="transformer blocks, and efficientnet_lite0 has none"):
        fit(model, digits, config=config, show=False)
