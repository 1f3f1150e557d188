"""Latency and size: numbers that were worked out by hand, and turns that are fair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from vitlab.compress import latency
from vitlab.compress.benchmark import size_on_disk
from vitlab.compress.latency import latency_table, summarise_times
from vitlab.compress.variants import make_predictor

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)


def save_onnx(path, height=16, width=16):
    """A graph of one node, the mean over the pixels, written without torch."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    node = helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, height, width])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph([node], "mean", [pixels], [logits], [axes])
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def test_percentiles_ratios_and_rates_by_hand():
    times = {
        "slow": [0.010, 0.020, 0.030, 0.040, 0.050],
        "fast": [0.005, 0.010, 0.030, 0.010, 0.010],
    }
    slow, fast = summarise_times(times, 4, 2).to_dict("records")
    assert (slow["p50_ms"], slow["p90_ms"], slow["images_per_second"]) == pytest.approx(
        (30, 46, 4 / 0.030)
    )
    assert (slow["ratio"], slow["ratio_low"], slow["ratio_high"]) == (1, 1, 1)
    assert (fast["p50_ms"], fast["p90_ms"], fast["images_per_second"]) == pytest.approx(
        (10, 22, 400)
    )
    assert fast["ratio"] == pytest.approx(0.5)  # of 0.5, 0.5, 1, 0.25, 0.2; not 10 / 30
    assert 0.19 < fast["ratio_low"] < 0.5 < fast["ratio_high"] < 1.01
    assert (fast["variant"], fast["batch_size"], fast["threads"], fast["repeats"]) == (
        "fast",
        4,
        2,
        5,
    )


def test_variants_take_turns_warm_and_get_the_batch():
    calls = []
    variants = {
        name: lambda batch, name=name: calls.append((name, batch[:, 0, 0, 0].tolist()))
        for name in "abc"
    }
    table = latency_table(variants, IMAGES, (3,), repeats=4, threads=1)
    assert table["repeats"].tolist() == [4, 4, 4]
    names = [name for name, _ in calls]
    assert names[:9] == list("aaabbbccc")  # warm-up
    turns = [names[9 + 6 * turn : 15 + 6 * turn] for turn in range(4)]
    assert len(names) == 33
    assert all(turn[::2] == turn[1::2] and sorted(turn[::2]) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # no variant always follows the same one
    assert calls[0][1] == IMAGES[[0, 1, 0], 0, 0, 0].tolist()  # two images fill a batch of three


@pytest.fixture
def clock(monkeypatch):
    """A clock that only variants move."""
    now = [0.0]
    monkeypatch.setattr(
        latency, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda _: None)
    )
    return lambda seconds: lambda _: now.__setitem__(0, now[0] + seconds)


def test_what_is_timed_is_one_call(clock):
    table = latency_table({"two": clock(0.02), "one": clock(0.01)}, IMAGES, (1, 4), 5, 1)
    assert table["variant"].tolist() == ["two", "one"] * 2
    assert table["ratio"].tolist() == pytest.approx([1, 0.5] * 2)
    assert table["p50_ms"].tolist() == pytest.approx([20, 10] * 2)
    assert table["images_per_second"].tolist() == pytest.approx([50, 100, 200, 400])


def test_no_turn_begins_after_the_seconds_allowed(clock):
    assert latency_table({"a": clock(1)}, IMAGES, (1,), 100, 1, seconds=0)["repeats"].tolist() == [
        3
    ]
    # two calls a turn
    assert latency_table({"a": clock(1)}, IMAGES, (1,), 100, 1, seconds=9)["repeats"].tolist() == [
        5
    ]


def test_threads_are_those_named_and_given_back():
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        latency_table({"a": lambda _: seen.append(torch.get_num_threads())}, IMAGES, (1,), 1, 1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [0, 10_000, 1.0, True])
def test_threads_that_cannot_be(threads):
    with pytest.raises(ValueError, match="write a number from 1 to"):
        latency_table({"a": len}, IMAGES, threads=threads)


def test_bad_input_of_latency():
    with pytest.raises(ValueError, match="nothing to time"):
        latency_table({}, IMAGES)
    with pytest.raises(ValueError, match=r"images must be pixels \(N, 3, h, w\).*\(3, 16, 16\)"):
        latency_table({"a": len}, IMAGES[0])
    with pytest.raises(
        ValueError, match="a batch size must be a whole number of at least 1, not 0"
    ):
        latency_table({"a": len}, IMAGES, (1, 0))
    with pytest.raises(ValueError, match="repeats must be"):
        latency_table({"a": len}, IMAGES, repeats=0)
    with pytest.raises(ValueError, match="a list gives no logits"):
        latency_table({"a": []}, IMAGES)


def test_every_kind_of_variant_gives_the_same_logits(tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return self.scale * images.mean((2, 3))

    module, expected = Mean().train(), IMAGES.mean((2, 3))
    variants = [module, save_onnx(tmp_path / "mean.onnx"), lambda batch: batch.mean((2, 3))]
    for predictor in map(make_predictor, variants):
        found = predictor(IMAGES)
        assert found.dtype == np.float32
        assert found == pytest.approx(expected, abs=1e-6)
    assert not module.training


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        make_predictor(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"cannot run .*broken\.onnx"):
        make_predictor(broken)
    with pytest.raises(ValueError, match="holds no saved model"):
        size_on_disk(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        size_on_disk(tmp_path / "none.onnx")


def test_size_counts_the_model_and_nothing_else(tmp_path):
    (tmp_path / "model.onnx").write_bytes(bytes(1_500_000))
    (tmp_path / "model.onnx.data").write_bytes(bytes(500_000))
    (tmp_path / "model.safetensors").write_bytes(bytes(250_000))
    (tmp_path / "predictions.parquet").write_bytes(bytes(9_000_000))
    assert size_on_disk(tmp_path / "model.onnx") == pytest.approx(2.0)
    assert size_on_disk(tmp_path) == pytest.approx(0.25)
