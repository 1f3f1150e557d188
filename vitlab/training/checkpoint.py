"""A training on disk: everything it needs to carry on as if nothing had happened, in one
safetensors file, never pickled.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitlab.errors import UserError
from vitlab.files import atomic

KEPT = 2  # so that there is one before the newest, should that be damaged


class Checkpoints:
    """The checkpoints of one training: `step00000120.safetensors`, the newest two, in a folder of
    the run.

    identity: what the training is (model, classes, data, arguments); a checkpoint of another one is
    refused."""

    def __init__(self, folder: Path, identity: dict):
        self.folder, self.identity = Path(folder), json.loads(json.dumps(identity, default=str))

    def save(self, step: int, tensors: dict[str, torch.Tensor], progress: dict) -> bool:
        """Write a checkpoint, whole or not at all. False when the disk has no room for it: the
        training need not end for that.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step{step:08d}.safetensors"
        content = json.dumps({"identity": self.identity, "progress": progress})
        try:
            with atomic(path) as temporary:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()},
                    temporary,
                    {"vitlab": content},
                )
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
        except (OSError, SafetensorError):
            return False
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)
        return True

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors and progress of the newest checkpoint that is whole; None when there is none.

        Raises ValueError, naming what differs, for a checkpoint of another training.
        """
        for leftover in self.folder.glob(".step*"):
            with suppress(OSError):
                leftover.unlink()
        for path in reversed(self._files()):
            try:
                with safe_open(path, framework="pt") as file:
                    content = json.loads(file.metadata()["vitlab"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                continue  # cut short: the one before is whole
            self._check(content["identity"], path)
            return tensors, content["progress"]
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step*.safetensors"))

    def _check(self, found: dict, path: Path) -> None:
        for key in self.identity:
            if found.get(key) != self.identity[key]:
                raise UserError(
                    f"{path} belongs to another training: its {key} is {found.get(key)!r}, here it"
                    f" is {self.identity[key]!r}. Choose another run_name, or delete the folder to"
                    " start anew"
                )


def flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The optimizer's state as named tensors, `optimizer.<parameter>.<name>`, and its groups as
    plain values.
    """
    content = optimizer.state_dict()
    tensors = {
        f"optimizer.{parameter}.{name}": torch.as_tensor(value)
        for parameter, state in content["state"].items()
        for name, value in state.items()
    }
    return tensors, content["param_groups"]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict]
) -> None:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            parameter, _, name = rest.partition(".")
            state.setdefault(int(parameter), {})[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
