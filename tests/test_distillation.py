"""What a student learns from a teacher, against formulas written out, and from the very same views."""

import contextlib
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from tests.toys import TINY, small_digits, tiny_hybrid, tiny_vit
from vitlab.compress.distillation import Distillation, born_again, distill
from vitlab.compress.inside import Reader, find_feature_layer
from vitlab.compress.students import finetune_student
from vitlab.data import ImageDataset, build_augmentation
from vitlab.explain.attention import record_attention
from vitlab.models import build_model
from vitlab.runs import Run, find_runs
from vitlab.training import finetune, fit, recipe
from vitlab.training.cache import FixedViews
from vitlab.training.stage import Stage

CPU = torch.device("cpu")
TWO_PROCESSES = """
from tests.test_distillation import quick, small_digits, tiny_vit
from vitlab.compress.distillation import Distillation
from vitlab.runs import Run
from vitlab.training import fit_on
histories = []
for processes in (1, 2):
    student, run = tiny_vit(), Run.create(name=f"by{processes}", dataset="digits", model="vit_scratch")
    loss = Distillation(tiny_vit(seed=1, embed_dim=32), features=1.0, attention=1.0)
    histories.append(fit_on(processes, student, small_digits(), run, quick(augment="none"), loss=loss)["train_loss"])
    assert run.facts["processes"] == processes
assert abs(histories[0] - histories[1]).max() < 1e-3 and histories[0][0] > histories[0][1], histories
"""
QUICK = {"epochs": 2, "batch_size": 32, "precision": "fp32", "flip": False}
DEIT = {"size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32}


def quick(**changes):
    return recipe("vit_scratch", **QUICK | changes)


def objective_for(teacher, student, config=None, **arguments):
    """A distillation made ready as `fit` does it."""
    objective, config = Distillation(teacher, **arguments), config or quick(class_weights="none")
    objective.prepare(student, small_digits(), config, 0)
    objective.build(small_digits(), config, CPU)
    objective.live = False
    return objective


def tiny_cnn():
    return build_model("efficientnet_lite0", small_digits().classes, pretrained=False, size=32)


def test_loss_against_the_formula_in_numbers():
    """KL((.8, .2) || (.5, .5)) = .8 ln 1.6 + .2 ln .4 = .19274; cross-entropy of even logits ln 2."""
    objective = objective_for(tiny_vit(seed=1), tiny_vit(), alpha=0.25, temperature=1.0)
    objective.labels.num_classes, objective.front.outputs.shapes = 2, {"logits": (2,)}
    told = torch.tensor([[0.8, 0.2]]).log()
    loss = objective.compute_loss(lambda _: {"logits": torch.zeros(1, 2)}, torch.zeros(1, 3, 4, 4), torch.tensor([0]), told)
    assert loss.item() == pytest.approx(0.75 * np.log(2) + 0.25 * 0.192745, abs=1e-5)


@pytest.mark.parametrize("hard", [False, True])
def test_loss_against_the_formula_in_numpy(hard):
    objective = objective_for(tiny_vit(seed=1), tiny_vit(), alpha=0.7, temperature=3.0, hard=hard)
    generator = np.random.default_rng(0)
    own, told, labels = generator.normal(size=(6, 10)), 2 * generator.normal(size=(6, 10)), generator.integers(0, 10, 6)

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)

    p, q = softmax(told / 3), softmax(own / 3)
    soft = -np.log(softmax(own))[range(6), told.argmax(axis=1)].mean() if hard else 9 * (p * np.log(p / q)).sum(axis=1).mean()
    expected = 0.3 * -np.log(softmax(own))[range(6), labels].mean() + 0.7 * soft
    student = {"logits": torch.tensor(own).float()}
    loss = objective.compute_loss(lambda _: student, torch.zeros(6, 3, 16, 16), torch.tensor(labels), torch.tensor(told).float())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_teachers_answers_are_mixed_as_the_labels_are():
    """The teacher's answers are the labels themselves here: hard distillation is then plain training, mixup included."""
    objective = objective_for(tiny_vit(seed=1), tiny_vit(), quick(class_weights="none", mixup=1.0), alpha=0.5, hard=True)
    labels, inputs = torch.tensor([3, 1, 4, 1]), torch.randn(4, 3, 16, 16)
    told = 20.0 * F.one_hot(labels, 10)
    losses = []
    for loss in (lambda *batch: objective.compute_loss(*batch, told), objective.labels):
        torch.manual_seed(1)
        module = (lambda x: {"logits": x.flatten(1)[:, :10]}) if not losses else (lambda x: x.flatten(1)[:, :10])
        losses.append(loss(module, inputs, labels).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.4, "ema": 0.9}, {"strategy": "last_blocks", "views": 2}])
def test_without_a_share_it_is_plain_training_step_for_step(changes):
    plain, student = tiny_vit(), tiny_vit()
    expected = fit(plain, small_digits(), config=quick(**changes))
    history = distill(tiny_vit(seed=7), student, small_digits(), config=quick(**changes), alpha=0.0)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    weights = student.module.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in plain.module.state_dict().items())


def test_a_teacher_that_is_the_student_teaches_nothing():
    student = tiny_vit()
    objective = objective_for(deepcopy(student), student, alpha=1.0, temperature=2.0, attention=1.0)
    images = torch.stack([item[0] for item in ImageDataset(small_digits(), "train", student.transform).__getitems__([0, 1, 2])])
    network, told = objective.wrap(student.module), objective.front(images)
    objective.compute_loss(network, images, torch.tensor([1, 2, 3]), told).backward()
    assert max(parameter.grad.abs().max() for parameter in student.module.parameters() if parameter.grad is not None) < 1e-6
    objective.compute_loss(network, images, torch.tensor([1, 2, 3]), told.roll(1, 0)).backward()
    assert student.module.head.weight.grad.abs().max() > 1e-5, "another answer would"


def open_stage(teacher, student, config, border=0, **arguments):
    objective = objective_for(teacher, student, config, **arguments)
    return objective, Stage(student, small_digits(), config, border, Accelerator(cpu=True), objective)


@pytest.mark.parametrize("augment", ["none", "strong"])
@pytest.mark.parametrize("views", [0, 3])
def test_teacher_sees_the_views_of_the_student(augment, views):
    """Cached rows are what the teacher says, live, of the student's own input; images to look at are the student's."""
    objective, stage = open_stage(tiny_vit(seed=3, embed_dim=32), tiny_vit(), quick(augment=augment), views=views)
    rows = set()
    for epoch in (1, 2, 3):
        stage.train_set.set_epoch(epoch)
        for image, _, position, more in stage.train_set.__getitems__([4, 9, 11]):
            if objective.live:
                torch.testing.assert_close(more, image)
            else:
                torch.testing.assert_close(more, objective.front(image[None])[0], atol=1e-5, rtol=1e-5)
            rows.add((position, round(more.sum().item(), 4)))
    assert objective.live == (augment == "strong" and views == 0)
    assert len(rows) == (3 if augment == "none" else 9), "views take turns"


def test_teacher_of_a_student_with_a_cached_front(reports_folder):
    student, config = tiny_hybrid(), recipe("hybrid_vit", **QUICK, views=2)
    border = 6
    objective, stage = open_stage(tiny_cnn(), student, config, border)
    images = FixedViews(small_digits(), "train", student.transform, build_augmentation("light", (32, 32), flip=False), 2)
    for epoch in (1, 2):
        stage.train_set.set_epoch(epoch)
        images.set_epoch(epoch)
        for (_, label, position, more), (image, same, _) in zip(
            stage.train_set.__getitems__([5, 6]), images.__getitems__([5, 6]), strict=True
        ):
            assert label == same and position in (5, 6)
            torch.testing.assert_close(more, objective.front(image[None])[0], atol=1e-4, rtol=1e-4)
    files = {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")}
    open_stage(tiny_cnn(), tiny_hybrid(), config, border)
    assert files == {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")}, "nothing is done twice"


def test_one_view_at_two_sizes():
    ramp = torch.arange(64.0)
    large = (torch.stack([ramp[:, None] + ramp, 2 * ramp[:, None] + 0 * ramp, 2 * ramp + 0 * ramp[:, None]])).to(torch.uint8)
    small = F.avg_pool2d(large.float(), 4).round().to(torch.uint8)
    same, other = build_augmentation("strong", (64, 64), drawn_for=(16, 16)), build_augmentation("strong", (64, 64))
    errors = {"same": [], "other": []}
    for seed in range(8):
        torch.manual_seed(seed)
        expected = build_augmentation("strong", (16, 16))(small).float()
        for name, augment in (("same", same), ("other", other)):
            torch.manual_seed(seed)
            errors[name].append((F.avg_pool2d(augment(large).float(), 4) - expected).abs().mean().item())
    assert max(errors["same"]) < 6 and np.mean(errors["same"]) < 0.4 * np.mean(errors["other"])


def test_features_of_a_cnn_at_another_size_and_grid():
    teacher, student = tiny_cnn(), tiny_vit()
    objective = objective_for(teacher, student, features=1.0)
    layer, _ = find_feature_layer(teacher.anatomy)
    channels = objective.front.outputs.shapes["features"][0]
    assert objective.front.outputs.shapes["features"] == (channels, 4, 4), "on the student's grid"
    kept = []
    hook = teacher.module.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    images = torch.randn(2, 3, 32, 32)
    told = objective.front.outputs.split(objective.front(images))
    hook.remove()
    torch.testing.assert_close(told["features"].mean(dim=1), torch.zeros(2, 4, 4), atol=1e-4, rtol=0)
    enlarged = F.interpolate(kept[0], size=(4, 4), mode="bilinear", antialias=True)
    z = (enlarged - enlarged.mean(1, keepdim=True)) / (enlarged.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(told["features"], z, atol=1e-4, rtol=1e-4)
    assert objective.module["projection"].weight.shape[:2] == (channels, 16)

    history = distill(teacher, student, small_digits(), config=quick(epochs=3, augment="none", learning_rate=3e-3), features=2.0)
    without = distill(tiny_cnn(), tiny_vit(), small_digits(), config=quick(epochs=3, augment="none", learning_rate=3e-3))
    assert history["train_loss"].diff().dropna().lt(0).all() and history["train_loss"][0] > without["train_loss"][0] + 1


def test_attention_is_where_the_read_tokens_look():
    model = tiny_vit(seed=2)
    images = torch.randn(3, 3, 16, 16)
    found = Reader(model.module, model, attention=True)(images)["attention"]
    torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(3))
    with record_attention(model.module, model.anatomy, layers=[-1]) as matrices:
        model.module(images)
    row = matrices[0].mean(dim=1)[:, 0, 1:]  # of the class token, to the patches
    torch.testing.assert_close(found.flatten(1), row / row.sum(dim=1, keepdim=True))
    averaging = build_model(
        "vit_tiny_patch16_224", small_digits().classes, pretrained=False, **DEIT, global_pool="avg", class_token=False
    )
    images = torch.randn(3, 3, 32, 32)
    found = Reader(averaging.module, averaging, attention=True)(images)["attention"]
    with record_attention(averaging.module, averaging.anatomy, layers=[-1]) as matrices:
        averaging.module(images)
    torch.testing.assert_close(found.flatten(1), matrices[0].mean(dim=(1, 2)))


@pytest.mark.parametrize("side", [16, 15], ids=["runs", "raises"])
def test_no_hook_is_left(side):
    model = tiny_vit()
    reader = Reader(model.module, model, features=True, attention=True)
    with contextlib.suppress(ValueError):  # 15 pixels cannot be cut into patches
        assert set(reader(torch.zeros(1, 3, side, side))) == {"logits", "features", "attention"}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


@pytest.mark.parametrize("strategy", ["full", "last_blocks"])
def test_distillation_token(strategy):
    """The class head learns from the labels alone, the other from the teacher alone."""
    config = recipe("deit", **QUICK, strategy=strategy, views=1)
    for alpha, still, moving in ((1.0, "head", "head_dist"), (0.0, "head_dist", "head")):
        student = build_model("deit_tiny_distilled_patch16_224", small_digits().classes, pretrained=False, **DEIT)
        before = deepcopy(student.module.state_dict())
        distill(tiny_vit(seed=1), student, small_digits(), config=replace(config, weight_decay=0.0), alpha=alpha)
        after = student.module.state_dict()
        assert torch.equal(before[f"{still}.weight"], after[f"{still}.weight"])
        assert not torch.equal(before[f"{moving}.weight"], after[f"{moving}.weight"])


def test_carries_on_with_its_projection():
    def train(name, stop=None):
        run = Run.create(name=name, dataset="digits", model="vit_scratch", seed=0)
        student = tiny_vit()

        def on_epoch(row):
            if row["epoch"] == stop:
                raise KeyboardInterrupt

        arguments = {"features": 1.0, "attention": 1.0, "on_epoch": on_epoch}
        config = quick(epochs=3, augment="none")
        history = distill(tiny_vit(seed=1, embed_dim=32), student, small_digits(), run, config, **arguments)
        return history.drop(columns="seconds"), student.module.state_dict(), run

    history, weights, run = train("whole")
    assert run.facts["distillation"]["teacher"] == "vit_scratch" and run.facts["distillation"]["features"] == 1.0
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop=2)
    resumed, same, _ = train("stopped")
    pd.testing.assert_frame_equal(resumed, history, check_exact=True)
    assert all(torch.equal(same[name], weights[name]) for name in weights)
    with pytest.raises(KeyboardInterrupt):
        train("other", stop=2)
    run = Run.create(name="other", dataset="digits", model="vit_scratch", seed=0)
    with pytest.raises(ValueError, match="belongs to another training"):
        fit(tiny_vit(), small_digits(), run, quick(epochs=3, augment="none"))


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ({"alpha": 1.5}, {}, "alpha=1.5 .* between 0 and 1"),
        ({"temperature": 0}, {}, "temperature must be above 0"),
        ({"features": -1.0}, {}, "features must not be negative"),
        ({}, {"mixup_rare": 0.2}, "mixup_rare=0.2 makes images that the teacher is not shown"),
        ({"features": 1.0}, {"mixup": 0.2}, "leave them out, or write mixup=0"),
        ({"attention": 1.0}, {"gradient_checkpointing": True}, "gradient_checkpointing=True hides"),
        ({"attention": 1.0}, {"strategy": "linear_probe"}, "is frozen, at least in the beginning"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(arguments, changes, message, reports_folder):
    with pytest.raises(ValueError, match=message):
        distill(tiny_vit(seed=1), tiny_vit(), small_digits(), config=quick(**changes), **arguments)
    assert not (reports_folder / "cache").exists()


def test_teachers_that_cannot_teach(reports_folder):
    student = tiny_vit()
    stranger = build_model("vit_scratch", [f"class {i}" for i in range(10)], **TINY)
    wide = build_model("vit_scratch", small_digits().classes, **{**TINY, "size": (16, 32)})
    for teacher, arguments, message in (
        (stranger, {}, r"teacher vit_scratch tells apart class 0, .*must have the student's classes"),
        (student, {}, "one module"),
        (wide, {}, r"16x32 pixels .* cannot be shown the same crop"),
        (tiny_cnn(), {"attention": 1.0}, r"\(cnn\) has no attention"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(teacher, student, small_digits(), config=quick(), **arguments)
    with pytest.raises(ValueError, match="patch_drop_rate=0"):
        distill(tiny_vit(1), tiny_vit(patch_drop_rate=0.5), small_digits(), config=quick(), features=1.0)
    with pytest.raises(ValueError, match="wrapped"):
        born_again(replace(student, options={"wrapped": True}), small_digits())
    assert not (reports_folder / "cache").exists()


def test_born_again_has_the_teachers_form_and_weights_of_its_own():
    teacher = tiny_vit(drop_rate=0.1)
    student, history = born_again(teacher, small_digits(), config=quick(epochs=1, augment="none"), alpha=0.3)
    assert student.options == teacher.options and len(history) == 1
    assert not torch.equal(student.module.patch_embed.proj.weight, teacher.module.patch_embed.proj.weight)


def test_a_student_of_a_run():
    one_epoch = QUICK | {"epochs": 1, "augment": "none"}
    teacher = finetune("digits", "vit_scratch", options=TINY, **one_epoch)
    run = finetune_student(teacher, "vit_scratch", seed=1, options=TINY, how={"alpha": 0.9}, **one_epoch)
    (found,) = find_runs("digits", seed=1)
    assert found.variant == "distilled from vit_scratch" and run.facts["distillation"]["alpha"] == 0.9
    ours, theirs = (one.read_table("splits.csv").set_index("sample_id")["split"] for one in (run, teacher))
    assert ours.equals(theirs), "no test image was shown to either"
    assert set(run.read_table("predictions.parquet")["split"]) == {"val", "test"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_distil_as_one_does():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    arguments = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    result = subprocess.run([sys.executable, "-c", TWO_PROCESSES], **arguments)
    assert result.returncode == 0, result.stderr[-3000:]
