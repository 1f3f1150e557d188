"""What a student learns from a teacher, against formulas written out, and from the very same
views.
"""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from tests.toys import TINY, small_digits, tiny_hybrid, tiny_vit
from vitlab.compress import distill
from vitlab.data import ImageDataset, build_augmentation
from vitlab.models import build_model
from vitlab.runs import Run
from vitlab.training import fit, recipe
from vitlab.training.cache import VIEW_SEED, _take_turns
from vitlab.training.loss import build_loss
from vitlab.training.stage import Stage
from vitlab.training.teacher import Teacher

CPU = torch.device("cpu")
TWO_PROCESSES = """
from tests.test_distillation import quick, small_digits, tiny_vit
from vitlab.runs import Run
from vitlab.training import fit_on
from vitlab.training.teacher import Teacher
histories = []
for processes in (1, 2):
    student, run = tiny_vit(), Run.create(name=f"by{processes}", dataset="digits", model="vit_scratch")
    teacher = Teacher(tiny_vit(seed=1, embed_dim=32))
    histories.append(fit_on(processes, student, small_digits(), run, quick(augment="none"), teacher=teacher)["train_loss"])
    assert run.facts["processes"] == processes
assert abs(histories[0] - histories[1]).max() < 1e-3, histories
"""  # noqa: E501
QUICK = {"epochs": 2, "batch_size": 32, "precision": "fp32", "flip": False}


def quick(**changes):
    return recipe("vit_scratch", **QUICK | changes)


def loss_for(config=None, **arguments):
    config = config or quick(class_weights="none")
    return build_loss(small_digits(), config, CPU, Teacher(tiny_vit(seed=1), **arguments))


def tiny_cnn():
    return build_model("efficientnet_lite0", small_digits().classes, pretrained=False, size=32)


def test_loss_against_the_formula_in_numbers():
    """KL((.8, .2) || (.5, .5)) = .8 ln 1.6 + .2 ln .4 = .19274; cross-entropy of even logits ln
    2.
    """
    compute_loss = loss_for(alpha=0.25, temperature=1.0)
    compute_loss.num_classes = 2
    teacher_logits = torch.tensor([[0.8, 0.2]]).log()
    batch = torch.zeros(1, 3, 4, 4), torch.tensor([0]), teacher_logits
    loss = compute_loss(lambda _: torch.zeros(1, 2), *batch)
    assert loss.item() == pytest.approx(0.75 * np.log(2) + 0.25 * 0.192745, abs=1e-5)


def test_loss_against_the_formula_in_numpy():
    compute_loss = loss_for(alpha=0.7, temperature=3.0)
    generator = np.random.default_rng(0)
    own, teacher_logits, labels = (
        generator.normal(size=(6, 10)),
        2 * generator.normal(size=(6, 10)),
        generator.integers(0, 10, 6),
    )

    def softmax(values):
        return np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)

    p, q = softmax(teacher_logits / 3), softmax(own / 3)
    soft = 9 * (p * np.log(p / q)).sum(axis=1).mean()
    expected = 0.3 * -np.log(softmax(own))[range(6), labels].mean() + 0.7 * soft
    batch = torch.zeros(6, 3, 16, 16), torch.tensor(labels), torch.tensor(teacher_logits).float()
    loss = compute_loss(lambda _: torch.tensor(own).float(), *batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_teachers_probabilities_are_mixed_as_the_labels_are():
    """A teacher that is sure of the labels, at temperature 1: KL is then the cross-entropy of plain
    training, mixup included, less the entropy of the mixed labels."""
    config = quick(class_weights="none", label_smoothing=0.0, mixup=1.0)
    compute_loss = loss_for(config, alpha=1.0, temperature=1.0)
    labels, inputs = torch.tensor([3, 1, 4, 1]), torch.randn(4, 3, 16, 16)
    sure = 200.0 * F.one_hot(labels, 10)
    torch.manual_seed(1)
    _, shares = compute_loss.mix(inputs)
    mixed = shares @ F.one_hot(labels, 10).float()
    losses = []
    for loss in (lambda *batch: compute_loss(*batch, sure), compute_loss):
        torch.manual_seed(1)
        losses.append(loss(lambda x: x.flatten(1)[:, :10], inputs, labels).item())
    entropy = -torch.xlogy(mixed, mixed).sum(dim=1).mean().item()
    assert losses[0] == pytest.approx(losses[1] - entropy, rel=1e-5) and entropy > 0.01


@pytest.mark.parametrize(
    "changes", [{}, {"mixup": 0.4, "ema": 0.9}, {"strategy": "last_blocks", "views": 2}]
)
def test_without_a_share_it_is_plain_training_step_for_step(changes):
    plain, student = tiny_vit(), tiny_vit()
    expected = fit(plain, small_digits(), config=quick(**changes))
    history = distill(tiny_vit(seed=7), student, small_digits(), config=quick(**changes), alpha=0.0)
    pd.testing.assert_frame_equal(
        history.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True
    )
    weights = student.module.state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in plain.module.state_dict().items()
    )


def open_stage(teacher, student, config, border=0):
    chosen = Teacher(teacher)
    return Stage(student, small_digits(), config, border, Accelerator(cpu=True), chosen)


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_teacher_sees_the_views_of_the_student(augment):
    """Cached rows are what the teacher says, live, of the student's own input; images to look at
    are the student's.
    """
    stage = open_stage(tiny_vit(seed=3, embed_dim=32), tiny_vit(), quick(augment=augment))
    rows = set()
    for epoch in (1, 2, 3):
        stage.train_set.set_epoch(epoch)
        for image, _, position, more in stage.train_set.__getitems__([4, 9, 11]):
            if stage.train_set.live:
                torch.testing.assert_close(more, image)
            else:
                torch.testing.assert_close(
                    more, stage.train_set.front(image[None])[0], atol=1e-5, rtol=1e-5
                )
            rows.add((position, round(more.sum().item(), 4)))
    assert stage.train_set.live == (augment == "strong")
    assert len(rows) == (3 if augment == "none" else 9), "views take turns"


def test_teacher_of_a_student_with_a_cached_front(reports_folder):
    student, config = tiny_hybrid(), recipe("hybrid_vit", **QUICK, views=2)
    border = 6
    stage = open_stage(tiny_cnn(), student, config, border)
    light = build_augmentation("light", (32, 32), flip=False)
    views = [
        ImageDataset(small_digits(), "train", student.transform, augment, seed=VIEW_SEED)
        for augment in (None, light)
    ]
    for epoch in (1, 2):
        stage.train_set.set_epoch(epoch)
        found = {
            position: (label, more)
            for _, label, position, more in stage.train_set.__getitems__([5, 6])
        }
        for view, chosen in _take_turns([5, 6], epoch, 2):
            views[view].set_epoch(view)
            for image, same, position in views[view].__getitems__([[5, 6][i] for i in chosen]):
                label, more = found[position]
                assert label == same
                torch.testing.assert_close(
                    more, stage.train_set.front(image[None])[0], atol=1e-4, rtol=1e-4
                )
    files = {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")}
    open_stage(tiny_cnn(), tiny_hybrid(), config, border)
    assert files == {
        path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")
    }, "nothing is done twice"


def test_one_view_at_two_sizes():
    ramp = torch.arange(64.0)
    large = (
        torch.stack(
            [ramp[:, None] + ramp, 2 * ramp[:, None] + 0 * ramp, 2 * ramp + 0 * ramp[:, None]]
        )
    ).to(torch.uint8)
    small = F.avg_pool2d(large.float(), 4).round().to(torch.uint8)
    same, other = (
        build_augmentation("strong", (64, 64), drawn_for=(16, 16)),
        build_augmentation("strong", (64, 64)),
    )
    errors = {"same": [], "other": []}
    for seed in range(8):
        torch.manual_seed(seed)
        expected = build_augmentation("strong", (16, 16))(small).float()
        for name, augment in (("same", same), ("other", other)):
            torch.manual_seed(seed)
            errors[name].append(
                (F.avg_pool2d(augment(large).float(), 4) - expected).abs().mean().item()
            )
    assert max(errors["same"]) < 6 and np.mean(errors["same"]) < 0.4 * np.mean(errors["other"])


def test_a_run_that_was_stopped_carries_on():
    def train(name, stop=None):
        run = Run.create(name=name, dataset="digits", model="vit_scratch", seed=0)
        student = tiny_vit()

        def on_epoch(row):
            if row["epoch"] == stop:
                raise KeyboardInterrupt

        teacher = Teacher(tiny_vit(seed=1, embed_dim=32))
        history = fit(
            student,
            small_digits(),
            run,
            quick(epochs=3, augment="none"),
            teacher=teacher,
            on_epoch=on_epoch,
        )
        return history.drop(columns="seconds"), student.module.state_dict(), run

    history, weights, _ = train("whole")
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
        ({}, {"mixup_rare": 0.2}, "mixup_rare=0.2 makes images that the teacher is not shown"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    arguments, changes, message, reports_folder
):
    with pytest.raises(ValueError, match=message):
        distill(tiny_vit(seed=1), tiny_vit(), small_digits(), config=quick(**changes), **arguments)
    assert not (reports_folder / "cache").exists()


def test_teachers_that_cannot_teach(reports_folder):
    student = tiny_vit()
    stranger = build_model("vit_scratch", [f"class {i}" for i in range(10)], **TINY)
    wide = build_model("vit_scratch", small_digits().classes, **{**TINY, "size": (16, 32)})
    for teacher, message in (
        (stranger, r"teacher vit_scratch distinguishes class 0, .*must have the student's classes"),
        (student, "the same module"),
        (wide, r"16x32 pixels .* cannot be shown the same crop"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(teacher, student, small_digits(), config=quick())
    assert not (reports_folder / "cache").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_distil_as_one_does():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    arguments = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    result = subprocess.run([sys.executable, "-c", TWO_PROCESSES], **arguments)
    assert result.returncode == 0, result.stderr[-3000:]
