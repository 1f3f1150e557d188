"""Predictions tables made by hand or drawn at random."""

import numpy as np
import pandas as pd
from scipy.special import softmax

BINARY = ("functional", "defective")
DIGITS = tuple("0123456789")


def fill_table(classes, label, prob, split="test", **columns):
    """A predictions table from class indices (N,) and probabilities (N, C)."""
    prob, names = np.asarray(prob, float), np.array(list(classes))
    table = pd.DataFrame({"sample_id": [f"s{i}" for i in range(len(prob))], "split": split})
    table["group"], table["label"] = "all", names[np.asarray(label, int)]
    table["pred"] = names[prob.argmax(axis=1)]
    with np.errstate(divide="ignore"):
        table[[f"logit_{name}" for name in classes]] = np.maximum(np.log(prob), -99)
    table[[f"prob_{name}" for name in classes]] = prob
    return table.assign(**columns)


def fill_binary(prob_yes, label, split="test", **columns):
    """Predictions of no and yes, from the probability of yes."""
    prob_yes, label = np.asarray(prob_yes, float), np.asarray(label) == "yes"
    prob = np.column_stack([1 - prob_yes, prob_yes])
    return fill_table(("no", "yes"), label, prob, split, **columns)


def make_predictions(classes=BINARY, num_samples=300, seed=0, round_to=None, **columns):
    """Predictions of a mediocre classifier; rounding the logits makes ties."""
    generator = np.random.default_rng(seed)
    label = generator.integers(len(classes), size=num_samples)
    logits = generator.normal(size=(num_samples, len(classes)))
    logits[np.arange(num_samples), label] += 1
    if round_to is not None:
        logits = logits.round(round_to)
    return fill_table(classes, label, softmax(logits, axis=1), **columns)


def make_calibrated(classes=BINARY, num_samples=600, seed=0, temperature=1.0, bias=0.0):
    """Half validation, half test. Labels are drawn from the probabilities; then the logits are
    divided by the temperature, and those of the last class are raised by the bias."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(num_samples, len(classes)))
    steps = softmax(logits, axis=1).cumsum(axis=1)
    label = (generator.random((num_samples, 1)) > steps).sum(axis=1)
    logits = logits / temperature
    logits[:, -1] += bias
    split = np.array(["val", "test"] * (num_samples // 2))
    return fill_table(classes, label, softmax(logits, axis=1), split)
