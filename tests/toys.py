"""Data and models small enough for a training in under a second."""

from dataclasses import replace
from functools import cache

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from vitlab.data import ImageDataset, load_dataset
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
    return build_model(
        "hybrid_vit", small_digits().classes, pretrained=False, size=32, embed_dim=64, depth=1
    )


class Linear(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def linear_model(weight, bias, classes, size):
    """A bundle around one linear layer on the pixels (3, size, size)."""
    transform = replace(
        tiny_vit().transform, size=(size, size), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)
    )
    return replace(tiny_vit(), module=Linear(weight, bias), classes=classes, transform=transform)


@cache
def linear_digits():
    """Logistic regression on the pixels of the digits: right on nine test images of ten."""
    data = small_digits()
    model = linear_model(torch.zeros(10, 192), torch.zeros(10), data.classes, 8)
    images = ImageDataset(data, "train", model.transform)
    pixels = torch.stack(
        [image.flatten() for image, _, _ in images.__getitems__(range(len(images)))]
    )
    fitted = LogisticRegression(max_iter=1000).fit(pixels, images.labels)
    model.module.weight.data, model.module.bias.data = (
        torch.tensor(fitted.coef_).float(),
        torch.tensor(fitted.intercept_).float(),
    )
    return model
