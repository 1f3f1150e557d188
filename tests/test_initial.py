"""The weights that a run began with: those of its own options and seed, whatever weights come with
the model.
"""

import numpy as np
import pytest
import torch

from tests.toys import tiny_vit
from vitlab.data import load_dataset
from vitlab.explain import attention_change_table
from vitlab.models import build_model, load_model, save_model
from vitlab.runs import Run
from vitlab.training import ensure_planted_run, initial_model, known_truth


def keep(model, folder, **parameters):
    run = Run.create(dataset="digits", model=model.name, name=folder, **parameters)
    save_model(model, run.path)
    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_vitlab", {"pretrained": False, "size": 64}),
        ("vit_tiny_vitlab", {"size": 64}),  # from the packaged weights
        # whose weights are on the hub, out of reach
        ("vit_tiny_patch16_224", {"pretrained": False, "size": 48}),
        ("hybrid_vit", {"size": 64, "depth": 1, "head_hidden": 8}),
        ("vit_scratch", {"size": 24, "depth": 1, "in_chans": 1}),
    ],
)
def test_a_run_that_learns_nothing_is_where_it_began(name, options):
    classes = load_dataset("digits").classes
    run = keep(build_model(name, classes, seed=5, **options), "still", seed=5)
    initial, missing = initial_model(run)
    trained = load_model(run.path)
    assert not missing and initial.options == trained.options
    for key, tensor in trained.module.state_dict().items():
        torch.testing.assert_close(initial.module.state_dict()[key], tensor, rtol=0, atol=0)
    channels = options.get("in_chans", 3)
    changes = attention_change_table(
        initial, trained, torch.randn(2, channels, *trained.transform.size)
    )
    assert np.allclose(changes["change"], 0, atol=1e-6)


def test_other_weights_than_the_packaged_ones_are_not_taken_for_them():
    classes = load_dataset("digits").classes
    random = build_model("vit_tiny_vitlab", classes, pretrained=False, size=64)
    packaged = build_model("vit_tiny_vitlab", classes, size=64)
    assert not torch.equal(
        random.module.blocks[0].attn.qkv.weight, packaged.module.blocks[0].attn.qkv.weight
    )


def test_the_seed_is_that_of_the_run():
    first, second = (
        initial_model(keep(tiny_vit(seed), f"seed{seed}", seed=seed))[0] for seed in (0, 1)
    )
    assert not torch.equal(first.module.head.weight, second.module.head.weight)


def test_weights_out_of_reach_are_said_to_be_so(tmp_path):
    model = build_model("test_vit", load_dataset("digits").classes, pretrained=False, size=32)
    model.options.pop("pretrained")  # as if trained where the hub could be reached
    initial, missing = initial_model(keep(model, "hub", seed=0))
    assert initial is None and missing.startswith(
        "The initial weights cannot be rebuilt: cannot reach the pretrained weights of test_vit"
    )


def test_models_for_the_tests_of_explanations_start_like_the_one_explained(monkeypatch):
    calls = []
    monkeypatch.setattr(
        known_truth, "finetune", lambda *names, **arguments: calls.append(arguments["options"])
    )
    ensure_planted_run("digits", build_model("test_vit", ["a", "b"], pretrained=False, size=32))
    assert calls[0]["pretrained"] is False
