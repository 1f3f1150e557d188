import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from tests.toys import TINY, small_digits, tiny_hybrid, tiny_vit
from vitlab.data import load_dataset
from vitlab.data.balance import class_weights
from vitlab.data.sources import DATASETS
from vitlab.errors import UserError
from vitlab.models import build_model, load_model
from vitlab.run_folders import runs_folder
from vitlab.runs import PROMISED, Run, find_runs
from vitlab.training import ensure_run, fit, fit_options, predict, recipe, save_results
from vitlab.training.devices import choose_precision, resolve_precision
from vitlab.training.experiment import finetune
from vitlab.training.loop import _list_tensors
from vitlab.training.scores import score_logits
from vitlab.training.strategy import MovingAverage

ROOT = Path(__file__).parents[1]
COAT = {"epochs": 1, "batch_size": 256, "augment": "none", "ema": 0.5}


@pytest.fixture
def digits():
    return small_digits()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategy": "lineer_probe"},
            "unknown strategy 'lineer_probe'. Did you mean 'linear_probe'",
        ),
        ({"strategy": "from_stage"}, "train_from=''"),
        ({"strategy": "full", "train_from": "head"}, "does not go with strategy='full'"),
        ({"batch_size": 10, "accumulation": 4}, "cannot be computed in 4 equal parts"),
        ({"layer_decay": 1.5}, "layer_decay must be between 0 and 1"),
        ({"mixup": -1}, "mixup must not be negative"),
        ({"tracker": "tensorbord"}, "Did you mean 'tensorboard'"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": "1e-3"}, "learning_rate must be of type float, like 0.0001, not '1e-3'"),
        ({"epochs": 2.5}, "epochs must be of type int"),
    ],
)
def test_recipe_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe("vit_scratch", **arguments)


def test_recipe_of_another_strategy_drops_the_piece():
    assert recipe("hybrid_vit").train_from == "stem.stage4"
    assert recipe("hybrid_vit", strategy="full").train_from == ""
    assert recipe("vit_scratch", train_from="head").strategy == "from_stage"


def test_recipe_names_what_exists():
    assert recipe("hybrid_vit", epochs=3, learning_rate=None).epochs == 3
    assert (
        recipe("hybrid_vit", learning_rate=None).learning_rate == recipe("hybrid_vit").learning_rate
    )
    with pytest.raises(ValueError, match=r"unknown training argument 'epoch'.*epochs"):
        recipe("hybrid_vit", epoch=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        recipe("vit_scratch", batch_size=0)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        recipe("vit_scratch", precision="fp8")


def test_fit_learns_and_keeps_the_best_epoch(digits):
    model = tiny_vit()
    config = recipe(
        "vit_scratch",
        epochs=20,
        batch_size=16,
        augment="none",
        learning_rate=5e-3,
        precision="fp32",
        patience=20,
    )
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    history = fit(model, digits, run, config)
    assert list(history["epoch"]) == list(range(1, 21))
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] - 0.3
    best = history.loc[history["val_roc_auc"].idxmax()]
    predictions = predict(model, digits, splits=("val",))
    assert (predictions["pred"] == predictions["label"]).mean() == pytest.approx(
        best["val_accuracy"]
    )
    assert run.facts["best_epoch"] == best["epoch"]
    pd.testing.assert_frame_equal(
        run.read_table("history.csv"), history, check_dtype=False, atol=1e-9
    )


def test_same_seed_same_history(digits):
    config = recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", seed=3)
    first, second = (
        fit(tiny_vit(), digits, config=config).drop(columns="seconds") for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, second)
    other = fit(
        tiny_vit(),
        digits,
        config=recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", seed=4),
    )
    assert other["train_loss"].iloc[0] != first["train_loss"].iloc[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"ema": 0.9},
        {"label_smoothing": 0.1},
        {"class_weights": "none"},
        {"clip": 0.1},
        {"weight_decay": 0.5},
        {"augment": "light"},
    ],
)
def test_each_ingredient_changes_the_training(digits, changes):
    plain = {"epochs": 2, "batch_size": 32, "precision": "fp32", "augment": "none"}
    # uneven
    digits = replace(
        digits,
        samples=digits.samples.drop(digits.samples.index[digits.samples["label"] == "3"][:20]),
    )
    without = fit(tiny_vit(), digits, config=recipe("vit_scratch", **plain))
    with_it = fit(tiny_vit(), digits, config=recipe("vit_scratch", **{**plain, **changes}))
    assert np.isfinite(with_it["train_loss"]).all()
    assert abs(with_it["val_loss"].iloc[-1] - without["val_loss"].iloc[-1]) > 1e-6


def test_bf16_is_another_rounding_of_the_same_training(digits):
    config = recipe("vit_scratch", epochs=3, batch_size=32, augment="none", precision="fp32")
    fp32, bf16 = (
        fit(tiny_vit(), digits, config=replace(config, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert not fp32["train_loss"].equals(bf16["train_loss"])
    np.testing.assert_allclose(bf16["train_loss"], fp32["train_loss"], atol=0.01)


def test_compile_reaches_the_trained_part_only(digits, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    fit(
        tiny_vit(),
        digits,
        config=recipe(
            "vit_scratch", epochs=1, compile=True, strategy="last_blocks", precision="fp32"
        ),
    )
    (trained,) = compiled
    assert len(trained) == 3, "a block, the neck and the head"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers start slowly")
def test_loader_workers_change_nothing(digits, monkeypatch):
    config = recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", augment="strong")
    without = fit(tiny_vit(), digits, config=config).drop(columns="seconds")
    monkeypatch.setattr("vitlab.training.loop.count_loader_workers", lambda device: 2)
    pd.testing.assert_frame_equal(
        fit(tiny_vit(), digits, config=config).drop(columns="seconds"), without
    )


def test_early_stopping(digits):
    config = recipe(
        "vit_scratch",
        epochs=30,
        batch_size=32,
        learning_rate=1e-9,
        patience=2,
        augment="none",
        precision="fp32",
    )
    assert len(fit(tiny_vit(), digits, config=config)) < 30


def test_nan_loss_names_samples_and_rate(digits):
    config = recipe(
        "vit_scratch",
        epochs=3,
        batch_size=32,
        learning_rate=1e30,
        warmup_epochs=0,
        clip=1e30,
        precision="fp32",
    )
    with pytest.raises(FloatingPointError, match=r"learning rate .* Samples of the batch: \S+"):
        fit(tiny_vit(), digits, config=config)


def test_validation_that_is_no_number_gives_the_same_advice(digits):
    config = recipe(
        "vit_scratch",
        epochs=3,
        batch_size=10_000,
        learning_rate=1e30,
        warmup_epochs=0,
        clip=0.0,
        precision="fp32",
    )
    with pytest.raises(
        UserError,
        match=r"outputs for validation images .* epoch 1 .* Try a learning_rate ten times smaller",
    ):
        # one step an epoch: its loss is still finite, and its weights are not
        fit(tiny_vit(), digits, config=config)


@pytest.mark.parametrize(
    ("name", "flip"),
    [("digits", False), ("planted:digits", False), ("shuffled:digits", False), ("elpv", True)],
)
def test_recipes_mirror_only_what_may_be_mirrored(name, flip):
    source = DATASETS[name]()
    data = replace(small_digits(), flip=source.flip)
    for model in ("vit_scratch", "hybrid_vit", "resnet18"):
        assert recipe(model, data).flip == recipe(model).flip * flip
        assert recipe(model, data, flip=True).flip and not recipe(model, data, flip=False).flip


def test_a_dataset_tells_whether_it_may_be_mirrored(mnist_files):
    assert not load_dataset("digits").flip and not load_dataset("planted:digits").flip
    assert not DATASETS["torchvision:MNIST"]().flip


def test_vit_scratch_is_fitted_to_small_images():
    digits = load_dataset("digits")
    config, images = recipe("vit_scratch", digits), len(digits.split("train"))
    assert config.epochs * (images // config.batch_size) >= 600
    assert recipe("vit_scratch", digits, epochs=2, batch_size=8).epochs == 2
    assert recipe("vit_scratch", digits, batch_size=8).epochs == 8  # no fewer than on large images
    assert recipe("hybrid_vit", digits).epochs == recipe("hybrid_vit").epochs
    assert fit_options("vit_scratch", digits, {"depth": 2}) == {"depth": 2, "size": 48}
    assert (
        fit_options("vit_scratch", digits, TINY) == TINY
        and fit_options("hybrid_vit", digits, {}) == {}
    )
    large = replace(digits, read=lambda sample_id: Image.new("L", (300, 300)))
    assert (
        recipe("vit_scratch", large) == recipe("vit_scratch", flip=False)
        and fit_options("vit_scratch", large, {}) == {}
    )


def test_a_short_training_by_recipe_is_far_above_chance():
    """198 steps of a small ViT on the digits (chance: 0.1)."""
    digits = load_dataset("digits")
    model = build_model(
        "vit_scratch", digits.classes, size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2
    )
    history = fit(
        model,
        digits,
        config=recipe("vit_scratch", digits, epochs=6, learning_rate=3e-3, precision="fp32"),
    )
    assert history["val_balanced_accuracy"].max() > 0.4


def test_tensors_that_modules_share_are_trained_saved_and_averaged(digits):
    """CoaT shares its position encodings between blocks; saving failed, and the average took them
    in once for each block.
    """
    run = finetune("digits", "coat_lite_tiny", options={"size": 32, "pretrained": False}, **COAT)
    model = load_model(run.path)
    table = predict(
        model, load_dataset("digits", samples=run.read_table("splits.csv")), splits=("test",)
    )
    kept = run.read_table("predictions.parquet").query("split == 'test'")
    assert (table["pred"].to_numpy() == kept["pred"].to_numpy()).all()
    assert model.module.cpe1.proj.weight is model.module.serial_blocks1[1].cpe.proj.weight


def test_the_average_takes_in_a_shared_tensor_once():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    names = _list_tensors(module, module)
    average = MovingAverage(module, 0.5, names)
    before = module[0].weight.detach().clone()
    module[0].weight.data += 1
    average.update(100)
    torch.testing.assert_close(average.module[0].weight, before + 0.5)
    assert len(names) == 3  # one weight, two biases


def test_the_validation_loss_has_the_class_weights_of_the_training_loss(digits):
    logits, labels = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([0, 0, 1])
    losses = -logits.log_softmax(dim=1)[range(3), labels]
    weight = torch.tensor([0.75, 1.5])
    # over images, as the training loss is
    expected = (0.75 * losses[0] + 0.75 * losses[1] + 1.5 * losses[2]) / 3
    assert score_logits(logits, labels, ("a", "b"), weight)["val_loss"] == pytest.approx(
        expected.item()
    )
    uneven = digits.samples[
        ~((digits.samples["split"] == "train") & (digits.samples["label"] == "0"))
        | (digits.samples.index % 5 == 0)
    ]
    config = recipe(
        "vit_scratch",
        epochs=1,
        batch_size=10_000,
        learning_rate=1e-9,
        precision="fp32",
        augment="none",
    )
    history = fit(tiny_vit(), replace(digits, samples=uneven), config=config)
    weights = class_weights(
        uneven.query("split == 'train'")["label"], digits.classes, "balanced", 0.999
    )
    counts = uneven.query("split == 'val'")["label"].map(
        dict(zip(digits.classes, weights, strict=True))
    )
    assert history["val_loss"].iloc[0] == pytest.approx(
        np.log(10) * counts.mean(), rel=0.05
    )  # an untrained model says 0.1 of each


def test_what_does_not_fit_is_refused_before_anything_is_computed(digits, reports_folder):
    model = tiny_vit()
    for changes, message in (
        ({"monitor": "val_auc"}, r"unknown monitor 'val_auc'.*val_roc_auc"),
        ({"train_from": "blok0"}, r"unknown stage to train from 'blok0'.*block0"),
        (
            {"strategy": "last_blocks", "last_blocks": 4},
            "last_blocks=4, but the model has 3 blocks",
        ),
        ({"precision": "fp16"}, r"precision='fp16' needs a GPU.*'bf16' or 'fp32'"),
        ({"accumulation": 300, "batch_size": 600}, "cannot be cut into 300"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, digits, config=recipe("vit_scratch", **changes))
    other = build_model("vit_scratch", ("a", "b"), **TINY)
    with pytest.raises(ValueError, match=r"tells apart a, b, but digits has the classes 0, 1"):
        fit(other, digits)
    assert not (reports_folder / "cache").exists()


def test_frozen_weights_do_not_move_and_the_rest_does(digits):
    model = tiny_hybrid()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fit(
        model,
        digits,
        config=recipe("hybrid_vit", epochs=1, batch_size=32, views=1, precision="fp32"),
    )
    after = model.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in moved if name.startswith("stem")} == {"stage4"}, (
        "the recipe trains the stem's last stage"
    )
    assert {"head.weight", "blocks.0.attn.qkv.weight", "pos_embed", "cls_token"} <= moved
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_score_logits_against_scikit_learn():
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 2, 60), torch.tensor(generator.normal(size=(60, 2)))
    scores = score_logits(logits, labels, ("no", "yes"))
    predicted = logits.argmax(dim=1).numpy()
    assert scores["val_balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )
    assert scores["val_roc_auc"] == pytest.approx(
        roc_auc_score(labels, (logits[:, 1] - logits[:, 0]).numpy())
    )
    assert scores["val_recall_yes"] == pytest.approx((predicted[labels == 1] == 1).mean())
    by_hand = (
        -sum(
            row[label] - np.log(np.exp(row).sum())
            for row, label in zip(logits.numpy(), labels, strict=True)
        )
        / 60
    )
    assert scores["val_loss"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("amx", "avx512", "forward", "wide", "narrow"),
    [
        (True, True, "bf16", "bf16", "fp32"),
        (False, True, "bf16", "fp32", "fp32"),
        (False, False, "fp32", "fp32", "fp32"),
    ],
)
def test_precision_follows_the_processor_and_the_model(
    monkeypatch, amx, avx512, forward, wide, narrow
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    cpu = torch.device("cpu")
    assert choose_precision(cpu) == forward
    assert (
        resolve_precision("auto", cpu, nn.Sequential(nn.Linear(384, 384), nn.Linear(384, 10)))
        == wide
    )
    assert (
        resolve_precision("auto", cpu, nn.Sequential(nn.Linear(384, 384), nn.Conv2d(384, 384, 3)))
        == narrow
    )
    assert resolve_precision("auto", cpu, tiny_vit().module) == narrow


def test_run_is_whole_or_no_result(digits, monkeypatch):
    model, config = tiny_vit(), recipe("vit_scratch", epochs=1, batch_size=32, precision="fp32")
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    assert find_runs("digits") == []
    fit(model, digits, run, config)
    predictions = save_results(run, model, digits)
    found = find_runs("digits", model="vit_scratch", seed=0)
    assert [one.name for one in found] == [run.name]
    assert ensure_run("digits", "vit_scratch", 0).name == run.name
    reloaded = predict(
        load_model(run.path), load_dataset("digits", samples=run.read_table("splits.csv"))
    )
    pd.testing.assert_frame_equal(reloaded, predictions, atol=1e-5)

    monkeypatch.setattr(
        "vitlab.training.experiment.fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        finetune("digits", "vit_scratch", seed=1)
    assert (
        find_runs("digits", seed=1) == [] and len(find_runs("digits", status="failed", seed=1)) == 1
    )


def test_predictions_are_those_of_the_model_that_is_kept(digits):
    """The cache of a frozen part is rounded to bfloat16; what is kept and judged is not."""
    model, config = (
        tiny_vit(),
        recipe("vit_scratch", epochs=1, batch_size=32, strategy="linear_probe"),
    )
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    fit(model, digits, run, config)
    predictions = save_results(run, model, digits)
    reloaded = predict(load_model(run.path), digits)
    pd.testing.assert_frame_equal(reloaded, predictions, atol=1e-6, rtol=0)


def test_a_run_with_a_variant_is_not_the_usual_one(monkeypatch):
    monkeypatch.setattr("vitlab.training.experiment.finetune", lambda *_: "trained")
    Run.create(dataset="digits", model="vit_scratch", seed=0, variant="smote").finish()
    assert ensure_run("digits", "vit_scratch") == "trained"
    (run,) = find_runs("digits")
    assert ensure_run("digits", "vit_scratch", name=run.name).variant == "smote", (
        "by its name it is found"
    )


def test_a_name_never_starts_a_training_run(monkeypatch, reports_folder):
    monkeypatch.setattr(
        "vitlab.training.experiment.finetune", lambda *_, **__: pytest.fail("trained")
    )
    with pytest.raises(
        UserError,
        match=f"unknown run_name 'first'.*none yet.*finished runs in {runs_folder('digits')}",
    ):
        ensure_run("digits", "vit_scratch", name="first")
    assert not reports_folder.exists()
    Run.create(name="first-try", dataset="digits", model="vit_scratch", seed=0).finish()
    Run.create(name="unfinished", dataset="digits", model="vit_scratch", seed=0)
    Run.create(name="other seed", dataset="digits", model="vit_scratch", seed=1).finish()
    with pytest.raises(
        UserError,
        match=r"unknown run_name 'first-tyr'\. Did you mean first-try.*Leave run_name empty",
    ):
        ensure_run("digits", "vit_scratch", name="first-tyr")
    with pytest.raises(
        UserError, match=r"run unfinished in .* cannot be used here: its status is running"
    ):
        ensure_run("digits", "vit_scratch", name="unfinished")
    with pytest.raises(UserError, match="it has seed 1 instead of 0"):
        ensure_run("digits", "vit_scratch", name="other seed")
    with pytest.raises(UserError, match="it has model 'vit_scratch' instead of 'hybrid_vit'"):
        ensure_run("digits", "hybrid_vit", name="first-try")
    with pytest.raises(UserError, match="write one plain folder name"):
        ensure_run("digits", "vit_scratch", name="../x")
    assert ensure_run("digits", "vit_scratch", name="first-try").name == "first-try"


def test_a_run_is_done_only_with_all_its_files(digits):
    """The kernel was restarted after the training, then all cells were run: no epoch is left, and
    history.csv is there again.
    """
    config = recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32")
    parameters = {"dataset": "digits", "model": "vit_scratch", "seed": 0}
    history = fit(tiny_vit(), digits, Run.create(**parameters), config)
    model, run = tiny_vit(), Run.create(**parameters)
    again = fit(model, digits, run, config)
    save_results(run, model, digits)
    assert find_runs("digits")[0].problem == "" and len(again) == 2
    pd.testing.assert_frame_equal(run.read_table("history.csv"), history, check_dtype=False)
    for file in PROMISED["03_finetune"]:
        content = (run.path / file).read_bytes()
        (run.path / file).unlink()
        with pytest.warns(UserWarning, match=f"is left out: {file} is missing"):
            assert find_runs("digits") == []
        with pytest.raises(UserError, match=f"not complete: {file} is missing"):
            Run(run.path).finish(PROMISED["03_finetune"])
        (run.path / file).write_bytes(content)
    assert len(find_runs("digits")) == 1


def train_again(stop=None):
    """Four epochs into the run of these parameters."""
    data, model = small_digits(), tiny_vit()
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    config = recipe("vit_scratch", epochs=4, batch_size=32, precision="fp32")
    history = fit(model, data, run, config, on_epoch=stop)
    save_results(run, model, data)
    return run, history


def kill_in_epoch_three(row):
    if row["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_finished_run_survives_when_its_replacement_is_killed_and_the_replacement_goes_on():
    first, history = train_again()
    (first.path / "notebooks").mkdir()
    start = first.info["start_s"]
    code = "from tests.test_training import *; train_again(kill_in_epoch_three)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (kept,) = find_runs("digits")
    assert kept.info["start_s"] == start and kept.problem == ""
    epochs = []
    second, again = train_again(lambda row: epochs.append(row["epoch"]))
    assert epochs == [4], "from the checkpoint"
    (found,) = find_runs("digits")
    assert found.path == first.path == second.path and found.info["start_s"] > start
    assert (found.path / "notebooks").is_dir() and not (found.path / "checkpoints").exists()
    assert again["val_loss"].tolist() == history["val_loss"].tolist()
