import pytest
import torch

from vitlab.seeds import derive_seed
from vitlab.training.order import BatchOrder, warmup_cosine


def batches(**arguments):
    return list(BatchOrder(20, 6, seed=1, **arguments))


def test_every_image_once_an_epoch_in_another_order_each():
    order = BatchOrder(20, 5, seed=1)
    first = [i for batch in order for i in batch]
    order.epoch = 2
    second = [i for batch in order for i in batch]
    assert sorted(first) == sorted(second) == list(range(20)) and first != second


def test_processes_and_parts_cut_the_same_batches():
    whole = batches()
    assert len(whole) == 3 == BatchOrder(20, 6, seed=1).steps
    parts = batches(accumulation=3)
    assert [parts[3 * i] + parts[3 * i + 1] + parts[3 * i + 2] for i in range(3)] == whole
    shares = [batches(rank=rank, processes=2) for rank in (0, 1)]
    assert [shares[0][i] + shares[1][i] for i in range(3)] == whole


def test_beginning_in_the_middle():
    order = BatchOrder(20, 6, seed=1, accumulation=2)
    whole = list(order)
    order.first_step = 2
    assert list(order) == whole[4:] and len(order) == 2


def test_batch_that_cannot_be_cut():
    with pytest.raises(
        ValueError,
        match=r"2 \(accumulation\) x 2 \(processes\) equal parts; choose .* multiple of 4",
    ):
        BatchOrder(20, 6, seed=1, accumulation=2, processes=2)


def test_seeds_depend_on_every_part_and_their_order():
    seeds = {
        derive_seed(0, 1),
        derive_seed(1, 0),
        derive_seed(0, 1, "order"),
        derive_seed(0, "1"),
        derive_seed(0),
    }
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
    torch.manual_seed(max(seeds))


def test_warmup_cosine_by_hand():
    assert [warmup_cosine(step, 3, 11) for step in (0, 1, 2, 3)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(7, 3, 11) == pytest.approx(0.5)
    assert warmup_cosine(11, 3, 11) == pytest.approx(0.0)
