"""The images chosen from a table whose order is known."""

import numpy as np
import pandas as pd
import pytest

from vitlab.evaluation import choose_examples, draw_findings


def make_predictions(prob, label, group=None, split="test"):
    prob = np.asarray(prob, float)
    classes = [f"c{i}" for i in range(prob.shape[1])]
    table = pd.DataFrame(
        {"sample_id": [f"s{i}" for i in range(len(prob))], "split": split, "group": group or "g"}
    )
    table["label"], table["pred"] = label, np.array(classes)[prob.argmax(axis=1)]
    table[[f"logit_{name}" for name in classes]] = np.log(prob)
    table[[f"prob_{name}" for name in classes]] = prob
    return table


def test_one_of_each_kind_and_group():
    last = np.array([0.99, 0.95, 0.90, 0.02, 0.55, 0.46, 0.70, 0.30])
    label = ["c1", "c1", "c0", "c1", "c1", "c0", "c1", "c0"]
    predictions = make_predictions(np.stack([1 - last, last], axis=1), label, ["a", "b"] * 4)
    found = choose_examples(predictions, each=1)
    assert dict(zip(found["kind"], found["sample_id"], strict=True)) == {
        "sure and right": "s0",
        "sure and wrong": "s3",  # 0.98 for c0, and it is c1
        "near the threshold": "s5",
        "typical a": "s6",  # confidences left in a: s2 .90, s4 .55, s6 .70
        # left in b: s1 .95, s7 .70: equally far from their median, the first is taken
        "typical b": "s1",
    }
    assert found["confidence"].tolist() == pytest.approx([0.99, 0.98, 0.54, 0.70, 0.95])
    assert (
        choose_examples(predictions, each=1, threshold=0.71).set_index("kind")["sample_id"][
            "near the threshold"
        ]
        == "s6"
    )


def test_many_classes_and_no_mistakes():
    predictions = make_predictions(
        [[0.5, 0.3, 0.2], [0.45, 0.44, 0.11], [0.1, 0.8, 0.1]], ["c0", "c0", "c1"]
    )
    found = choose_examples(predictions, each=1)
    assert found["kind"].tolist() == ["sure and right", "near the threshold", "typical g"]
    assert found["sample_id"].tolist() == ["s2", "s1", "s0"]


def test_no_image_twice():
    predictions = make_predictions([[0.4, 0.6], [0.7, 0.3]], ["c1", "c0"])
    found = choose_examples(predictions, each=5)
    assert sorted(found["sample_id"]) == ["s0", "s1"]


def test_what_does_not_fit():
    predictions = make_predictions([[0.4, 0.6]], ["c1"], split="val")
    with pytest.raises(ValueError, match="no sample of split 'test'; they have val"):
        choose_examples(predictions)
    with pytest.raises(ValueError, match="threshold=2 is not a probability"):
        choose_examples(predictions, threshold=2)


def test_findings_are_right_and_of_the_last_class():
    last = np.array([0.9, 0.8, 0.1, 0.7, 0.2])
    predictions = make_predictions(
        np.stack([1 - last, last], axis=1), ["c1", "c0", "c0", "c1", "c1"]
    )
    assert sorted(draw_findings(predictions, 5)["sample_id"]) == ["s0", "s3"]
    assert len(draw_findings(predictions, 1)) == 1
    assert (
        draw_findings(predictions, 1, seed=0)["sample_id"].item()
        == draw_findings(predictions, 1, seed=0)["sample_id"].item()
    )
    never = make_predictions(np.stack([1 - last, last], axis=1), ["c0", "c0", "c1", "c0", "c1"])
    assert len(draw_findings(never, 9)) == 5
    three = make_predictions([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], ["c0", "c0"])
    assert draw_findings(three, 5)["sample_id"].tolist() == ["s0"]
