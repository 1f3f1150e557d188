"""Weights as they are shipped: half the bytes, and the facts that go with them in the same file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pretraining.recipe import Recipe
from vitlab.files import atomic

NAME = "vit_tiny_vitlab"


def write_weights(network: nn.Module, folder: Path, recipe: Recipe, accuracy: float) -> Path:
    """NAME.safetensors in bfloat16, with recipe and accuracy in its header, and NAME.sha256 beside
    it.
    """
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in network.state_dict().items()
    }
    facts = {"recipe": json.dumps(recipe.describe()), "accuracy": str(accuracy)}
    path = folder / f"{NAME}.safetensors"
    with atomic(path) as temporary:
        save_file(tensors, temporary, facts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with atomic(folder / f"{NAME}.sha256") as temporary:
        temporary.write_text(f"{digest}  {path.name}\n", encoding="ascii")
    return path
