import copy
import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.test_shrinking import FAMILIES, SPEC, draw_images, tiny_timm
from tests.toys import tiny_vit
from vitlab.compress.merging import count_multiply_adds, count_tokens, merge_tokens
from vitlab.explain import explain
from vitlab.models import load_model, save_model, shrink_model, split_stages
from vitlab.models.merging import bipartite_soft_matching


def match_by_hand(metric, tokens, r, prefix):
    """Bipartite soft matching of one image, (T, d) and (T, C), token by token."""
    T = len(metric)
    similar = {}
    for i in range(0, T, 2):
        for j in range(1, T, 2):
            if i >= prefix and j >= prefix:
                similar[i, j] = float(metric[i] @ metric[j] / metric[i].norm() / metric[j].norm())
    best = {
        i: max((j for j in range(1, T, 2) if (i, j) in similar), key=lambda j: similar[i, j])
        for i in range(0, T, 2)
        if i >= prefix
    }
    moved = sorted(best, key=lambda i: -similar[i, best[i]])[: min(r, (T - prefix) // 2)]
    tokens = tokens.clone()
    for i in moved:
        tokens[best[i]] += tokens[i]
    stay = (
        [i for i in range(prefix, T, 2) if i % 2 == 0]
        if prefix % 2 == 0
        else list(range(prefix + 1, T, 2))
    )
    stay = [i for i in stay if i not in moved]
    odd = [j for j in range(prefix, T) if j % 2 == 1]
    return tokens[[*range(prefix), *stay, *odd]]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("r", [1, 3, 99])
def test_matching_equals_the_one_written_out(prefix, r):
    generator = torch.Generator().manual_seed(prefix)
    metric, tokens = (
        torch.randn(4, 17, 6, generator=generator),
        torch.randn(4, 17, 3, generator=generator),
    )
    merged = bipartite_soft_matching(metric, r, prefix)(tokens)
    expected = torch.stack(
        [match_by_hand(*pair, r, prefix) for pair in zip(metric, tokens, strict=True)]
    )
    assert torch.allclose(merged, expected, atol=1e-6)
    assert torch.equal(merged[:, :prefix], tokens[:, :prefix])
    assert torch.allclose(merged.sum(dim=1), tokens.sum(dim=1), atol=1e-5)  # nothing is lost


def test_matching_of_nothing():
    assert bipartite_soft_matching(torch.randn(1, 5, 2), 0) is None
    assert bipartite_soft_matching(torch.randn(1, 2, 2), 3) is None  # the class token and one other


def run_by_hand(model, images, r):
    """A ViT (vit_scratch) with token merging, image by image, in the paper's words."""
    module = model.module
    logits = []
    for tokens in module.embed_tokens(images):
        size = torch.ones(len(tokens))
        for block in module.blocks:
            attn = block.attn
            parts = attn.qkv(block.norm1(tokens)).reshape(
                len(tokens), 3, attn.num_heads, attn.head_dim
            )
            heads = []
            for h in range(attn.num_heads):
                q, k, v = (parts[:, i, h] for i in range(3))
                heads.append((q @ k.T / math.sqrt(attn.head_dim) + size.log()).softmax(dim=1) @ v)
            tokens = tokens + attn.proj(torch.cat(heads, dim=1))
            keys = parts[:, 1].mean(dim=1)
            tokens, size = (
                match_by_hand(keys, tokens * size[:, None], r, 1),
                match_by_hand(keys, size[:, None], r, 1)[:, 0],
            )
            tokens = tokens / size[:, None]
            tokens = tokens + block.mlp(block.norm2(tokens))
        logits.append(module.head(module.norm(tokens)[0]))
    return torch.stack(logits)


def test_a_merging_model_equals_the_one_written_out():
    model = tiny_vit()
    images = draw_images(model)
    with torch.no_grad():
        merged = merge_tokens(model, 3).module(images)
        assert torch.allclose(merged, run_by_hand(model, images, 3), atol=1e-5)
        assert (merged - model.module(images)).abs().max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_nothing_changes_nothing_and_merging_is_kept(family, tmp_path):
    model = FAMILIES[family]()
    images = draw_images(model)
    with torch.no_grad():
        before = model.module(images)
        assert torch.allclose(merge_tokens(model, 0).module(images), before, atol=1e-6)
        merged = merge_tokens(model, [1, 0, 2])
        after = merged.module(images)
        assert not torch.equal(after, before) and torch.equal(model.module(images), before)
        save_model(merged, tmp_path)
        assert torch.equal(load_model(tmp_path).module(images), after)


def test_the_class_token_alone_is_left_at_the_extreme():
    model = tiny_vit()  # 1 + 16 tokens
    assert count_tokens(model) == [17, 17, 17]
    assert count_tokens(merge_tokens(model, 3)) == [17, 14, 11]
    assert count_tokens(merge_tokens(model, 99)) == [17, 9, 5]


def test_multiply_adds_of_a_merging_model_by_hand():
    # 16 patches of 4 pixels and the class token; C = 16, 64 neurons, 3 blocks, 10 classes
    model, r = tiny_vit(), 3
    C, T, expected = 16, 17, 16 * 16 * 3 * 16 + 16 * 10
    for _ in range(3):
        # of the similarities, keys of 8; the class token is at an even place
        pairs = ((T - 1) // 2) * (T // 2) * 8
        expected += T * C * 3 * C + 2 * T * T * C + T * C * C + pairs
        T -= r
        expected += 2 * T * C * 64
    assert count_multiply_adds(merge_tokens(model, r)) == expected


def test_merging_after_shrinking(tmp_path):
    model = merge_tokens(shrink_model(tiny_timm(), SPEC), 2)
    save_model(model, tmp_path)
    images = draw_images(model)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).module(images), model.module(images))
    with pytest.raises(ValueError, match="cannot be pruned: it merges tokens already"):
        shrink_model(model, [{}, {}])


def test_pieces_gradients_copies_and_threads():
    model = merge_tokens(tiny_vit(), 3)
    images = draw_images(model)
    with torch.no_grad():
        expected = model.module(images)
        x = images
        for _, stage in split_stages(model.module):
            x = stage(x)
        assert torch.equal(x, expected)
        assert torch.equal(copy.deepcopy(model.module)(images), expected)

    @torch.no_grad()
    def run(i):
        passes = [model.module(images[: 1 + i % 3]) for _ in range(20)]
        return all(torch.allclose(logits, expected[: 1 + i % 3], atol=1e-6) for logits in passes)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))
    assert np.ptp(explain(model, images, "saliency").values) > 0
    with pytest.raises(ValueError, match="rollout needs"):
        explain(model, images, "rollout")


def test_export_to_onnx_with_any_number_of_images():
    onnxruntime = pytest.importorskip("onnxruntime")
    model = merge_tokens(tiny_timm(), 3)
    images = draw_images(model, 5)
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    torch.onnx.export(
        model.module, (images[:2],), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    ).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for count in (1, 5):
        (logits,) = session.run(None, {name: images[:count].numpy()})
        with torch.no_grad():
            assert np.abs(logits - model.module(images[:count]).numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("r", "message"),
    [(-1, "from 0"), ([1, 2], "one for each of the 3 blocks"), (1.5, "not 1.5"), (True, "True")],
)
def test_numbers_that_do_not_fit(r, message):
    with pytest.raises(ValueError, match=message):
        merge_tokens(tiny_vit(), r)


def test_models_that_cannot_merge():
    with pytest.raises(ValueError, match="merges tokens already"):
        merge_tokens(merge_tokens(tiny_vit(), 1), 1)
    with pytest.raises(ValueError, match="global_pool='avg'"):
        merge_tokens(tiny_timm(global_pool="avg"), 1)
