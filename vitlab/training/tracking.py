"""The history sent, on request, to TensorBoard, Trackio or Weights & Biases as well, by
Accelerate's trackers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from accelerate import Accelerator

from vitlab.errors import UserError
from vitlab.runs import Run
from vitlab.training.config import TrainConfig

PROJECT = "vitlab"


def check_tracker(tracker: str) -> None:
    """ValueError when the package behind a tracker is not installed; Accelerate itself would go on
    without a word.
    """
    if tracker and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"tracker={tracker!r} needs a package that is not installed: pip install"
            " 'vitlab[tracking]'"
        )


@contextmanager
def tracking(
    accelerator: Accelerator, config: TrainConfig, run: Run | None
) -> Iterator[Callable[[dict, int], None]]:
    """A function (row of the history, epoch) that logs it, to be called within; one that does
    nothing without a tracker.
    """
    if not config.tracker:
        yield lambda row, epoch: None
        return
    name, folder = (run.name, str(run.path)) if run else (None, None)
    options = {
        "wandb": {"wandb": {"name": name, "dir": folder}},
        "trackio": {"trackio": {"name": name}},
    }
    accelerator.init_trackers(
        PROJECT, config=asdict(config), init_kwargs=options.get(config.tracker, {})
    )
    try:
        yield lambda row, epoch: accelerator.log(
            {key: value for key, value in row.items() if key != "epoch"}, step=epoch
        )
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
