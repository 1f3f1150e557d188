"""Which patch stands at which row and column of an attention matrix, and what can be read off once
that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vitlab.models.anatomy import place_tokens
from vitlab.schema import Anatomy


@dataclass(frozen=True)
class Layout:
    """Patches, numbered row by row over `grid`, at the places of each window: (windows, T); -1 is
    no patch (a prefix, a filling).

    Attention over all tokens is one window.
    """

    grid: tuple[int, int]
    places: torch.Tensor

    def split(self, attention: torch.Tensor) -> torch.Tensor:
        """(B * windows, H, T, T) to (B, windows, H, T, T)."""
        return attention.unflatten(0, (-1, len(self.places)))


def list_layouts(anatomy: Anatomy) -> list[Layout]:
    """The layout of each attention layer, in order."""
    if anatomy.windows:
        return [Layout(window.grid, place_tokens(window)) for window in anatomy.windows]
    patches = torch.arange(anatomy.grid[0] * anatomy.grid[1])
    places = torch.cat([torch.full((anatomy.num_prefix_tokens,), -1), patches])[None]  # (1, T)
    return [Layout(anatomy.grid, places)] * len(anatomy.attention)


def measure_distance_and_entropy(
    attention: torch.Tensor, layout: Layout, size: tuple[int, int]
) -> torch.Tensor:
    """How far and how widely patches look, (B * windows, H, T, T) to (B, H, 2), means over all
    patches of an image.

    Attention to what is no patch is left out and the rest divided by its sum. The distance is the
    mean of those between the patches' centres, in pixels of an image of this size (height, width);
    the entropy is in nats, log(N) for an even look at N."""
    attention = layout.split(attention.float())  # (B, windows, H, T, T)
    places = layout.places.to(attention.device)
    known = places >= 0  # (windows, T)
    weights = attention * known[:, None, None]
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    rows, columns = layout.grid
    centres = torch.stack(
        [places // columns * (size[0] / rows), places % columns * (size[1] / columns)], dim=-1
    )  # (windows, T, 2)
    distance = (weights * torch.cdist(centres, centres)[:, None]).sum(dim=-1)  # (B, windows, H, T)
    # (B, windows, H, T, 2)
    found = torch.stack([distance, torch.special.entr(weights).sum(dim=-1)], dim=-1)
    return (found * known[:, None, :, None]).sum(dim=(1, 3)) / known.sum()


def map_received(
    attention: torch.Tensor, layout: Layout, share: torch.Tensor | None = None
) -> torch.Tensor:
    """How much attention each patch gets from the tokens that are read: (B * windows, H, T, T) to
    (B, H, rows, columns).

    share: (B, T), the weight of each token that looks, see share_read_tokens; by default all
    patches count alike."""
    attention = layout.split(attention.float())  # (B, windows, H, T, T)
    known = layout.places.to(attention.device) >= 0  # (windows, T)
    # (1 or B, windows, T)
    looking = (known / known.sum())[None] if share is None else share[:, None]
    got = torch.einsum("bwq,bwhqk->bhwk", looking.expand(len(attention), -1, -1), attention)
    order = layout.places.to(attention.device)[known].argsort()  # every patch stands at one place
    return got[:, :, known][..., order].unflatten(-1, layout.grid)
