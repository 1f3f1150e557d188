import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from vitlab.data import ImageDataset, build_augmentation, load_dataset
from vitlab.models import build_model, load_model
from vitlab.runs import Run, find_runs
from vitlab.training import (
    FrozenFeatures,
    ensure_run,
    finetune,
    fit,
    predict,
    recipe,
    save_results,
    split_model,
    warmup_cosine,
)
from vitlab.training.loop import build_optimizer, score_logits
from vitlab.training.precision import choose_precision

TINY = {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def digits():
    """Every sixth of the digits, all classes and splits among them."""
    data = load_dataset("digits", seed=0)
    return load_dataset("digits", samples=data.samples.iloc[::6].reset_index(drop=True))


def tiny_vit(data, seed=0):
    return build_model("vit_scratch", data.classes, seed=seed, **TINY)


def tiny_hybrid(data):
    return build_model("hybrid_vit", data.classes, pretrained=False, size=32, embed_dim=64, depth=1)


def test_recipe_names_what_exists():
    assert recipe("hybrid_vit", epochs=3, learning_rate=None).epochs == 3
    assert recipe("hybrid_vit", learning_rate=None).learning_rate == recipe("hybrid_vit").learning_rate
    with pytest.raises(ValueError, match=r"unknown training argument 'epoch'.*epochs"):
        recipe("hybrid_vit", epoch=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        recipe("vit_scratch", batch_size=0)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        recipe("vit_scratch", precision="fp8")


def test_warmup_cosine_by_hand():
    assert [warmup_cosine(step, 3, 11) for step in (0, 1, 2, 3)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(7, 3, 11) == pytest.approx(0.5)
    assert warmup_cosine(11, 3, 11) == pytest.approx(0.0)


def test_fit_learns_and_keeps_the_best_epoch(digits):
    model = tiny_vit(digits)
    config = recipe("vit_scratch", epochs=20, batch_size=16, augment="none", learning_rate=5e-3, precision="fp32", patience=20)
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    history = fit(model, digits, run, config)
    assert list(history["epoch"]) == list(range(1, 21))
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] - 0.3
    best = history.loc[history["val_roc_auc"].idxmax()]
    predictions = predict(model, digits, splits=("val",))
    assert (predictions["pred"] == predictions["label"]).mean() == pytest.approx(best["val_accuracy"])
    assert run.facts["best_epoch"] == best["epoch"]
    pd.testing.assert_frame_equal(run.read_table("history.csv"), history, check_dtype=False, atol=1e-9)


def test_same_seed_same_history(digits):
    config = recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", seed=3)
    first, second = (fit(tiny_vit(digits), digits, config=config).drop(columns="seconds") for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    other = fit(tiny_vit(digits), digits, config=recipe("vit_scratch", epochs=2, batch_size=32, precision="fp32", seed=4))
    assert other["train_loss"].iloc[0] != first["train_loss"].iloc[0]


@pytest.mark.parametrize(
    "changes", [{"mixup": 0.4}, {"ema": 0.9}, {"label_smoothing": 0.1, "class_weights": False}, {"clip": 0.1}]
)
def test_each_ingredient_changes_the_training(digits, changes):
    plain = {"epochs": 2, "batch_size": 32, "precision": "fp32", "augment": "none"}
    without = fit(tiny_vit(digits), digits, config=recipe("vit_scratch", **plain))
    with_it = fit(tiny_vit(digits), digits, config=recipe("vit_scratch", **plain, **changes))
    assert np.isfinite(with_it["train_loss"]).all()
    assert abs(with_it["val_loss"].iloc[-1] - without["val_loss"].iloc[-1]) > 1e-6


def test_early_stopping(digits):
    config = recipe("vit_scratch", epochs=30, batch_size=32, learning_rate=1e-9, patience=2, augment="none", precision="fp32")
    assert len(fit(tiny_vit(digits), digits, config=config)) < 30


def test_weight_decay_spares_norms_biases_and_positions(digits):
    module = tiny_vit(digits).module
    optimizer, _ = build_optimizer(module, recipe("vit_scratch"), steps_per_epoch=10)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in decayed}
    assert names and all(name.endswith("weight") and "norm" not in name for name in names)


def test_nan_loss_names_samples_and_rate(digits):
    config = recipe("vit_scratch", epochs=3, batch_size=32, learning_rate=1e30, warmup_epochs=0, clip=1e30, precision="fp32")
    with pytest.raises(FloatingPointError, match=r"learning rate .* Samples of the batch: \S+"):
        fit(tiny_vit(digits), digits, config=config)


def test_unknown_monitor_and_piece(digits):
    with pytest.raises(ValueError, match=r"unknown monitor 'val_auc'.*val_roc_auc"):
        fit(tiny_vit(digits), digits, config=recipe("vit_scratch", monitor="val_auc"))
    with pytest.raises(ValueError, match=r"unknown piece to train from 'blok0'.*block0"):
        split_model(tiny_vit(digits).module, "blok0")


def test_frozen_part_and_trained_part_make_the_model(digits):
    model = tiny_hybrid(digits)
    frozen, trained = split_model(model.module.eval(), "embed")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trained(frozen(images)), model.module(images), atol=1e-5, rtol=1e-5)


def test_cached_features_are_the_frozen_outputs(digits, reports_folder):
    model = tiny_hybrid(digits)
    frozen, _ = split_model(model.module.eval(), "embed")
    augment = build_augmentation("strong", model.transform.size)
    features = FrozenFeatures(digits, "val", model, frozen, views=2, augment=augment)
    images = ImageDataset(digits, "val", model.transform)
    with torch.inference_mode():
        expected = frozen(torch.stack([images[i][0] for i in range(5)]))
    plain, augmented = (store.values[features.rows[:5]].float() for store in features.stores)
    size = expected.abs().max().item()
    torch.testing.assert_close(plain, expected, atol=0.02 * size, rtol=0.02)  # bfloat16 keeps 8 bits
    assert (augmented - plain).abs().max() > 0.1 * size
    drawn = torch.stack([features[0][0].float() for _ in range(20)])
    assert {bool(torch.equal(item, plain[0])) for item in drawn} == {True, False}, "both views are drawn"

    files = {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").iterdir()}
    again = FrozenFeatures(digits, "val", model, frozen, views=2, augment=augment)
    assert files == {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").iterdir()}, "nothing is computed twice"
    assert torch.equal(again.stores[1].values, features.stores[1].values)


def test_views_do_not_depend_on_the_order_of_filling(digits, tmp_path, monkeypatch):
    model = tiny_hybrid(digits)
    frozen, _ = split_model(model.module.eval(), "embed")
    augment = build_augmentation("strong", model.transform.size)
    views = []
    for first in ("val", "test"):
        monkeypatch.setenv("VITLAB_REPORTS", str(tmp_path / first))
        FrozenFeatures(digits, first, model, frozen, views=2, augment=augment)
        features = FrozenFeatures(digits, "val", model, frozen, views=2, augment=augment)
        views.append(features.stores[1].values[features.rows].clone())
    torch.testing.assert_close(views[0], views[1], atol=0.05, rtol=0.05)


def test_frozen_weights_do_not_move_and_the_rest_does(digits):
    model = tiny_hybrid(digits)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fit(model, digits, config=recipe("hybrid_vit", epochs=1, batch_size=32, views=1, precision="fp32"))
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
    assert scores["val_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores["val_roc_auc"] == pytest.approx(roc_auc_score(labels, (logits[:, 1] - logits[:, 0]).numpy()))
    assert scores["val_recall_yes"] == pytest.approx((predicted[labels == 1] == 1).mean())
    by_hand = -sum(row[label] - np.log(np.exp(row).sum()) for row, label in zip(logits.numpy(), labels, strict=True)) / 60
    assert scores["val_loss"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("amx", "avx512", "training", "expected"),
    [(True, True, True, "bf16"), (False, True, True, "fp32"), (False, True, False, "bf16"), (False, False, False, "fp32")],
)
def test_precision_follows_the_processor(monkeypatch, amx, avx512, training, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert choose_precision(torch.device("cpu"), training=training) == expected


def test_run_is_whole_or_no_result(digits, monkeypatch):
    model, config = tiny_vit(digits), recipe("vit_scratch", epochs=1, batch_size=32, precision="fp32")
    run = Run.create(dataset="digits", model="vit_scratch", seed=0)
    assert find_runs("digits") == []
    fit(model, digits, run, config)
    predictions = save_results(run, model, digits, config)
    found = find_runs("digits", model="vit_scratch", seed=0)
    assert [one.name for one in found] == [run.name]
    assert ensure_run("digits", "vit_scratch", 0).name == run.name
    reloaded = predict(load_model(run.path), load_dataset("digits", samples=run.read_table("splits.csv")))
    pd.testing.assert_frame_equal(reloaded, predictions, atol=1e-5)

    monkeypatch.setattr("vitlab.training.experiment.fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finetune("digits", "vit_scratch", seed=1)
    assert find_runs("digits", seed=1) == [] and len(find_runs("digits", status="failed", seed=1)) == 1
