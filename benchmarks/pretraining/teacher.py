"""What the teacher says of an image: one embedding of the whole and one of each place, from
EfficientNet-Lite0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from pretraining.images import ImageArray
from vitlab.models import build_model
from vitlab.models.hybrid import STEM_STAGES
from vitlab.training.devices import autocast, choose_precision

MAP_CHANNELS, EMBED_DIM = 112, 1280


@dataclass(frozen=True)
class Advice:
    """features: (B, 112, h/16, w/16), the map at stride 16. embedding: (B, 1280), what the
    teacher's own classifier reads.
    """

    features: torch.Tensor
    embedding: torch.Tensor


class Teacher(nn.Module):
    """EfficientNet-Lite0 with its packaged ImageNet weights, frozen. Takes (B, 3, h, w) pixels in
    0..1.
    """

    def __init__(self):
        super().__init__()
        bundle = build_model("efficientnet_lite0", [str(i) for i in range(1000)])
        self.network = bundle.module.requires_grad_(False).to(memory_format=torch.channels_last)
        self.classifier = self.network.classifier
        for name, values in (("mean", bundle.transform.mean), ("std", bundle.transform.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    @torch.inference_mode()
    def forward(self, pixels) -> Advice:
        network, device = self.network, pixels.device
        with autocast(device, choose_precision(device)):
            x = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            x = network.bn1(network.conv_stem(x))
            for stage in network.blocks[:STEM_STAGES]:
                x = stage(x)
            features = x
            for stage in network.blocks[STEM_STAGES:]:
                x = stage(x)
            embedding = network.global_pool(network.bn2(network.conv_head(x)))
        return Advice(features.float(), embedding.float())

    def find_classes(self, classes: tuple[str, ...]) -> torch.Tensor | None:
        """The teacher's output for each class, where all are ImageNet's WordNet identifiers
        (n02124075); else None.
        """
        places = {
            wnid: place for place, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())
        }
        return (
            torch.tensor([places[name] for name in classes])
            if all(name in places for name in classes)
            else None
        )


class AdviceCache:
    """The teacher's outputs for every image as it is, enlarged to `size` pixels, in half precision
    in two files.

    An image takes 224 bytes a place and 2,560: 100,000 images at 128 pixels are 1.7 GB.
    """

    def __init__(
        self,
        images: ImageArray,
        teacher: Teacher,
        size: int,
        folder: Path,
        device: torch.device,
        batch_size: int = 64,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        grid = size // 16
        shapes = {
            "features": (len(images), MAP_CHANNELS, grid, grid),
            "embedding": (len(images), EMBED_DIM),
        }
        paths = {name: folder / f"{name}-{size}-{len(images)}.npy" for name in shapes}
        if not all(path.exists() for path in paths.values()):
            parts = {
                name: np.lib.format.open_memmap(
                    paths[name].with_suffix(".part"), "w+", np.float16, shape
                )
                for name, shape in shapes.items()
            }
            for start in tqdm(
                range(0, len(images), batch_size), desc=f"teacher at {size}", mininterval=10
            ):
                places = np.arange(start, min(start + batch_size, len(images)))
                pixels, _ = images.take(places, device)
                advice = teacher(enlarge(pixels, size))
                for name in parts:
                    parts[name][places] = getattr(advice, name).cpu().numpy()
            for name in shapes:
                parts.pop(name).flush()
                paths[name].with_suffix(".part").replace(paths[name])
        self.size = size
        self._arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}

    def take(self, places: np.ndarray, device: torch.device) -> Advice:
        return Advice(
            *(
                torch.from_numpy(self._arrays[name][places]).to(device).float()
                for name in ("features", "embedding")
            )
        )


def enlarge(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, 3, h, w) as floats in 0..1 at `size` x `size` pixels."""
    return F.interpolate(
        pixels.float() / 255, size=(size, size), mode="bilinear", antialias=pixels.shape[-1] > size
    )
