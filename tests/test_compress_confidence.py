"""Temperature and conformal limits: of the model's own outputs, on disjoint halves, with the
coverage that they claim.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from tests.toys import linear_digits, small_digits, tiny_vit
from vitlab.compress.confidence import find_calibration, note_calibration
from vitlab.compress.export import export_onnx
from vitlab.compress.quantize import quantize_onnx
from vitlab.compress.session import OnnxClassifier
from vitlab.compress.sidecar import read_sidecar
from vitlab.compress.variants import predict_variants
from vitlab.evaluation.calibration import find_temperature
from vitlab.evaluation.scores import read_scores

CLASSES = np.array(["a", "b", "c"])


def draw(generator, count, signal=1.5, scale=4.0, split="val"):
    """Predictions of a model whose logits are `scale` times too large; signal: how well it tells
    the classes apart.
    """
    label = np.arange(count) % 3
    logits = scale * (generator.normal(size=(count, 3)) + signal * np.eye(3)[label])
    table = pd.DataFrame(
        {"sample_id": [f"{split}{i}" for i in range(count)], "split": split, "group": "g"}
    )
    table["label"], table["pred"] = CLASSES[label], CLASSES[logits.argmax(axis=1)]
    table[[f"logit_{name}" for name in CLASSES]], table[[f"prob_{name}" for name in CLASSES]] = (
        logits,
        softmax(logits, axis=1),
    )
    return table


def cover(found, table):
    """Share of the images of each class whose set holds it."""
    prob = softmax(
        table[[f"logit_{name}" for name in CLASSES]].to_numpy() / found["temperature"], axis=1
    )
    inside = 1 - prob <= [
        np.inf if found["limits"][name] is None else found["limits"][name] for name in CLASSES
    ]
    label = table["label"].map({name: k for k, name in enumerate(CLASSES)}).to_numpy()
    held = inside[np.arange(len(table)), label]
    return np.array([held[label == k].mean() for k in range(3)])


def test_coverage_by_simulation():
    """150 validation splits of 120 images (20 of each class for the limits), 900 new images each,
    nominal 90 % for each class.

    Split conformal prediction covers between 1 - alpha and 1 - alpha + 1 / (n + 1) on average: 90
    to 94.8 % at n = 20."""
    generator = np.random.default_rng(0)
    found = [
        cover(find_calibration(draw(generator, 120)), draw(generator, 900)) for _ in range(150)
    ]
    mean = np.mean(found, axis=0)
    assert ((mean > 0.89) & (mean < 0.958)).all(), mean


def test_limits_of_another_model_do_not_cover():
    """What 06 did: a weaker model with the limits of the full one. Its own limits cover at the
    nominal 90 %.
    """
    generator = np.random.default_rng(1)
    full, weak, new = (
        draw(generator, 900, 3.0),
        draw(generator, 900, 1.0),
        draw(generator, 6000, 1.0),
    )
    assert cover(find_calibration(full), new).mean() < 0.8
    assert cover(find_calibration(weak), new).mean() == pytest.approx(0.9, abs=0.03)


def test_temperature_and_limits_come_from_disjoint_halves_of_each_class():
    table = draw(np.random.default_rng(2), 90)
    before = find_calibration(table)
    logits = [f"logit_{name}" for name in CLASSES]
    moved = {"temperature": [], "limits": []}
    for i in range(90):
        changed = table.copy()
        own = f"logit_{changed.loc[i, 'label']}"
        # the model is sure of another class now
        changed.loc[i, own] = changed[logits].to_numpy().min() - 20
        prob = softmax(changed[logits].to_numpy(), axis=1)
        changed[[f"prob_{name}" for name in CLASSES]] = prob
        changed["pred"] = CLASSES[prob.argmax(axis=1)]
        after = find_calibration(changed)
        if after["temperature"] != before["temperature"]:
            moved["temperature"].append(changed.loc[i, "label"])
        else:
            moved["limits"].append(changed.loc[i, "label"])
    for labels in moved.values():
        assert pd.Series(labels).value_counts().to_dict() == {"a": 15, "b": 15, "c": 15}


def test_the_temperature_is_that_of_its_half():
    """Twice the same images: each half then holds what the whole holds, whatever was drawn, once
    each image is there often.
    """
    table = draw(np.random.default_rng(3), 30)
    many = pd.concat([table] * 40, ignore_index=True)
    many["sample_id"] = [f"s{i}" for i in range(len(many))]
    expected = find_temperature(read_scores(table, "val"))
    assert find_calibration(many)["temperature"] == pytest.approx(expected, rel=0.1)


def test_a_class_too_rare_to_promise_anything_is_in_every_set():
    table = draw(np.random.default_rng(4), 90)
    rare = table[(table["label"] != "c") | (table.index < 30)]  # ten of c, five for the limits
    found = find_calibration(rare)
    assert found["limits"]["c"] is None and found["limits"]["a"] is not None
    one_each = find_calibration(table.head(3))
    assert one_each["temperature"] == 1.0 and set(one_each["limits"].values()) == {None}


def test_no_validation_rows():
    with pytest.raises(ValueError, match="no validation rows"):
        find_calibration(draw(np.random.default_rng(5), 9, split="test"))


def test_each_file_carries_what_is_fitted_on_its_own_outputs(tmp_path):
    """Of two models and of a quantised file: other values in each, equal to a fit on what the file
    itself predicts.
    """
    data, noted = small_digits(), {}
    for name, model in {"linear": linear_digits(), "vit": tiny_vit()}.items():
        path = export_onnx(model, tmp_path / f"{name}.onnx", data, limit=4).path
        int8 = quantize_onnx(
            path, tmp_path / f"{name}-int8.onnx", data, on_failure="flag", gate_images=20
        ).path
        predictions = predict_variants(
            {path.stem: path, int8.stem: int8}, data, model.transform, ("val",)
        )
        for file in (path, int8):
            note_calibration(file, predictions[file.stem])
            noted[file.stem] = read_sidecar(file)["calibration"]
            assert noted[file.stem] == find_calibration(predictions[file.stem])
            assert OnnxClassifier(file).temperature == noted[file.stem]["temperature"]
    assert len({values["temperature"] for values in noted.values()}) == 4


def test_predictions_of_other_classes_are_refused(tmp_path):
    path = export_onnx(linear_digits(), tmp_path / "linear.onnx", small_digits(), limit=4).path
    with pytest.raises(ValueError, match="other classes"):
        note_calibration(path, draw(np.random.default_rng(6), 30))
