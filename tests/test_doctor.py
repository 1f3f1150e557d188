"""The doctor: verdicts from numbers, and words that hide nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_compress_losses import make_predictions
from tests.toys import linear_digits, small_digits
from vitlab.compress import doctor
from vitlab.compress.doctor import doctor_table, examine, say_diagnosis
from vitlab.compress.latency import summarise_times
from vitlab.compress.sides import make_side, predict_sides
from vitlab.training import predict

XEON = frozenset({"fpu", "avx2", "avx512f", "avx512_vnni", "amx_int8"})
OLD = frozenset({"fpu", "avx2"})
LABELS = np.array(["dog", "cat"] * 200)
SURE = np.where(LABELS == "cat", 0.9, 0.1)


def spoil(count, seed=0):
    """Probabilities with this many answers turned round."""
    cat = SURE.copy()
    chosen = np.random.default_rng(seed).permutation(len(cat))[:count]
    cat[chosen] = 1 - cat[chosen]
    return make_predictions(LABELS, cat)


def make_table(ratio=0.5, errors=40, batch_size=1):
    base = np.linspace(0.010, 0.012, 9)
    times = {"fp32": base, "int8": base * ratio * np.linspace(0.98, 1.02, 9)}
    predictions = {"fp32": spoil(40), "int8": spoil(errors)}
    return doctor_table(summarise_times(times, batch_size, 1), predictions, {"int8": 2.5}, metric="accuracy")


def test_a_processor_that_is_not_known_is_said_so(monkeypatch):
    monkeypatch.setattr(doctor, "read_instructions", lambda: None)
    assert say_diagnosis(make_table()).startswith("Which instructions this processor has is not known")


def test_numbers_of_a_choice_against_the_first():
    table = make_table(errors=60)
    first, second = table.to_dict("records")
    assert (first["value"], second["value"], second["change"]) == pytest.approx((0.9, 0.85, -0.05))
    assert second["agreement"] == pytest.approx(0.95)  # the same 40 errors and 20 more
    assert (first["ece"], second["ece"], second["ece_change"]) == pytest.approx((0, 0.05, 0.05))
    assert second["ratio"] == pytest.approx(0.5)
    assert np.isnan(first["size_mb"])
    assert second["size_mb"] == 2.5
    assert (first["change_low"], first["change_high"]) == (0, 0)


@pytest.mark.parametrize(
    "ratio, errors, speed, quality, calibration",
    [
        (0.5, 40, "faster", "as good", "no difference shown"),
        (1.3, 60, "slower", "worse", "worse"),
        (1.0, 20, "no difference shown", "better", "worse"),
        (0.5, 41, "faster", "loss not ruled out", "no difference shown"),
    ],
)
def test_verdicts(ratio, errors, speed, quality, calibration):
    row = make_table(ratio, errors).iloc[1]
    assert (row["speed"], row["quality"], row["calibration"]) == (speed, quality, calibration)
    assert set(make_table(ratio, errors).iloc[0][["speed", "quality", "calibration"]]) == {"reference"}


def test_slower_and_worse_is_said_plainly():
    words = say_diagnosis(make_table(1.3, 60), OLD)
    assert "none for 8-bit products: int8 may be slower" in words
    assert "int8: SLOWER here at batch 1 (1.30 times the time" in words
    assert "WORSE: -5.00 points of accuracy" in words
    assert "the same answer as fp32 on 95.0% of the images" in words
    assert "Calibration WORSE (ECE 0.050, +0.050" in words
    assert words.splitlines()[-1] == "Take fp32: no choice is both faster at batch 1 and shown to lose at most 0.5 points."


def test_what_is_good_is_taken():
    words = say_diagnosis(make_table(), XEON)
    assert "8-bit products have instructions of their own (avx512_vnni, amx_int8)" in words
    assert "int8: faster at batch 1 (2.00 times as fast" in words
    assert words.splitlines()[-1].startswith("Take int8: the fastest at batch 1")


def test_slower_at_one_batch_size_comes_first():
    table = pd.concat([make_table(0.5, batch_size=1), make_table(1.5, batch_size=32)], ignore_index=True)
    line = say_diagnosis(table, OLD).splitlines()[1]
    assert line.index("SLOWER here at batch 32") < line.index("faster at batch 1 ")


def test_predictions_of_sides_are_those_of_training():
    model, data = linear_digits(), small_digits()
    found = predict_sides({"ours": model, "half": make_side(model, precision="bf16")}, data, model.transform, batch_size=7)
    pd.testing.assert_frame_equal(found["ours"], predict(model, data, ("test",)), atol=1e-6, check_dtype=False)
    assert found["half"]["logit_3"].tolist() != found["ours"]["logit_3"].tolist()


def test_examine_predicts_times_and_judges():
    model, data = linear_digits(), small_digits()

    def blind(pixels):
        return np.eye(10, dtype=np.float32)[np.zeros(len(pixels), int)]

    table = examine({"full": model, "blind": blind}, data, model.transform, repeats=3, threads=1, batch_sizes=(1, 4))
    assert table[["side", "batch_size"]].values.tolist() == [["full", 1], ["blind", 1], ["full", 4], ["blind", 4]]
    assert table["quality"].tolist() == ["reference", "worse"] * 2
    assert table["size_mb"].tolist()[:1] == pytest.approx([(10 * 192 + 10) * 4 / 1e6])
    assert table["size_mb"].isna().tolist() == [False, True] * 2
    assert table["value"].tolist()[1] == pytest.approx(0.1)  # balanced accuracy of one answer for all ten classes
    assert "blind" in say_diagnosis(table)


def test_bad_input_of_the_doctor():
    latency = summarise_times({"fp32": [1, 2], "int8": [1, 2]}, 1, 1)
    with pytest.raises(ValueError, match="no predictions of int8"):
        doctor_table(latency, {"fp32": spoil(1)})
    with pytest.raises(ValueError, match=r"unknown metric .acuracy."):
        doctor_table(latency, {}, metric="acuracy")
    with pytest.raises(ValueError, match=r"bad gives \(3,\) values an image, and digits has 10 classes"):
        predict_sides({"bad": lambda pixels: torch.zeros(len(pixels), 3).numpy()}, small_digits(), linear_digits().transform)
