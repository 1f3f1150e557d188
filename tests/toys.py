"""Data and models small enough for a training in under a second."""

from functools import cache

from vitlab.data import load_dataset
from vitlab.models import build_model

TINY = {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}


@cache
def small_digits():
    """Every sixth of the digits, all classes and splits among them."""
    data = load_dataset("digits", seed=0)
    return load_dataset("digits", samples=data.samples.iloc[::6].reset_index(drop=True))


def tiny_vit(seed=0, **options):
    return build_model("vit_scratch", small_digits().classes, seed=seed, **{**TINY, **options})


def tiny_hybrid():
    return build_model("hybrid_vit", small_digits().classes, pretrained=False, size=32, embed_dim=64, depth=1)
