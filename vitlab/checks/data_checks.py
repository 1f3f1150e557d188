"""VL001 to VL009: what images, labels and splits show before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import chi2
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from vitlab.checks.baseline import Probe, predictions_of, probe_data
from vitlab.checks.result import FAIL, NOT_APPLICABLE, PASS, WARN, CheckResult, check
from vitlab.data.datasets import NO_GROUPS
from vitlab.data.quality import FOLDS, ask_cleanlab, cluster_table
from vitlab.data.sources import MIN_GROUPS
from vitlab.errors import UserError
from vitlab.evaluation.metrics import class_table, metrics_table
from vitlab.evaluation.uncertainty import image_variance, measure_runs
from vitlab.schema import DataBundle

MAX_GROUPS = 50  # values of a group column that the probe is asked to tell apart
MIN_ASSOCIATION = 0.2  # Cramér's V, from which on a group says something about the label
PERMUTATIONS, REPLICATES = 999, 500
SHOWN_BY_FACTS = 0.55  # ROC AUC that facts of the files must exceed, with its interval, to matter
POWER = 1.96 + 0.84  # standard errors: a test at 5% finds such a difference in 80% of cases
MIN_TEST_IMAGES = 30  # of a class
LABEL_NOISE_P = 0.01
MIN_NOISE_IMAGES = 100  # of fewer, 1% is less than one image
NO_PROBE = f"a class has fewer than {FOLDS} independent images, too few for a simple model"


def check_data(
    data: DataBundle,
    pairs: pd.DataFrame,
    facts: pd.DataFrame,
    probe: Probe | None,
    embeddings: np.ndarray,
    group: str = "group",
    seed: int = 0,
) -> list[CheckResult]:
    """VL001 to VL009 for a data set.

    pairs: of `near_duplicate_table`; facts: of `fact_table`; probe: of `probe_data`; embeddings:
    (N, D); group: the column that says where an image comes from. Without a probe, for too few
    images, the checks that need it do not apply."""
    association = check_group_baseline(data.samples, group, seed)
    # labels are judged by the better model, which knows the groups
    near = cluster_table(data.samples, pairs)["cluster"]
    grouped = probe is not None and data.samples[group].nunique() >= MIN_GROUPS
    by_image = probe_data(data, embeddings, near, seed) if grouped else probe
    return [
        check_unreadable(data),
        check_duplicates(data.samples, pairs),
        check_groups(data.samples, group),
        association,
        check_group_visible(data, embeddings, pairs, group, association.status != PASS, seed),
        check_facts(facts, probe, seed),
        check_test_size(data.samples, probe),
        check_labels(by_image),
        check_rare_classes(data.samples, probe),
    ]


@check(
    "VL001",
    "Images that were left out",
    rule="Warns if a file could not be used, fails if more than 5% of the images could not",
    advice="Look at the table of excluded images: repair or remove these files",
)
def check_unreadable(data: DataBundle) -> tuple:
    count, total = len(data.excluded), len(data.excluded) + len(data.samples)
    if not count:
        return PASS, f"all {total:,} images can be read", {"excluded": 0}
    reasons = data.excluded["reason"].value_counts()
    why = "; ".join(f"{reason} ({number})" for reason, number in reasons.head(3).items())
    status = FAIL if count > 0.05 * total else WARN
    return status, f"{count:,} of {total:,} files were left out: {why}", {"excluded": count}


@check(
    "VL002",
    "Near-duplicates across splits",
    rule="Warns if a test image has a near-duplicate among the training images, fails from 1% on",
    advice="Split with split_by=cluster, which keeps near-duplicates together",
)
def check_duplicates(samples: pd.DataFrame, pairs: pd.DataFrame) -> tuple:
    split = samples.set_index("sample_id")["split"]
    ends = pd.DataFrame({side: pairs[f"sample_id_{side}"].map(split) for side in "ab"})
    touched = set(pairs["sample_id_a"][(ends["a"] == "test") & (ends["b"] == "train")])
    touched |= set(pairs["sample_id_b"][(ends["b"] == "test") & (ends["a"] == "train")])
    total, numbers = int((split == "test").sum()), {"test_images": len(touched)}
    if not touched:
        return PASS, f"none of {total:,} test images resembles a training image", numbers
    text = f"{len(touched):,} of {total:,} test images have a near-duplicate in the training split"
    return FAIL if len(touched) >= 0.01 * total else WARN, text, numbers


@check(
    "VL003",
    "Groups on both sides of a split",
    rule="Fails if test images share their group (patient, module, source) with training images."
    f" A column `group` with fewer than {MIN_GROUPS} values names kinds of images and is not looked"
    " at",
    advice="Split with split_by set to this column, so that a group lies in one split",
)
def check_groups(samples: pd.DataFrame, group: str) -> tuple:
    if samples[group].nunique() < (MIN_GROUPS if group == "group" else 2):
        return NOT_APPLICABLE, f"values of the column {group}: {samples[group].nunique()}", {}
    train = set(samples.loc[samples["split"] == "train", group])
    test = samples.loc[samples["split"] == "test", group]
    shared = int(test.isin(train).sum())
    text = f"{shared:,} of {len(test):,} test images have a {group} that training images have, too"
    return FAIL if shared else PASS, text, {"test_images": shared}


@check(
    "VL004",
    "The group predicts the label",
    rule="Warns if group and label are related (permutation test at 1%, Cramér's V of at least"
    f" {MIN_ASSOCIATION}), fails from a V of 0.5 on",
    advice="A model can score by recognising the group: report scores within each group, and split"
    " by group",
)
def check_group_baseline(samples: pd.DataFrame, group: str, seed: int = 0) -> tuple:
    groups, labels = (pd.factorize(samples[name])[0] for name in (group, "label"))
    if groups.max() == 0:
        return NOT_APPLICABLE, f"the column {group} has one value", {}
    rng = np.random.default_rng(seed)
    strength = _cramers_v(groups, labels)
    drawn = [_cramers_v(groups, rng.permutation(labels)) for _ in range(PERMUTATIONS)]
    p = (1 + sum(value >= strength - 1e-12 for value in drawn)) / (1 + PERMUTATIONS)
    corrected = max(0.0, strength - float(np.mean(drawn)))  # many small groups alone give a V
    related = p <= 0.01 and corrected >= MIN_ASSOCIATION
    status = (FAIL if corrected >= 0.5 else WARN) if related else PASS
    text = f"Cramér's V of {group} and label is {strength:.2f} (by chance {np.mean(drawn):.2f})"
    return status, f"{text}, p = {p:.3f}", {"cramers_v": strength, "p": p}


def _cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    rows, columns = a.max() + 1, b.max() + 1
    table = np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / _span(table)))


def _span(table: np.ndarray) -> int:
    return max(1, min(table.shape) - 1)


@check(
    "VL005",
    "The group can be seen in the pixels",
    rule="Warns if a simple model recognises the group from the image and VL004 relates the group"
    " to the label: the model can then use the group as a shortcut",
    advice="Crop or mask what gives the group away (borders, stamps, background), or balance the"
    " groups within each class",
)
def check_group_visible(
    data: DataBundle,
    embeddings: np.ndarray,
    pairs: pd.DataFrame,
    group: str,
    related: bool,
    seed: int = 0,
) -> tuple:
    samples = data.samples.reset_index(drop=True)
    cluster = cluster_table(samples, pairs)["cluster"]
    counts = cluster.groupby(samples[group]).nunique()
    values = counts[counts >= FOLDS].nlargest(MAX_GROUPS).index
    if len(values) < 2:
        return NOT_APPLICABLE, f"fewer than two values of {group} have {FOLDS} images", {}
    rows = samples.index[samples[group].isin(values)]
    classes = tuple(sorted(map(str, values)))
    named = samples.loc[rows].assign(label=samples.loc[rows, group].astype(str))
    own = probe_data(
        replace(data, samples=named, classes=classes), embeddings[rows], cluster[rows], seed
    )
    value, low, high = own.value("balanced_accuracy")
    text = f"a simple model recognises the {group} with a balanced accuracy of {value:.0%}"
    text += f" [{low:.0%}, {high:.0%}]; chance is {1 / len(classes):.0%}"
    shown = low > 1 / len(classes) + 0.05
    return WARN if shown and related else PASS, text, {"balanced_accuracy": value}


@check(
    "VL006",
    "Facts of the files predict the label",
    rule="Warns if size, format, brightness, border and the like alone predict the label: if the"
    f" interval of their ROC AUC lies above {SHOWN_BY_FACTS}. Fails if they do it as well as the"
    " features of a network",
    advice="Find the fact that differs between the classes (table of facts), and remove the"
    " difference: same camera, same size, same compression for all classes",
)
def check_facts(facts: pd.DataFrame, probe: Probe | None, seed: int = 0) -> tuple:
    if probe is None:
        return NOT_APPLICABLE, NO_PROBE, {}
    samples = probe.predictions
    table = samples[["sample_id"]].merge(facts, on="sample_id")
    table = table.drop(columns=["sample_id", "contrast"], errors="ignore")  # contrast is content
    if table.shape[1] == 0:
        return NOT_APPLICABLE, "all images have the same facts", {}
    words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    numeric = [name for name in table if name not in words]
    table[numeric] = table[numeric].astype(float)
    encoder = make_column_transformer(
        (StandardScaler(), numeric), (OneHotEncoder(handle_unknown="ignore"), words)
    )
    prob = cross_val_predict(
        make_pipeline(encoder, LogisticRegression(max_iter=1000)),
        table,
        samples["label"],
        groups=samples["cluster"],
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    prob = prob[:, [sorted(probe.classes).index(name) for name in probe.classes]]
    predictions = predictions_of(samples, prob, probe.classes)
    scores = metrics_table(predictions.assign(cluster=samples["cluster"]))
    value, low, high = scores.set_index("metric").loc["roc_auc", ["value", "low", "high"]]
    text = (
        f"{', '.join(map(_readable, table))} give a ROC AUC of {value:.2f} [{low:.2f}, {high:.2f}]"
    )
    text += f"; features of a network give {probe.value('roc_auc')[0]:.2f}"
    as_good = value >= probe.value("roc_auc")[0]
    status = (FAIL if as_good else WARN) if low > SHOWN_BY_FACTS else PASS
    return status, text, {"roc_auc": float(value)}


def _readable(name: str) -> str:
    return name.replace("_", " ")


@check(
    "VL007",
    "Too few test images",
    rule="Warns if a difference in balanced accuracy below 5 points could not be shown between two"
    " models on this test split, fails from 10 points on",
    advice="Use more test images or a cross-validation (folds), and do not rank models that differ"
    " by less",
)
def check_test_size(samples: pd.DataFrame, probe: Probe | None) -> tuple:
    if probe is None:
        return NOT_APPLICABLE, NO_PROBE, {}
    test = samples.loc[samples["split"] == "test", "sample_id"]
    tested = probe.predictions[probe.predictions["sample_id"].isin(test)]
    right = tested["label"] == tested["pred"]
    counts = tested["label"].value_counts()
    recall = right.groupby(tested["label"]).mean().clip(0.5 / counts, 1 - 0.5 / counts)
    error = np.sqrt((recall * (1 - recall) / counts).sum()) / len(counts)
    runs = measure_runs({"simple": tested}, ["balanced_accuracy"], REPLICATES)
    units = runs.count_units([0])
    variance = image_variance(runs.drawn[:, :, 0], units).run  # over clusters
    error = np.nanmax([error, np.sqrt(variance)])
    # two models on the same images: half of the variance is common, 2 x (1 - 0.5) = 1
    smallest = float(POWER * error)
    groups = f" in {units:,} independent groups" if units < len(tested) else ""
    text = f"{len(tested):,} test images{groups} show a difference of {100 * smallest:.1f} points"
    text += " of balanced accuracy between two models in four of five cases, a smaller one less"
    text += " often"
    status = FAIL if smallest > 0.1 else WARN if smallest > 0.05 else PASS
    return status, text, {"smallest_difference": smallest}


@check(
    "VL008",
    "Labels that are probably wrong",
    rule="Warns if the predictions fit better when a share of the labels is taken for random"
    f" (likelihood ratio test at {LABEL_NOISE_P:.0%}) and this share is at least 1%, fails from 5%",
    advice="Look at the images under 'Labels most likely wrong', and correct those that are",
)
def check_labels(probe: Probe | None) -> tuple:
    if probe is None:
        return NOT_APPLICABLE, NO_PROBE, {}
    if len(probe.predictions) < MIN_NOISE_IMAGES:
        return NOT_APPLICABLE, f"there are fewer than {MIN_NOISE_IMAGES} images", {}
    share, p = estimate_label_noise(probe)
    shown = p < LABEL_NOISE_P and share >= 0.01
    text = f"about {share:.1%} of the labels look random (p = {p:.3f})"
    if not shown:
        text = f"not shown to be 1% or more (estimate {share:.1%}, p = {p:.3f})"
    return (FAIL if share >= 0.05 else WARN) if shown else PASS, text, {"share": share, "p": p}


def estimate_label_noise(probe: Probe) -> tuple[float, float]:
    """The share e of labels that look drawn at random, and the p-value of e > 0.

    The observed label y of an image has the probability (1 - e) softmax(a z + b)_y + e / K for the
    out-of-fold logits z; a, b and e maximise the likelihood. p: half the tail of chi-squared with
    one degree of freedom, since e = 0 is at the boundary (Self and Liang, 1987)."""
    columns = [name for name in probe.predictions if name.startswith("logit_")]
    z = probe.predictions[columns].to_numpy()
    classes = [name.removeprefix("logit_") for name in columns]
    y, k = probe.predictions["label"].map(classes.index).to_numpy(), len(classes)
    rows = np.arange(len(y))

    def loss(values: np.ndarray, e: float) -> float:
        logits = values[0] * z + np.append(values[1:], 0.0)
        logits -= logits.max(axis=1, keepdims=True)
        prob = np.exp(logits)
        own = prob[rows, y] / prob.sum(axis=1)
        return -float(np.log((1 - e) * own + e / k + 1e-300).sum())

    start = np.append(1.0, np.zeros(k - 1))
    clean = minimize(loss, start, args=(0.0,), method="L-BFGS-B")
    noisy = minimize(
        lambda values: loss(values[:-1], values[-1]),
        np.append(clean.x, 0.02),
        method="L-BFGS-B",
        bounds=[(None, None)] * k + [(0.0, 0.5)],
    )
    gain = max(0.0, 2 * (clean.fun - noisy.fun))
    return float(noisy.x[-1] * (k - 1) / k), float(0.5 * chi2.sf(gain, 1)) if gain else 1.0


@check(
    "VL009",
    "Rare classes",
    rule=f"Warns if a class has fewer than {MIN_TEST_IMAGES} test images, fails below 10 or if the"
    " simple model never predicts it",
    advice="Collect more images of this class, merge it with another, or read its scores as"
    " anecdotes",
)
def check_rare_classes(samples: pd.DataFrame, probe: Probe | None) -> tuple:
    counts = samples.loc[samples["split"] == "test", "label"].value_counts()
    counts = counts.reindex(sorted(samples["label"].unique()), fill_value=0)
    rare, least = counts.idxmin(), int(counts.min())
    numbers = {"class": rare, "test_images": least}
    text = f"the rarest class, {rare}, has {least:,} test images"
    if probe is not None:
        if few := sorted(set(counts.index) - set(probe.classes)):
            return FAIL, f"fewer than {FOLDS} independent images of {', '.join(few)}", numbers
        if never := sorted(set(counts.index) - set(probe.predictions["pred"])):
            return FAIL, f"the simple model never predicts {', '.join(never)}", numbers
        recall = class_table(probe.predictions).set_index("class").loc[rare, "recall"]
        text += f" and a recall of {recall:.0%} by the simple model"
    return FAIL if least < 10 else WARN if least < MIN_TEST_IMAGES else PASS, text, numbers


def find_group(data: DataBundle, group: str) -> str:
    """The column that says where an image comes from. UserError for one that there is not, and for
    the label.
    """
    if group and (group not in data.samples or group in NO_GROUPS):
        columns = [name for name in data.samples if name not in (*NO_GROUPS, "source")]
        raise UserError(
            f"{data.name} has no column {group!r} of groups; it has {', '.join(columns)}"
        )
    return group or data.group_column or "group"


def doubtful_labels(probe: Probe, count: int) -> pd.DataFrame:
    """The labels most likely wrong by cleanlab's confident learning (arXiv 1911.00068), at most
    `count`: sample_id, label, suggested.
    """
    prob = sorted(name for name in probe.predictions if name.startswith("prob_"))
    found = ask_cleanlab(
        {"label": {}}, probe.predictions["label"], pred_probs=probe.predictions[prob].to_numpy()
    )
    table = probe.predictions[["sample_id", "label"]].assign(
        suggested=found["predicted_label"].to_numpy(), score=found["label_score"].to_numpy()
    )
    return table[found["is_label_issue"].to_numpy()].nsmallest(count, "score")
