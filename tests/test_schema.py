from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.toys import small_digits, tiny_vit
from vitlab.runs import Run
from vitlab.schema import AttributionMap, check_predictions, check_samples


@pytest.fixture
def predictions():
    return pd.DataFrame(
        {
            "sample_id": ["a", "b", "c"],
            "split": ["test"] * 3,
            "group": ["x", "x", "y"],
            "label": ["no", "yes", "no"],
            "pred": ["no", "no", "no"],
            "logit_no": [1.0, 0.2, 2.0],
            "logit_yes": [0.0, 0.1, 0.0],
            "prob_no": [0.7, 0.6, 0.9],
            "prob_yes": [0.3, 0.4, 0.1],
        }
    )


def test_good_predictions_give_their_classes(predictions):
    assert check_predictions(predictions) == ("no", "yes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="pred"), "lacks the columns pred"),
        (lambda t: t.drop(columns="logit_yes"), "lacks the columns logit_yes"),
        (lambda t: t.drop(columns="prob_yes"), "at least two classes"),
        (lambda t: t.assign(sample_id=["a", "a", "c"]), "sample_id 'a' more than once"),
        (lambda t: t.assign(label=["no", "maybe", "no"]), "unknown label 'maybe'"),
        (lambda t: t.assign(split="tset"), "unknown split 'tset'"),
        (
            lambda t: t.assign(prob_no=[0.7, np.nan, 0.9]),
            "NaN or infinite scores, first for sample 'b'",
        ),
        (lambda t: t.assign(prob_no=[0.7, 0.9, 0.9]), r"sample 'b' sum to 1\.3000"),
    ],
)
def test_bad_predictions_say_what_is_wrong(predictions, change, message):
    with pytest.raises(ValueError, match=message):
        check_predictions(change(predictions))


def test_samples_contract():
    samples = pd.DataFrame(
        {
            "sample_id": ["a"],
            "label": ["cat"],
            "split": ["train"],
            "group": ["all"],
            "source": ["a.png"],
        }
    )
    assert check_samples(samples, ("cat", "dog")) is samples
    with pytest.raises(ValueError, match="unknown label 'cat'"):
        check_samples(samples, ("dog", "bird"))


def test_attribution_map_contract():
    with pytest.raises(ValueError, match="do not fit"):
        AttributionMap(
            np.zeros((2, 4, 4), np.float32), "saliency", ("a",), ("1", "2"), signed=False
        )
    with pytest.raises(ValueError, match="NaN"):
        AttributionMap(
            np.full((1, 4, 4), np.nan, np.float32), "saliency", ("a",), ("1",), signed=False
        )


def test_html_views_are_compact_and_escape_names():
    data = replace(small_digits(), name="<b>")
    assert "&lt;b&gt;" in data._repr_html_() and "train 196" in data._repr_html_()
    assert "3 blocks" in tiny_vit()._repr_html_()
    assert "running" in Run.create(dataset="digits", seed=0)._repr_html_()
