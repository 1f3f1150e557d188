"""Training from the cache is training without it, in less time, memory and disk."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.toys import small_digits, tiny_hybrid, tiny_vit
from vitlab.data import ImageDataset, build_augmentation
from vitlab.models import build_model, split_stages
from vitlab.training import fit, recipe, split_model
from vitlab.training.cache import FeatureStore, FrozenFeatures, FrozenFront

CPU = torch.device("cpu")
FAMILIES = {
    "vit_scratch": {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "hybrid_vit": {"size": 32, "embed_dim": 64, "depth": 2, "patch_drop_rate": 0.0},
    "vit_tiny_patch16_224": {
        "size": 32,
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "img_size": 32,
    },
    "deit_tiny_distilled_patch16_224": {
        "size": 32,
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "img_size": 32,
    },
    "swin_tiny_patch4_window7_224": {
        "size": 32,
        "img_size": 32,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
    },
    "convnext_atto": {"size": 32, "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "resnet18": {"size": 32, "channels": (8, 8, 16, 16)},
    "efficientnet_lite0": {"size": 32},
}


def build(name):
    return build_model(name, small_digits().classes, pretrained=False, **FAMILIES[name])


def step_losses(name, **arguments):
    """The loss of each of 20 steps (epochs of one batch), and the validation loss after it; one
    view, dropout off.
    """
    config = recipe(
        name,
        epochs=20,
        batch_size=196,
        patience=20,
        views=1,
        augment="none",
        mixup=0.0,
        ema=0.0,
        learning_rate=1e-3,
        warmup_epochs=0,
        strategy="last_blocks",
        last_blocks=1,
        **arguments,
    )
    history = fit(build(name), small_digits(), config=config)
    return history[["train_loss", "val_loss"]].to_numpy()


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "fp32") for name in FAMILIES),
        ("vit_tiny_patch16_224", "auto"),
        ("resnet18", "auto"),
    ],
)
def test_training_from_the_cache_gives_the_same_losses(name, precision, reports_folder):
    cached = step_losses(name, precision=precision, cache=True)
    assert list((reports_folder / "cache").glob("*.features"))
    without = step_losses(name, precision=precision, cache=False)
    assert cached.shape == (20, 2)
    np.testing.assert_allclose(cached[:, 0], without[:, 0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(cached[:, 1], without[:, 1], rtol=1e-4)
    assert cached[-1, 0] < cached[0, 0], "something was learnt"


def test_against_a_loop_without_vitlab():
    """Five steps of the last block and the head, written out."""
    model, data = tiny_vit(), small_digits()
    config = recipe(
        "vit_scratch",
        epochs=1,
        batch_size=39,
        augment="none",
        precision="fp32",
        warmup_epochs=0,
        strategy="last_blocks",
        learning_rate=1e-3,
        clip=0,
        weight_decay=0,
        class_weights="none",
    )
    images = ImageDataset(data, "train", model.transform)
    order = torch.randperm(
        len(images), generator=torch.Generator().manual_seed(_order_seed())
    ).tolist()
    reference = tiny_vit().module.train().requires_grad_(False)
    moving = [
        p
        for part in (reference.blocks[2], reference.norm, reference.head)
        for p in part.requires_grad_(True).parameters()
    ]
    optimizer = torch.optim.AdamW(moving, lr=1e-3, weight_decay=0)
    losses = []
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 5))
        batch = images.__getitems__(order[39 * step : 39 * step + 39])
        inputs, labels = (
            torch.stack([item[0] for item in batch]),
            torch.tensor([item[1] for item in batch]),
        )
        loss = torch.nn.functional.cross_entropy(reference(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    history = fit(model, data, config=config)
    assert history["train_loss"][0] == pytest.approx(np.mean(losses), abs=1e-5)
    torch.testing.assert_close(model.module.head.weight, reference.head.weight, atol=1e-5, rtol=0)


def _order_seed():
    from vitlab.seeds import derive_seed

    return derive_seed(0, "order", 1)


def test_the_cache_moves_with_gradual_unfreezing(reports_folder):
    arguments = {
        "epochs": 3,
        "batch_size": 32,
        "strategy": "gradual",
        "last_blocks": 0,
        "precision": "fp32",
        "augment": "none",
    }
    cached = fit(tiny_vit(), small_digits(), config=recipe("vit_scratch", **arguments))
    files = list((reports_folder / "cache").glob("*.features"))
    assert len(files) == 3 and len({file.stat().st_size for file in files}) == 2, (
        "vectors for the probe, tokens for the blocks"
    )
    without = fit(
        tiny_vit(), small_digits(), config=recipe("vit_scratch", cache=False, **arguments)
    )
    np.testing.assert_allclose(cached["train_loss"], without["train_loss"], atol=1e-4)


def test_cached_features_are_the_frozen_outputs(reports_folder):
    digits, model = small_digits(), tiny_hybrid()
    border = [name for name, _ in split_stages(model.module)].index("embed")
    front = FrozenFront(split_model(model.module, border)[0], "auto", CPU)
    augment = build_augmentation("strong", model.transform.size)
    features = FrozenFeatures(digits, "val", model, front, views=2, augment=augment)
    images = ImageDataset(digits, "val", model.transform)
    with torch.inference_mode():
        expected = front.module(torch.stack([images[i][0] for i in range(5)]))
    plain, augmented = (store.values[features.rows[:5]].float() for store in features.stores)
    size = expected.abs().max().item()
    # bfloat16 keeps 8 bits
    torch.testing.assert_close(plain, expected, atol=0.02 * size, rtol=0.02)
    assert (augmented - plain).abs().max() > 0.1 * size
    seen = []
    for epoch in (1, 2):
        features.set_epoch(epoch)
        seen.append([torch.equal(features[i][0].float(), plain[i]) for i in range(2)])
    assert seen == [[False, True], [True, False]], "the views take turns"

    files = {path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")}
    again = FrozenFeatures(digits, "val", model, front, views=2, augment=augment)
    assert files == {
        path: path.stat().st_mtime_ns for path in (reports_folder / "cache").glob("*.npy")
    }, "nothing is done twice"
    assert torch.equal(again.stores[1].values, features.stores[1].values)


def test_a_view_of_an_image_does_not_depend_on_the_others():
    digits, model = small_digits(), tiny_hybrid()
    front = FrozenFront(split_model(model.module, 2)[0], "fp32", CPU)
    augment = build_augmentation("strong", model.transform.size)
    views = []
    # what comes first fills the store; the rows of "val" must be the same in both orders
    for first in ("train", "val"):
        FrozenFeatures(digits, first, model, front, views=2, augment=augment)
        features = FrozenFeatures(digits, "val", model, front, views=2, augment=augment)
        views.append(features.stores[1].values[features.rows].clone())
        features.stores[1].path.unlink()
    torch.testing.assert_close(views[0], views[1], atol=1e-5, rtol=1e-5)


def test_a_front_of_other_weights_is_another_cache(reports_folder):
    for seed in (0, 1):
        model = tiny_vit(seed=seed)
        FrozenFeatures(
            small_digits(), "val", model, FrozenFront(split_model(model.module, 2)[0], "fp32", CPU)
        )
    assert len(list((reports_folder / "cache").glob("*.features"))) == 2


def test_the_cache_folder_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_CACHE_GB", "0.00001")  # 10,000 bytes: room for two of 4,000
    for number, name in enumerate(("a", "b", "c")):
        store = FeatureStore(tmp_path / f"{name}.features", (10, 100), torch.float32)
        os.utime(store.path, (number, number))
    assert sorted(file.stem for file in tmp_path.glob("*.features")) == [
        "b",
        "c",
    ], "the one used longest ago went"
    with pytest.raises(ValueError, match="set VITLAB_CACHE_GB to more"):
        FeatureStore(tmp_path / "d.features", (10, 1000), torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_twice_the_data_needs_no_more_memory(tmp_path):
    """Peak resident memory (Linux counts it by process) after reading a store of 64 MB in batches,
    and one of 128 MB.
    """
    program = (
        "import sys, torch; from pathlib import Path; from vitlab.training.cache import"
        " FeatureStore\nfor rows in (512, 1024):\n    store = FeatureStore(Path(sys.argv[1],"
        " f'{rows}.features'), (rows, 1 << 16), torch.bfloat16)\n    for start in range(0, rows,"
        " 16): store.read(torch.arange(start, start + 16))\n    print(next(line.split()[1] for line"
        " in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    for rows in (512, 1024):
        FeatureStore(tmp_path / f"{rows}.features", (rows, 1 << 16), torch.bfloat16).values.fill_(1)
    first, second = map(
        int,
        subprocess.check_output(
            [sys.executable, "-c", program, str(tmp_path)], timeout=120
        ).split(),
    )
    assert second - first < 20_000, "kB"
