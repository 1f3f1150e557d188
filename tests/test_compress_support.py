"""What a model supports is found out before a step runs: over families of timm, each step runs or
has one sentence that says why not. Maps before and after compression, by hand.
"""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from tests.toys import linear_digits, linear_model, small_digits, tiny_vit
from vitlab.compress.curves import merge_tokens
from vitlab.compress.pruning import part_importance_table, plan_pruning
from vitlab.compress.support import (
    build_student,
    describe_similarity,
    explain_skipped,
    export_networks,
    map_similarity_table,
)
from vitlab.compress.variants import size_on_disk
from vitlab.data import ImageDataset
from vitlab.explain import explain, sanity_table
from vitlab.models import build_model, shrink_model

ASKED = {"keep": 0.34, "whole_blocks": True, "student": "hybrid_vit", "student_depth": 1}
NO_BLOCKS = {"Pruning", "Pruning within the blocks", "Token merging"}
MODELS = {  # name: pixels, steps that are skipped
    "vit_wee_patch16_reg1_gap_256": (48, {"Token merging"}),  # registers, mean of the tokens
    "deit_tiny_distilled_patch16_224": (48, set()),
    "test_vit3": (48, {"Token merging"}),  # attention pooling
    "eva02_tiny_patch14_224": (42, NO_BLOCKS),
    "swin_tiny_patch4_window7_224": (64, NO_BLOCKS),
    "convnext_atto": (64, NO_BLOCKS),
    "resnet10t": (64, NO_BLOCKS),
    "vit_scratch": (36, set()),
    "hybrid_vit": (48, set()),
}


def build(name, **options):
    """With weights that are nowhere zero: some families start with a head of zeros."""
    classes, size = small_digits().classes, MODELS[name][0]
    model = build_model(name, classes, pretrained=False, size=size, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_each_step_runs_or_says_why_not(name):
    model = build(name)
    skipped = explain_skipped(model, **ASKED)
    assert set(skipped) == MODELS[name][1]
    for sentence in skipped.values():
        assert " is skipped: " in sentence and sentence.endswith(".") and "\n" not in sentence
    images = torch.randn(2, 3, *model.transform.size, generator=torch.Generator().manual_seed(0))
    if "Pruning" not in skipped:
        importance = part_importance_table(model, kinds=("block",), measure="magnitude")
        small = shrink_model(model, plan_pruning(model, importance, 0.34, whole_blocks=True))
        assert 1 <= len(small.module.blocks) <= 0.34 * len(model.module.blocks)
    if "Token merging" not in skipped:
        assert merge_tokens(model, 8).module.eval()(images).shape == (2, 10)
    student = build_student("hybrid_vit", model, depth=1)
    assert student.transform == model.transform
    networks = {"full": model, "distilled": student}
    table, unable = map_similarity_table(networks, images, ["grad_cam", "saliency"])
    assert len(table) + len(unable) == 2 and "saliency" in set(table["method"])
    assert all("are not compared: " in sentence for sentence in unable)


def test_exports_of_another_family(tmp_path):
    swin = build("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24)
    files, table, skipped = export_networks({"full": swin}, tmp_path, small_digits())
    assert set(files) == {"full, ONNX", "full, int8"} and not skipped
    assert table["network"].tolist() == ["full"] and table["float_nodes"][0] >= 0
    assert size_on_disk(files["full, int8"]) < 0.6 * size_on_disk(files["full, ONNX"])


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 10)

    def forward(self, images):
        logits = self.linear(images.mean((2, 3)))
        return logits if logits.sum() > 0 else -logits


def test_a_network_that_cannot_be_traced_is_named_and_leaves_no_old_file(tmp_path):
    (tmp_path / "full.onnx").write_bytes(b"of an earlier run")
    networks = {"full": replace(linear_digits(), module=Branching()), "linear": linear_digits()}
    files, table, skipped = export_networks(networks, tmp_path, small_digits())
    assert set(files) == {"linear, ONNX", "linear, int8"}
    assert table["network"].tolist() == ["linear"]
    (sentence,) = skipped
    assert sentence.startswith("ONNX of the full network is skipped: ") and sentence.endswith(".")
    assert not (tmp_path / "full.onnx").exists()


def test_a_model_of_one_block_and_a_student_that_does_not_fit():
    model = tiny_vit(depth=1)
    skipped = explain_skipped(model, **ASKED)
    assert "cannot be reached" in skipped["Pruning"] and "Token merging" not in skipped
    with pytest.raises(ValueError, match="unknown model"):
        build_student("hybrid_vitt", model)
    grey = tiny_vit(size=36, in_chans=1)
    student = build_student("hybrid_vit", grey, depth=1)
    assert student.module(torch.zeros(1, 1, 36, 36)).shape == (1, 10)


def digits(model, count=6):
    dataset = ImageDataset(small_digits(), "test", model.transform)
    return torch.stack([image for image, _, _ in dataset.__getitems__(range(count))])


def test_a_copy_has_the_same_maps():
    networks = {"full": tiny_vit(), "copy": tiny_vit()}
    methods = ["saliency", "rollout"]
    table, unable = map_similarity_table(networks, digits(networks["full"]), methods)
    assert table["method"].tolist() == methods and not unable
    assert (table["model"] == "copy").all()
    assert table[["value", "low", "high"]].to_numpy().ravel() == pytest.approx([1] * 6)
    text = describe_similarity(table)
    assert text.startswith("More alike than maps of different images: saliency of *copy*")


def test_similarities_are_those_of_the_sanity_checks():
    model, other = tiny_vit(), tiny_vit(seed=1)
    images = digits(model)
    table, _ = map_similarity_table({"a": model, "b": other}, images, ["saliency"])
    theirs = sanity_table(model, images, [explain(model, images, "saliency")], other)
    assert table["value"][0] == pytest.approx(theirs["similarity"].mean())
    assert table["other"][0] == pytest.approx(theirs["other_image"].mean())


def test_two_images_and_four_patches_by_hand():
    """Each class has other weights for the four pixels; those of the second class are permuted in
    the compressed model.

    Ranks 1 2 3 4 against 1 4 3 2: 1 - 6 * 8 / (4 * 15) = 0.2; against those of the first class, 4 1
    2 3: 1 - 6 * 12 / 60 = -0.2."""
    first, second, changed = [[4.0, 1], [2, 3]], [[1.0, 2], [3, 4]], [[1.0, 4], [3, 2]]
    networks = {}
    for name, weights in {"full": (first, second), "small": (first, changed)}.items():
        flat = torch.tensor(weights)[:, None].expand(2, 3, 2, 2).flatten(1)
        model = linear_model(flat, torch.zeros(2), ("a", "b"), 2)
        networks[name] = replace(model, anatomy=replace(model.anatomy, grid=(2, 2)))
    images = torch.zeros(2, 3, 2, 2)
    images[0, :, 0, 0] = images[1, :, 1, 1] = 1  # of the class a (4 against 1), and b (4 against 3)
    row = map_similarity_table(networks, images, ["saliency"])[0].iloc[0]
    assert row[["value", "low", "high", "other"]].tolist() == pytest.approx([0.6, -1, 1, -0.2])


def test_sentences_on_similarity():
    table = pd.DataFrame({"model": "pruned", "method": ["grad_cam", "saliency"]})
    table = table.assign(low=[0.6, 0.1], other=0.3)
    assert describe_similarity(table) == (
        "More alike than maps of different images: grad cam of *pruned*. Not shown to be more alike"
        " than those: saliency of *pruned*."
    )
    none, _ = map_similarity_table({"full": tiny_vit()}, digits(tiny_vit(), 1), ["saliency"])
    assert "no smaller network" in describe_similarity(none)
