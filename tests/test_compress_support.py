"""What a model supports is asked first: over families of timm, each step runs or has one sentence
that says why not.
"""

from dataclasses import replace

import pytest
import torch

from tests.toys import linear_digits, small_digits
from vitlab.compress.benchmark import size_on_disk
from vitlab.compress.curves import merging_curve_table, pruning_curve_table
from vitlab.compress.explanations import explanation_shift_table
from vitlab.compress.importance import part_importance_table
from vitlab.compress.pruning import plan_pruning, prune
from vitlab.compress.support import build_student, explain_skipped, export_networks, shared_methods
from vitlab.models import build_model

ASKED = {"keep": 0.34, "whole_blocks": True, "student": "hybrid_vit", "student_depth": 1}
NO_BLOCKS = {"pruning", "curve", "merging"}
MODELS = {  # name: pixels, steps that are skipped
    "vit_wee_patch16_reg1_gap_256": (48, {"merging"}),  # registers, mean of the tokens: C12
    "vit_tiny_patch16_224": (48, set()),
    "deit_tiny_distilled_patch16_224": (48, set()),
    "test_vit3": (48, {"merging"}),  # attention pooling
    "flexivit_small": (48, set()),
    "beit_base_patch16_224": (48, NO_BLOCKS),
    "eva02_tiny_patch14_224": (42, NO_BLOCKS),
    "cait_xxs24_224": (48, NO_BLOCKS),
    "convit_tiny": (48, NO_BLOCKS),
    "swin_tiny_patch4_window7_224": (64, NO_BLOCKS),
    "mobilevit_xxs": (64, NO_BLOCKS),
    "coat_lite_tiny": (64, NO_BLOCKS),
    "convnext_atto": (64, NO_BLOCKS),
    "xcit_nano_12_p16_224": (64, NO_BLOCKS),
    "levit_128s": (64, NO_BLOCKS),
    "mixer_s32_224": (64, NO_BLOCKS),
    "pit_ti_224": (64, NO_BLOCKS),
    "poolformer_s12": (64, NO_BLOCKS),
    "efficientnet_lite0": (64, NO_BLOCKS),
    "resnet10t": (64, NO_BLOCKS),
    "vit_scratch": (36, set()),
    "hybrid_vit": (48, set()),
}


def build(name, **options):
    """With weights that are nowhere zero: some families start with a head of zeros."""
    model = build_model(
        name, small_digits().classes, pretrained=False, size=MODELS[name][0], **options
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_each_step_runs_or_says_why_not(name):
    model, data = build(name), small_digits()
    skipped = explain_skipped(model, **ASKED)
    assert set(skipped) == MODELS[name][1]
    for sentence in skipped.values():
        assert " is skipped: " in sentence and sentence.endswith(".") and "\n" not in sentence
    if "pruning" not in skipped:
        importance = part_importance_table(model, kinds=("block",), measure="magnitude")
        small = prune(model, plan_pruning(model, importance, 0.34))
        assert 1 <= len(small.module.blocks) <= 0.34 * len(model.module.blocks)
    if "curve" not in skipped:
        weights = part_importance_table(model, kinds=("head", "neuron"), measure="magnitude")
        assert len(pruning_curve_table(model, data, {"weights": weights}, replicates=20)) == 3
    if "merging" not in skipped:
        assert (
            len(merging_curve_table(model, data, (0, 8), repeats=1, threads=1, replicates=20)) == 2
        )
    student = build_student("hybrid_vit", model, depth=1)
    assert student.transform == model.transform
    assert student.module(torch.zeros(1, 3, *model.transform.size)).shape == (1, 10)
    images = torch.randn(2, 3, *model.transform.size, generator=torch.Generator().manual_seed(0))
    networks = {"full": model, "distilled": student}
    methods, unable = shared_methods(networks, ["grad_cam", "saliency"], images[:1])
    assert len(methods) + len(unable) == 2 and "saliency" in methods
    assert all("are not compared: " in sentence for sentence in unable)
    assert set(explanation_shift_table(networks, images, methods)["method"]) == set(methods)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_wee_patch16_reg1_gap_256", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ],
)
def test_exports_of_other_families(name, options, tmp_path):
    files, table, skipped = export_networks(
        {"full": build(name, **options)}, tmp_path, small_digits()
    )
    assert set(files) == {"full, ONNX", "full, int8"} and not skipped
    assert table["network"].tolist() == ["full"] and table["float_nodes"][0] >= 0
    assert size_on_disk(files["full, int8"]) < 0.6 * size_on_disk(files["full, ONNX"])


def test_a_network_that_cannot_be_traced_is_named_and_leaves_no_old_file(tmp_path):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 10)

        def forward(self, images):
            logits = self.linear(images.mean((2, 3)))
            return logits if logits.sum() > 0 else -logits

    (tmp_path / "full.onnx").write_bytes(b"of an earlier run")
    networks = {
        "full": replace(linear_digits(), module=Branching().eval()),
        "linear": linear_digits(),
    }
    files, table, skipped = export_networks(networks, tmp_path, small_digits())
    assert set(files) == {"linear, ONNX", "linear, int8"} and table["network"].tolist() == [
        "linear"
    ]
    assert (
        len(skipped) == 1
        and skipped[0].startswith("ONNX of the full network is skipped: ")
        and skipped[0].endswith(".")
    )
    assert not (tmp_path / "full.onnx").exists()


def test_a_model_of_one_block_and_a_student_that_does_not_fit():
    model = build_model(
        "vit_scratch",
        small_digits().classes,
        size=16,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
    )
    skipped = explain_skipped(model, **ASKED)
    assert "cannot be reached" in skipped["pruning"] and "merging" not in skipped
    with pytest.raises(ValueError, match="unknown model"):
        build_student("hybrid_vitt", model)


def test_a_grey_teacher_gets_a_grey_student():
    model = build_model("vit_scratch", small_digits().classes, size=36, in_chans=1)
    student = build_student("hybrid_vit", model, depth=1)
    assert student.module(torch.zeros(1, 1, 36, 36)).shape == (1, 10)
