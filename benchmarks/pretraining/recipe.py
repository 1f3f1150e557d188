"""The two recipes: one for a GPU and a folder of ImageNet's kind, and a reduced one that two cores
get through in some hours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from pretraining.student import Weights
from vitlab.errors import UserError
from vitlab.registry import unknown


@dataclass(frozen=True)
class Recipe:
    """depth: blocks of the student. stored: pixels a side that images are decoded to. lessons:
    `online` or `cached`, and for the latter `cached_sizes`, at which the teacher saw the images.
    patch_drop: share of patches left out of a step. learning_rate: for the batch size given,
    reached after `warmup` of all steps, then falling along a cosine to zero. average: decay of the
    moving average that is kept. finish: share of the last steps with all patches, as the network
    will be used."""

    epochs: int = 300
    batch_size: int = 1024
    depth: int = 12
    size: int = 128
    stored: int = 144
    lessons: str = "online"
    cached_sizes: tuple[int, ...] = (128,)
    patch_drop: float = 0.0
    finish: float = 0.0
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.05
    average: float = 0.9998
    seed: int = 0
    weights: Weights = field(default_factory=Weights)

    def describe(self) -> dict:
        return asdict(self)


RECIPES = {
    "full": Recipe(),
    "laptop": Recipe(
        epochs=10,
        batch_size=128,
        depth=6,
        stored=64,
        lessons="cached",
        patch_drop=0.5,
        finish=0.1,
        warmup=0.05,
        average=0.998,
    ),
}


def find_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise UserError(unknown("recipe", name, list(RECIPES)))
    return RECIPES[name]
