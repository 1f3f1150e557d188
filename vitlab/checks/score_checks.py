"""VL010 to VL014: what the scores of a trained model, or of several, cannot claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vitlab.checks.baseline import Probe
from vitlab.checks.result import FAIL, NOT_APPLICABLE, PASS, WARN, CheckResult, check
from vitlab.evaluation import (
    calibration_table,
    conformal_table,
    metrics_table,
    pairwise_table,
    worst_slice_table,
)
from vitlab.evaluation.pairwise import NO_DIFFERENCE

DROP = 0.02  # of the validation loss in the last epoch, from which on training was not finished
NOMINAL = 0.9  # coverage of the conformal sets that are looked at


def check_scores(
    predictions: pd.DataFrame,
    history: pd.DataFrame,
    probe: Probe | None = None,
    slices: Sequence[str] = ("group",),
    replicates: int = 1000,
) -> list[CheckResult]:
    """VL010, VL011, VL013 and VL014 for one run.

    predictions, history: of the run; probe: of the same images; slices: columns of the
    predictions."""
    return [
        check_beats_probe(predictions, probe and probe.predictions, replicates),
        check_converged(history),
        check_calibration(predictions, replicates),
        check_slices(predictions, slices, replicates),
    ]


@check(
    "VL010",
    "No better than chance, or than a simple model",
    rule="Fails if the interval of the balanced accuracy reaches chance. Warns if the model is not"
    " above logistic regression on features of a pretrained network, on the same test images",
    advice="Train longer, or with more images; or use the simple model, which costs nothing",
)
def check_beats_probe(
    predictions: pd.DataFrame, probe: pd.DataFrame | None, replicates: int = 1000
) -> tuple:
    table = metrics_table(predictions, replicates=replicates).set_index("metric")
    value, low = table.loc["balanced_accuracy", ["value", "low"]]
    chance = 1 / sum(name.startswith("prob_") for name in predictions)
    text = f"balanced accuracy {value:.3f} (chance {chance:.3f})"
    numbers = {"balanced_accuracy": float(value)}
    if not low > chance:
        return FAIL, text, numbers
    if probe is None:
        return PASS, text, numbers
    tested = predictions[predictions["split"] == "test"]
    same = probe[probe["sample_id"].isin(tested["sample_id"])].drop(
        columns="cluster", errors="ignore"
    )
    if "cluster" in tested:
        same = same.merge(tested[["sample_id", "cluster"]], on="sample_id")
    pair = pairwise_table(
        {"simple": {0: same}, "model": {0: tested}}, "balanced_accuracy", replicates
    ).iloc[0]
    gain, ends = pair["difference"], (pair["low"], pair["high"])
    text += f", {gain:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}] against the simple model"
    return PASS if gain > 0 else WARN, text, {**numbers, "gain": float(gain)}


@check(
    "VL011",
    "Still improving in the last epoch",
    rule=f"Warns if the validation loss is lowest in the last epoch and fell there by more than"
    f" {DROP:.0%}",
    advice="Train for more epochs",
)
def check_converged(history: pd.DataFrame) -> tuple:
    loss = history["val_loss"].to_numpy()
    if len(loss) < 2:
        return NOT_APPLICABLE, "there is one epoch", {}
    drop = 1 - loss[-1] / loss[:-1].min()
    if drop > DROP:
        return WARN, f"the validation loss fell by {drop:.0%} in the last epoch", {"drop": drop}
    best = int(loss.argmin()) + 1
    text = f"the validation loss is lowest in epoch {best} of {len(loss)}"
    return PASS, text, {"drop": float(drop)}


@check(
    "VL013",
    "Miscalibrated",
    rule="Warns if the calibration error of the test images lies above the range that calibrated"
    f" probabilities would give. Fails if sets that should contain the true class in {NOMINAL:.0%}"
    " of images do so less often, by more than chance in validation and test images explains",
    advice="Use the temperature of notebook 04, and do not read the probabilities as frequencies",
)
def check_calibration(predictions: pd.DataFrame, replicates: int = 1000) -> tuple:
    table = calibration_table(predictions, replicates).set_index("metric")
    value, high = table.loc["ece", ["value", "calibrated_high"]]
    sets = conformal_table(predictions).set_index("nominal")
    row = sets.loc[min(sets.index, key=lambda nominal: abs(nominal - NOMINAL))]
    text = f"expected calibration error {value:.3f} (calibrated: at most {high:.3f})"
    text += f"; coverage {row['coverage']:.1%} of nominal {row.name:.0%}"
    numbers = {"ece": float(value), "coverage": float(row["coverage"])}
    # the limits come from validation images, which vary as the test images do
    count = predictions["split"].value_counts()
    margin = (row["coverage_high"] - row["coverage"]) * np.sqrt(1 + count["test"] / count["val"])
    if row["coverage"] + margin < row.name:
        return FAIL, text, numbers
    return WARN if value > high else PASS, text, numbers


@check(
    "VL014",
    "A slice is worse than the rest",
    rule="Warns if the balanced accuracy within one slice is lower than in the rest (permutation"
    " test, Holm's correction, 5%)",
    advice="Collect images of this slice, and report its score beside the overall one",
)
def check_slices(
    predictions: pd.DataFrame, slices: Sequence[str] = ("group",), replicates: int = 1000
) -> tuple:
    tested = predictions[predictions["split"] == "test"]
    varied = [name for name in slices if tested[name].nunique() > 1]
    if not varied:
        return NOT_APPLICABLE, "there is one slice only", {}
    table = worst_slice_table(predictions, varied, replicates).dropna(subset="p")
    if table.empty:
        return NOT_APPLICABLE, "the slices have too few images, or one class each", {}
    worse = table["verdict"].str.startswith("worse")
    worst = (table[worse] if worse.any() else table).iloc[0]
    text = f"{worst['slice']}: {worst['gap']:+.3f} balanced accuracy against the rest"
    text += f" (p = {worst['p_holm']:.3f})"
    return WARN if worse.any() else PASS, text, {"gap": float(worst["gap"])}


@check(
    "VL012",
    "One seed, or no difference shown",
    rule="Warns if a model was trained with one seed, or if no difference is shown between some two"
    " models",
    advice="Train with more seeds, and do not call one of such models better",
)
def check_comparison(
    pairwise: pd.DataFrame, scores: Mapping[str, Mapping[object, pd.DataFrame]]
) -> tuple:
    """VL012. pairwise: of `pairwise_table`, or empty; scores: model -> seed -> predictions."""
    single = [model for model, seeds in scores.items() if len(seeds) < 2]
    texts = [f"one seed of {', '.join(single)}"] if single else []
    undecided = 0
    if len(pairwise):
        undecided = int((pairwise["verdict"] == NO_DIFFERENCE).sum())
        texts.append(f"{undecided} of {len(pairwise)} pairs of models show no difference")
    status = WARN if single or undecided else PASS
    return status, "; ".join(texts) or "all models have several seeds", {"undecided": undecided}
