"""The weights that come with vitlab: a small ViT in bfloat16, made by `benchmarks/pretraining`,
beside its card and checksum.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import pandas as pd
import torch
from safetensors.torch import load

from vitlab.errors import UserError

FOLDER = files("vitlab.models") / "shipped"


@cache
def shipped_weights(name: str) -> dict[str, torch.Tensor]:
    """The tensors of `name`.safetensors as float32; ValueError where the file is not the one that
    was shipped.
    """
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    wanted, _ = (FOLDER / f"{name}.sha256").read_text(encoding="ascii").split()
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise UserError(
            f"{name}.safetensors is damaged: its SHA-256 is {found[:12]}…, not {wanted[:12]}…;"
            " install vitlab anew"
        )
    return {key: tensor.float() for key, tensor in load(content).items()}


def pretraining_log(name: str) -> pd.DataFrame:
    """A row an epoch of the pretraining: epoch, the parts of the loss, accuracy on validation
    (0..1), rate, seconds.
    """
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def pretraining_hunger(name: str) -> pd.DataFrame:
    """Rows of `hunger_table` on digits, as measured: `pretrained` from these weights, `scratch`
    from random ones.
    """
    with (FOLDER / f"{name}_hunger.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
