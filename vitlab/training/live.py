"""What a training run shows: in Jupyter a table by epoch, in a terminal a progress bar; and the
history sent, on request, to TensorBoard, Trackio or Weights & Biases by Accelerate's trackers.

The table is HTML that is updated in place, so it is still there when the notebook is saved and
opened again. Reports leave it out; they have the figure of the history."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from html import escape

from accelerate import Accelerator
from IPython import get_ipython
from IPython.display import HTML, display
from tqdm import tqdm

from vitlab.errors import UserError
from vitlab.markup import JUPYTER_ONLY
from vitlab.runs import Run
from vitlab.training.config import TrainConfig

REFRESH_SECONDS = 1.0


def show_training(name: str, monitor: str, epochs: int, steps: int, visible: bool = True):
    """The display for a training run: a `LiveTable` in Jupyter, else a `Bar`.

    name: of the model. monitor: the column that decides. steps: in each epoch. visible: False shows
    nothing."""
    # a forked process has no connection to Jupyter's front end
    forked = multiprocessing.parent_process() is not None
    in_jupyter = getattr(get_ipython(), "kernel", None) is not None and not forked
    return (LiveTable if in_jupyter else Bar)(name, monitor, epochs, steps, visible)


class Bar:
    """A progress bar in steps, with the last value of the monitored score."""

    def __init__(self, name: str, monitor: str, epochs: int, steps: int, visible: bool):
        self.monitor = monitor
        self.options = {"total": epochs * steps, "desc": f"train {name}", "unit": "step"}
        self.options |= {"mininterval": REFRESH_SECONDS, "disable": None if visible else True}
        self.bar: tqdm | None = None

    def start(self, done: int, history: Sequence[dict], best_epoch: int) -> None:
        """Begin after `done` steps and these epochs, which do not count for the rate."""
        self.bar = tqdm(initial=done, **self.options)

    def step(self) -> None:
        self.bar.update()

    def epoch(self, row: dict, best_epoch: int) -> None:
        self.bar.set_postfix({self.monitor: f"{row[self.monitor]:.3f}"})

    def close(self) -> None:
        self.bar.close()


class LiveTable:
    """A table with a row for each epoch and the best one marked; below it the running epoch, its
    rate and the time left.
    """

    def __init__(self, name: str, monitor: str, epochs: int, steps: int, visible: bool):
        self.name, self.monitor, self.visible = name, monitor, visible
        self.epochs, self.steps = epochs, steps
        self.rows: list[dict] = []
        self.best_epoch = self.done = self.first = 0
        self.began = self.shown = 0.0
        self.handle = None

    def start(self, done: int, history: Sequence[dict], best_epoch: int) -> None:
        """Begin after `done` steps and these epochs, which do not count for the rate."""
        self.rows, self.best_epoch = list(history), best_epoch
        self.done = self.first = done
        self.began = time.perf_counter()
        self._show()

    def step(self) -> None:
        self.done += 1
        if time.perf_counter() - self.shown > REFRESH_SECONDS:
            self._show()

    def epoch(self, row: dict, best_epoch: int) -> None:
        self.rows.append(row)
        self.best_epoch = best_epoch
        self._show()

    def close(self) -> None:
        self._show(running=False)

    def _show(self, running: bool = True) -> None:
        self.shown = time.perf_counter()
        if not self.visible:
            return
        content = HTML(render_table(self.rows, self.monitor, self.best_epoch, self._state(running)))
        if self.handle is None:
            self.handle = display(content, metadata=JUPYTER_ONLY, display_id=True)
        else:
            self.handle.update(content, metadata=JUPYTER_ONLY)

    def _state(self, running: bool) -> str:
        if not running:
            return f"{self.name}: {len(self.rows)} epochs, best epoch {self.best_epoch}"
        epoch, step = divmod(self.done, self.steps)
        words = f"{self.name}: epoch {min(epoch + 1, self.epochs)} of {self.epochs}, step {step}"
        words += f" of {self.steps}"
        made = self.done - self.first
        if not made:
            return words
        rate = made / (self.shown - self.began)
        left = (self.epochs * self.steps - self.done) / rate
        return f"{words}, {rate:.2g} steps/s, at most {format_time(left)} left"


def render_table(rows: Sequence[dict], monitor: str, best_epoch: int, state: str) -> str:
    """The table by epoch as HTML: losses, the monitored score, the time; the best epoch in bold.

    rows: as of the history of `fit`."""
    columns = list(dict.fromkeys(["epoch", "train_loss", "val_loss", monitor, "seconds"]))
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = []
    for row in rows:
        best = row["epoch"] == best_epoch
        cells = [_format(name, row[name]) for name in columns]
        if best:
            cells = [f"<b>{cell}</b>" for cell in cells]
        mark = "best" if best else ""
        lines.append("".join(f"<td>{cell}</td>" for cell in [*cells, mark]))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{heads}<th></th></tr></thead><tbody>{body}</tbody></table>"
    return f"{table if rows else ''}<p>{escape(state)}</p>"


def format_time(seconds: float) -> str:
    """
    >>> format_time(40), format_time(400)
    ('40 s', '7 min')
    """
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _format(name: str, value: float) -> str:
    if name == "epoch":
        return f"{value:d}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.3f}"


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
