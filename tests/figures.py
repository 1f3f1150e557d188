"""One example of every figure, from small tables of the form that the package makes: the contract
test draws them all, and so can you, to look at them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from scipy.special import softmax

from vitlab import evaluation, plots
from vitlab.schema import AttributionMap

CLASSES = ("functional", "defective")
DIGITS = tuple("0123456789")
METHODS = ("grad_cam", "rollout", "integrated_gradients", "random")
MODELS = ("efficientnet_lite0", "hybrid_vit", "vit_scratch")
RUN_METRIC = "metrics.roc_auc"
RUN_COLUMNS = ["model", "parameters.learning_rate", "parameters.strategy"]


def with_interval(table, value="value", half=0.05):
    return table.assign(low=table[value] - half, high=table[value] + half)


def make_predictions(classes=CLASSES, images=240, seed=0):
    """Later classes are easier. Half of the images are of the test split."""
    random = np.random.default_rng(seed)
    label = np.tile(np.arange(len(classes)), -(-images // len(classes)))[:images]
    logits = random.normal(size=(images, len(classes)))
    logits[np.arange(images), label] += np.linspace(1.5, 3, len(classes))[label]
    prob = softmax(logits, axis=1)
    names = np.array(classes)
    table = {
        "sample_id": [f"s{i:04d}" for i in range(images)],
        "split": np.where(np.arange(images) < images // 2, "val", "test"),
        "group": np.array(["mono", "poly"])[(np.arange(images) // 3) % 2],
        "label": names[label],
        "pred": names[prob.argmax(axis=1)],
    }
    columns = [f"logit_{name}" for name in classes] + [f"prob_{name}" for name in classes]
    numbers = pd.DataFrame(np.hstack([logits, prob]), columns=columns)
    return pd.concat([pd.DataFrame(table), numbers], axis=1)


def make_samples(images=60):
    random = np.random.default_rng(1)
    table = pd.DataFrame({"sample_id": [f"s{i}" for i in range(images)]})
    table["label"] = random.choice(CLASSES, images, p=[0.7, 0.3])
    table["group"] = random.choice(["mono", "poly"], images)
    table["split"] = random.choice(["train", "val", "test"], images)
    return table


def make_image_table(samples):
    random = np.random.default_rng(2)
    table = samples[["sample_id"]].assign(width=30, height=30)
    return table.assign(mean=random.uniform(0.2, 0.8, len(table)), std=random.uniform(0, 0.3))


def make_history(epochs=6, offset=0.0, classes=CLASSES):
    epoch = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1 / epoch + 0.1})
    recalls = [f"val_recall_{name}" for name in classes]
    for place, name in enumerate(
        ["val_accuracy", "val_balanced_accuracy", "val_roc_auc", *recalls]
    ):
        history[name] = 0.5 + 0.05 * epoch + offset - 0.02 * place
    return history


def make_runs_metrics():
    rows = [
        (model, seed, metric, 0.8 + 0.03 * seed + 0.02 * place)
        for place, model in enumerate(MODELS)
        for seed in (0, 1)
        for metric in ("roc_auc", "f1", "accuracy")
    ]
    return pd.DataFrame(rows, columns=["model", "seed", "metric", "value"])


def make_cost():
    table = make_runs_metrics().query("metric == 'roc_auc'").rename(columns={"value": "roc_auc"})
    return table.assign(training_seconds=[9, 12, 40, 45, 300, 320], parameters=2_000_000)


def make_ranking():
    scores = {
        "model": ["vit", "cnn"],
        "value": [0.92, 0.9],
        "low": [0.9, 0.87],
        "high": [0.94, 0.93],
    }
    return pd.DataFrame(scores)


def make_differences():
    rows = [
        ("a", "b", 0.05, "b better"),
        ("a", "c", -0.01, "no difference shown"),
        ("b", "c", np.nan, "too few images"),
    ]
    table = pd.DataFrame(rows, columns=["model_a", "model_b", "difference", "verdict"])
    table = table.assign(metric="accuracy", value_a=0.8, value_b=0.8)
    return with_interval(table, "difference", 0.02)


def make_imbalance():
    rows = [
        (model, metric, value, value - 0.02, value + 0.03)
        for model, value in (("plain", 0.0), ("smote", 0.05), ("focal", -0.03))
        for metric in ("f1", "accuracy", "balanced_accuracy")
    ]
    table = pd.DataFrame(rows, columns=["model", "metric", "difference", "lowest", "highest"])
    plain = table["model"] == "plain"
    table.loc[plain, ["lowest", "highest"]] = 0
    return table


def make_benchmark():
    rows = [
        ("full", 40, 90, 0.90),
        ("pruned", 30, 60, 0.89),
        ("int8", 12, 23, 0.895),
        ("int8 pruned", 14, 16, 0.88),
    ]
    table = pd.DataFrame(rows, columns=["variant", "p50_ms", "size_mb", "value"])
    table = with_interval(table, half=0.02).assign(metric="balanced_accuracy", threads=2)
    slow = table.assign(batch_size=32, p50_ms=20 * table["p50_ms"])
    return pd.concat([table.assign(batch_size=1), slow], ignore_index=True)


def make_pruning():
    parts = {"taylor": [0.9, 0.88, 0.7], "magnitude": [0.9, 0.8, 0.6]}
    fixed = {"keep": [1.0, 0.8, 0.6], "multiply_adds": [1.0, 0.9, 0.8], "metric": "accuracy"}
    rows = [pd.DataFrame({**fixed, "importance": n, "value": value}) for n, value in parts.items()]
    return with_interval(pd.concat(rows))


def make_merging():
    table = pd.DataFrame({"merged": [0, 4, 8], "metric": "accuracy", "value": [0.9, 0.89, 0.8]})
    table = table.assign(p50_ms=[20.0, 15.0, 10.0], ratio=[1.0, 0.75, 0.5])
    return with_interval(table).assign(batch_size=1, threads=2)


def make_robustness(start=0.9):
    conditions = [("clean", 0), ("blur", 1), ("blur", 3), ("jpeg", 1), ("jpeg", 3)]
    rows = [
        (name, severity, metric, start - 0.1 * severity)
        for name, severity in conditions
        for metric in ("accuracy", "overconfidence")
    ]
    return with_interval(pd.DataFrame(rows, columns=["corruption", "severity", "metric", "value"]))


def make_attack():
    table = pd.DataFrame({"epsilon": [0, 1, 2], "metric": "accuracy", "value": [0.9, 0.4, 0.1]})
    return with_interval(table)


def make_attacked():
    row = {"label": "no", "pred": "no", "confidence": 0.9}
    row |= {"changed_pred": "yes", "changed_confidence": 0.8}
    return pd.DataFrame([row, row])


def make_gaps():
    rows = [
        ("size", "small", 30, -0.2, "worse than the rest", ""),
        ("size", "large", 30, 0.1, "no difference shown", ""),
        ("kind", "a", 40, -0.05, "no difference shown", ""),
        ("kind", "b", 4, np.nan, "", "4 images only"),
    ]
    table = pd.DataFrame(rows, columns=["column", "slice", "n", "gap", "verdict", "note"])
    return with_interval(table.assign(metric="accuracy"), "gap", 0.1)


def make_drop():
    rows = [
        ("label", "cat", 40, -0.1, 5, 1, ""),
        ("label", "dog", 30, 0.2, 0, 6, ""),
        ("group", "few", 9, np.nan, np.nan, np.nan, "9 images only"),
    ]
    table = pd.DataFrame(rows, columns=["column", "slice", "n", "change", "lost", "gained", "note"])
    return with_interval(table, "change", 0.15)


def make_lost():
    row = {"sample_id": "s1", "label": "cat", "pred_before": "cat", "pred_after": "dog"}
    return pd.DataFrame([row | {"prob_before": 0.9, "prob_after": 0.1}] * 2)


def make_worst():
    rows = [
        ("dark", "s0", 0.1, True),
        ("dark", "s1", 0.4567, False),
        ("wrong_label", "s2", 1e-8, True),
        ("unreadable", "broken", 0.0, True),
    ]
    return pd.DataFrame(rows, columns=["issue", "sample_id", "score", "flagged"])


def make_images(count, side=24):
    return np.random.default_rng(3).random((count, side, side, 3))


def make_attention(count=3, prefix=1, grid=(2, 3)):
    tokens = prefix + grid[0] * grid[1]
    return np.random.default_rng(0).dirichlet(np.full(tokens, 0.5), (count, tokens))


def make_heads(layers=4, heads=3):
    table = pd.MultiIndex.from_product([range(layers), range(heads)], names=["layer", "head"])
    table = table.to_frame(index=False)
    table["distance"] = 10.0 * table["layer"] + table["head"]
    table["entropy"] = 1 + 0.1 * table["head"]
    for name in ("distance", "entropy"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.5, table[name] + 1
    return table


def make_change():
    heads = make_heads()
    part = heads[["layer", "head"]].assign(p_fdr=np.where(heads["head"] == 0, 0.01, 0.2))
    distance = part.assign(
        measure="distance", before=heads["distance"], after=heads["distance"] + 3
    )
    after = np.linspace(0.9, 0.6, len(heads))
    return pd.concat([distance, part.assign(measure="similarity", before=1.0, after=after)])


def make_ablation():
    table = make_heads(2, 3)[["layer", "head"]]
    table["change"] = [0.1, -0.02, 0.0, -0.4, 0.05, 0.01]
    return table.assign(p_fdr=[0.01, 0.06, 1, 0.0001, 0.2, 0.8])


def make_maps(count, images, side=24):
    values = np.random.default_rng(4).random((images, side, side)).astype(np.float32)
    ids = tuple(f"s{i}" for i in range(images))
    return [
        AttributionMap(values - 0.5 * (n % 2), f"method_{n}", ("a",) * images, ids, bool(n % 2))
        for n in range(count)
    ]


def make_chosen(count):
    table = pd.DataFrame({"label": [f"l{number}" for number in range(count)], "pred": "b"})
    return table.assign(kind="unsure", group="mono", confidence=0.512)


def make_removed(*marked):
    removed = np.zeros((len(marked), 4, 5), bool)
    for cells, places in zip(removed, marked, strict=True):
        for place in places:
            cells[place] = True
    return removed


def make_curves(methods=METHODS, images=4):
    rows = [
        (method, kind, f"s{image}", share, height * (0.5 + 0.1 * image + 0.01 * number))
        for number, method in enumerate(methods)
        for image in range(images)
        for share in np.linspace(0, 1, 5)
        for kind, height in (("deletion", 1 - share), ("insertion", share))
    ]
    return pd.DataFrame(rows, columns=["method", "kind", "sample_id", "share", "score"])


def make_randomisation():
    similarity = {"grad_cam": [1, 0.6, 0.2], "rollout": [1, 0.5, 0.4]}
    layers = ["", "head", "blocks.2 to blocks.0"]
    rows = [
        (method, step, layers[step], f"s{image}", value + 0.1 * (image - 1) * (step > 0))
        for method, values in similarity.items()
        for step, value in enumerate(values)
        for image in range(3)
    ]
    table = pd.DataFrame(rows, columns=["method", "step", "layer", "sample_id", "similarity"])
    return table.assign(absolute=table["similarity"] + 0.1, other_image=0.3)


def make_pointing():
    random = np.random.default_rng(0)
    rows = []
    for method, hits in (("random", 1), ("grad_cam", 8), ("rollout", 4)):
        for image in range(10):
            mass, rank = random.normal(hits / 10, 0.05, 2).clip(0, 1)
            rows.append((method, f"s{image}", image < hits, mass, rank, 0.04))
    return pd.DataFrame(rows, columns=["method", "sample_id", "hit", "mass", "rank", "chance"])


def make_trust():
    differences = {
        "saliency": {"insertion": -0.3, "road": 0.0},
        "grad_cam": {"insertion": 0.4, "road": 0.3},
        "rollout": {"insertion": 0.2, "road": 0.5},
    }
    rows = [
        (method, metric, value, value - 0.1, value + 0.1)
        for method, metrics in differences.items()
        for metric, value in metrics.items()
    ]
    columns = ["method", "metric", "difference", "difference_low", "difference_high"]
    table = pd.DataFrame(rows, columns=columns)
    verdict = np.where(table["difference"] > 0.1, "better than all controls", "not shown")
    return table.assign(verdict=np.where(table["difference"] < -0.1, "worse", verdict))


def make_ranks():
    rows = [("grad_cam", 1.5, 2, 2), ("rollout", 1.5, 2, 2), ("saliency", 3.0, 0, 2)]
    return pd.DataFrame(rows, columns=["method", "mean_rank", "better", "metrics"])


def make_agreement():
    rows = [
        ("grad_cam", "rollout", 0.25),
        ("grad_cam", "saliency", np.nan),
        ("rollout", "saliency", -0.5),
    ]
    return pd.DataFrame(rows, columns=["method_a", "method_b", "value"])


def make_runs(count=30, models=3):
    random = np.random.default_rng(0)
    score = random.uniform(0.5, 1, count)
    return pd.DataFrame(
        {
            "run": [f"elpv/m{i % models}-seed{i}-{i:08x}" for i in range(count)],
            "model": [f"m{i % models}" for i in range(count)],
            "seed": range(count),
            "status": "done",
            "problem": "",
            "parameters.learning_rate": 10 ** random.uniform(-5, -2, count),
            "parameters.strategy": [[None, "full", "linear_probe"][i % 3] for i in range(count)],
            RUN_METRIC: score,
            f"{RUN_METRIC}.low": score - 0.1,
            f"{RUN_METRIC}.high": score + 0.1,
        }
    )


def make_trials():
    """As `trials_table` gives them: the finished ones first, the best on top."""
    augment = pd.Categorical(
        ["light", "none", "light", "strong", "none"], ["none", "light", "strong"], ordered=True
    )
    return pd.DataFrame(
        {
            "trial": [4, 0, 2, 1, 3],
            "state": ["finished", "finished", "finished", "pruned", "failed"],
            "value": [0.9, 0.8, 0.7, 0.5, np.nan],
            "best_epoch": [3, 2, 3, 1, 0],
            "epochs": [3, 3, 3, 2, 0],
            "seconds": [1.0, 1.1, 1.0, 0.5, 0.1],
            "learning_rate": [1e-3, 1e-4, 1e-5, 1e-2, 1e-1],
            "augment": augment,
            "note": ["", "", "", "", "FloatingPointError"],
        }
    )


@cache
def binary():
    return make_predictions()


def draw_curves(predictions, bands=()):
    band = {kind: evaluation.curve_band_table(predictions, kind, replicates=30) for kind in bands}
    roc = evaluation.roc_table(predictions)
    return plots.plot_curves(roc, evaluation.precision_recall_table(predictions), band)


def draw_threshold():
    chosen = pd.DataFrame({"rule": ["0.5", "f1", "youden"], "threshold": [0.5, 0.4, 0.4]})
    return plots.iplot_threshold(evaluation.threshold_table(binary()), chosen)


def draw_slices():
    scores = ("accuracy", "balanced_accuracy", "roc_auc")
    table = evaluation.slice_table(binary(), ["group"], metrics=scores, replicates=20)
    return plots.plot_slices(table)


def draw_intensities():
    samples = make_samples()
    return plots.iplot_intensities(make_image_table(samples), samples, CLASSES)


def draw_reliability():
    table = evaluation.reliability_table(binary())
    return plots.plot_reliability({"as trained": table, "temperature": table})


def draw_conformal():
    kinds = {"by class": True, "all alike": False}
    return plots.plot_conformal(
        {name: evaluation.conformal_table(binary(), by_class=kind) for name, kind in kinds.items()}
    )


def draw_grid():
    labels = ["defective", "functional"] * 3
    return plots.plot_sample_grid(make_images(6), labels, labels, CLASSES)


def draw_counterfactuals():
    images = make_images(2)
    removed = make_removed([(1, 1), (1, 2)], [])
    words = (["good", "bad"], ["bad", "bad"], [True, False])
    return plots.plot_counterfactuals(images, images[::-1], removed, *words, kind="blurred")


FIGURES = {
    "plot_attention_change": lambda: plots.plot_attention_change(make_change()),
    "plot_attention_distance": lambda: plots.plot_attention_distance(make_heads(), {"entropy": 2}),
    "plot_head_ablation": lambda: plots.plot_head_ablation(make_ablation(), "change"),
    "plot_heads": lambda: plots.plot_heads(make_images(1)[0], make_attention(12), (2, 3)),
    "plot_patches": lambda: plots.plot_patches(make_images(1)[0], 6),
    "plot_position_encodings": lambda: plots.plot_position_encodings(
        np.random.default_rng(0).normal(size=(17, 8)), (4, 4)
    ),
    "plot_attributions": lambda: plots.plot_attributions(
        make_images(8), make_maps(8, 8), make_chosen(8)
    ),
    "plot_counterfactuals": draw_counterfactuals,
    "iplot_comparison": lambda: plots.iplot_comparison(make_runs_metrics(), ["roc_auc", "f1"]),
    "iplot_cost": lambda: plots.iplot_cost(make_cost()),
    "iplot_pareto": lambda: plots.iplot_pareto(make_benchmark(), 1),
    "plot_attack": lambda: plots.plot_attack(make_attack()),
    "plot_differences": lambda: plots.plot_differences(make_differences()),
    "plot_imbalance_methods": lambda: plots.plot_imbalance_methods(
        make_imbalance(), ["f1", "accuracy", "balanced_accuracy"]
    ),
    "plot_merging_curve": lambda: plots.plot_merging_curve(make_merging()),
    "plot_pruning_curve": lambda: plots.plot_pruning_curve(make_pruning()),
    "plot_ranking": lambda: plots.plot_ranking(make_ranking(), "roc_auc"),
    "plot_robustness": lambda: plots.plot_robustness(
        {"ours": make_robustness(), "theirs": make_robustness(0.7)}, ["accuracy", "overconfidence"]
    ),
    "iplot_threshold": draw_threshold,
    "plot_curves": lambda: draw_curves(binary(), ("roc", "precision_recall")),
    "plot_roc": lambda: plots.plot_roc(dict.fromkeys(MODELS, evaluation.roc_table(binary()))),
    "iplot_intensities": draw_intensities,
    "plot_class_balance": lambda: plots.plot_class_balance(make_samples(), CLASSES),
    "plot_confusion": lambda: plots.plot_confusion(evaluation.confusion_table(binary())),
    "plot_conformal": draw_conformal,
    "plot_drop": lambda: plots.plot_drop(make_drop()),
    "plot_gaps": lambda: plots.plot_gaps(make_gaps()),
    "plot_reliability": draw_reliability,
    "plot_risk_coverage": lambda: plots.plot_risk_coverage(
        evaluation.risk_coverage_table(binary())
    ),
    "plot_slices": draw_slices,
    "plot_attack_images": lambda: plots.plot_attack_images(
        make_images(2), make_images(2) + 0.01, make_attacked()
    ),
    "plot_corruptions": lambda: plots.plot_corruptions(
        {"blur": make_images(2), "gaussian_noise": make_images(2)}, (0, 3)
    ),
    "plot_lost": lambda: plots.plot_lost(make_images(2), make_lost()),
    "plot_mistakes": lambda: plots.plot_mistakes(
        make_images(4), evaluation.mistakes_table(binary(), n=4)
    ),
    "plot_sample_grid": draw_grid,
    "plot_worst": lambda: plots.plot_worst(
        {f"s{i}": image for i, image in enumerate(make_images(3))}, make_worst()
    ),
    "iplot_arguments": lambda: plots.iplot_arguments(make_trials(), "val_accuracy"),
    "iplot_run_facets": lambda: plots.iplot_run_facets(make_runs(), RUN_METRIC, RUN_COLUMNS),
    "iplot_runs_table": lambda: plots.iplot_runs_table(make_runs(), RUN_METRIC, RUN_COLUMNS[1:]),
    "iplot_trials": lambda: plots.iplot_trials(make_trials(), "val_accuracy"),
    "plot_importance": lambda: plots.plot_importance(
        pd.DataFrame({"argument": ["learning_rate", "mixup"], "importance": [0.7, 0.3]})
    ),
    "plot_data_efficiency": lambda: plots.plot_data_efficiency(
        pd.DataFrame(
            {
                "model": ["pretrained"] * 3 + ["scratch"] * 2,
                "images_per_class": [5, 5, 50, 5, 50],
                "seed": [0, 1, 0, 0, 0],
                "accuracy": [0.6, 0.8, 0.9, 0.3, 0.7],
            }
        )
    ),
    "plot_history": lambda: plots.plot_history(make_history(), "val_roc_auc"),
    "plot_learning_curves": lambda: plots.plot_learning_curves(
        {"hybrid_vit": [make_history(), make_history(4, 0.1)], "vit_scratch": [make_history(3)]},
        "val_roc_auc",
    ),
    "plot_agreement": lambda: plots.plot_agreement(make_agreement()),
    "plot_perturbation_curves": lambda: plots.plot_perturbation_curves(make_curves()),
    "plot_pointing": lambda: plots.plot_pointing(make_pointing()),
    "plot_randomisation": lambda: plots.plot_randomisation(make_randomisation()),
    "plot_trust": lambda: plots.plot_trust(make_trust(), make_ranks()),
    "plot_trust_by_model": lambda: plots.plot_trust_by_model(
        {"hybrid_vit": make_ranks(), "efficientnet_lite0": make_ranks().drop(index=1)}
    ),
    "iplot_patch_attention": lambda: plots.iplot_patch_attention(
        make_images(1)[0], make_attention(2), (2, 3)
    ),
}
