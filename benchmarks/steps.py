"""What bench_training times in processes of their own: training steps of a ViT-Ti, a number of
seconds at a time.
"""

from __future__ import annotations

import sys
import time

import torch

from vitlab.models import build_model


def train_when_asked() -> None:
    """Read a number of seconds from a line, train for as long, write the steps a second; until
    standard input closes.
    """
    module = build_model("vit_tiny_patch16_224", ["a", "b"], pretrained=False).module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    images, labels = torch.randn(16, 3, 224, 224), torch.arange(16) % 2

    def take_step() -> None:
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    take_step()
    for line in sys.stdin:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(line):
            take_step()
            steps += 1
        print(steps / (time.perf_counter() - start), flush=True)
