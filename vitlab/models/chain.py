"""A classifier as a chain of pieces whose composition gives its output.

Training cuts the chain: what comes before the first trained piece is computed once and kept.
"""

from __future__ import annotations

from torch import nn

from vitlab.errors import UserError
from vitlab.models.families import find_cutter
from vitlab.registry import unknown


def pieces(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The classifier as an ordered list of (name, module); feeding each one's output to the next
    gives `module(x)`.

    Every parameter of the model is in exactly one piece, and belongs to the model still. The pieces
    are blocks: `embed, block0.., neck, head` for a ViT or a Mixer; `stem` or `embed,
    stage0.block0.., neck, head` for models in stages; for a HybridViT `stem.conv,
    stem.stage0.block0..`, then as for a ViT. `neck` is what lies between the last block and the
    classifier `head`. Any other model of timm is cut once, into `features` and `head`. Raises
    ValueError for a model that cannot be cut."""
    chain = find_cutter(module)(module)
    held = [id(tensor) for _, piece in chain for tensor in (*piece.parameters(), *piece.buffers())]
    if sorted(held) != sorted(id(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise UserError(
            f"cannot cut a {type(module).__name__} into pieces: it has parts that none of them"
            " would hold"
        )
    own = set(module.modules())
    for _, piece in chain:
        for part in {piece, *piece.modules()} - own:  # wrappers made here start in the model's mode
            part.training = module.training
    return chain


def find_piece(names: list[str], name: str) -> int:
    """The position of the first piece of this name, or within it: `stage5` finds `stage5.block0`.
    ValueError with all names.
    """
    for position, known in enumerate(names):
        if known == name or known.startswith(f"{name}."):
            return position
    raise UserError(unknown("piece to train from", name, list(names)))


def block_positions(names: list[str]) -> list[int]:
    """Where, among the pieces of these names, the blocks stand."""
    return [
        position
        for position, name in enumerate(names)
        if name.rpartition(".")[2].startswith("block")
    ]
