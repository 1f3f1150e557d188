"""Training on several devices from a notebook."""

from __future__ import annotations

import pandas as pd
import torch
from accelerate import debug_launcher, notebook_launcher
from accelerate.state import AcceleratorState

from vitlab.errors import UserError
from vitlab.models import load_model, save_model
from vitlab.runs import Run
from vitlab.schema import DataBundle, ModelBundle
from vitlab.training.config import TrainConfig
from vitlab.training.devices import join_processes
from vitlab.training.loop import fit
from vitlab.training.objective import Objective


def fit_on(
    processes: int,
    model: ModelBundle,
    data: DataBundle,
    run: Run,
    config: TrainConfig,
    *,
    loss: Objective | None = None,
) -> pd.DataFrame:
    """`fit` with this many processes, one a GPU, or sharing the processor where there is none; the
    model ends with the weights.

    Before it, the notebook must not have used a GPU: a process that has cannot be forked. Raises
    ValueError for fewer GPUs than processes."""
    if processes == 1:
        return fit(model, data, run, config, loss=loss)
    if 0 < torch.cuda.device_count() < processes:
        raise UserError(
            f"processes={processes}, but there are {torch.cuda.device_count()} GPUs; choose that"
            " many at most"
        )
    # of an earlier training: the launcher wants to be the first
    AcceleratorState._reset_state(reset_partial_state=True)
    # the latter is Accelerate's for processors
    launch = notebook_launcher if torch.cuda.is_available() else debug_launcher
    launch(_fit_and_save, (model, data, run, config, loss), num_processes=processes)
    trained = load_model(run.path)
    model.module.load_state_dict(trained.module.state_dict())
    run.info = Run(run.path).info
    return run.read_table("history.csv")


def _fit_and_save(model, data, run, config, loss):
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the threads of OpenMP do not survive the fork
    fit(model, data, run, config, loss=loss)
    if join_processes().is_main_process:
        save_model(model, run.path)
