"""What a batch file asks for: a chain of notebooks over a grid of parameters, laid out as tasks in
the order they run.

```yaml
title: Solar cells, Vision Transformers against a CNN
parameters: {dataset: elpv}                 # handed to every notebook that declares them
grid: {model: [hybrid_vit, efficientnet_lite0], seed: [0, 1]}
chain:
  - notebook: 01_explore_data
    grid: {}                                # once, not at each point of the grid
  - notebook: 03_finetune                   # at each point of the batch's grid
  - notebook: 05_interpret
    grid: {model: [hybrid_vit], seed: [0]}  # at some points of it
    parameters: {samples: 8}                # for this notebook only
```

An axis may have cases instead of values: names, each with the parameters that it stands for.
Several parameters then change together, and one thing at a time can be tried. The notebooks get
these parameters, and the name as that of the axis:

```yaml
grid:
  variant:
    plain: {class_weights: none}
    oversampled: {class_weights: none, resample: oversample}
  seed: [0, 1]
```

An option of notebook 03 may stand by its own name in all of these, as if it were a parameter
(`mixup: 0.2`), or in the text `options` ("mixup=0.2, ema=0.99"): both give the same run.

Two more keys, for the batch or for a step: `limits: {minutes: 30, memory: 6 GB}` ends a notebook
that takes more (see limits.py); and, for a step on a cluster, `resources: {GPU: 1}` names what a
Dask worker must have free for it. Without that key a notebook takes one GPU where workers offer
any; `resources: {}` lets it run on any worker."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitlab.batch.limits import Limits, read_limits
from vitlab.errors import MissingFileError, UserError
from vitlab.files import read_yaml
from vitlab.notebook import fit_parameters, notebook_options, notebook_parameters, read_cells
from vitlab.registry import unknown
from vitlab.run_folders import dataset_folder, run_name
from vitlab.training.options import spread_options

BATCH_KEYS = ["title", "parameters", "grid", "chain", "limits"]
STEP_KEYS = ["notebook", "grid", "parameters", "limits", "resources"]
# a notebook that asks for a finished run by its name
READS_RUN = re.compile(r"\bensure_run\([^)]*\brun_name\b")


@dataclass(frozen=True)
class Step:
    """One notebook of the chain. once: it has no point of the grid (`grid: {}`). declared: its
    parameters with their defaults, and the names of its options.

    resources: what a worker of a cluster must have free for it; None: a GPU where there are any.
    reads_run: it takes `run_name` as the name of a finished run (04 to 06); any other notebook that
    declares `run_name` makes the run of that name."""

    notebook: str
    source: Path
    grid: dict[str, list]
    once: bool
    parameters: dict[str, Any]
    declared: dict[str, Any]
    limits: Limits = field(default_factory=Limits)
    resources: dict[str, float] | None = None
    reads_run: bool = False


@dataclass(frozen=True)
class Batch:
    name: str
    title: str
    file: Path
    parameters: dict[str, Any]
    grid: dict[str, list]  # of an axis with cases, their names
    cases: dict[str, dict[str, dict[str, Any]]]  # axis -> case -> parameters
    chain: list[Step]

    def spell_out(self, point: dict[str, Any]) -> dict[str, Any]:
        """A point of the grid with the parameters that its cases stand for, and each option by its
        own name.
        """
        cases = [self.cases[axis][value] for axis, value in point.items() if axis in self.cases]
        values = {**point, **{name: value for case in cases for name, value in case.items()}}
        return spread_options(values)


@dataclass(frozen=True)
class Task:
    """A notebook at a point of the grid.

    path: executed copy, run: folder of the run that all steps of a point share, both relative to
    the reports folder. run is None for a step that runs once, and for one that reads a run which
    the chain does not make: it gets no run_name, and finds its run by itself. needs: earlier tasks,
    by number, whose results this one reads."""

    step: Step
    point: dict[str, Any]
    parameters: dict[str, Any]
    path: str
    run: str | None
    needs: tuple[int, ...]

    @property
    def label(self) -> str:
        return " ".join(
            [self.step.notebook, *(f"{axis}={value}" for axis, value in self.point.items())]
        )


def load_batch(file: Path | str) -> Batch:
    """Read and check a batch file with the notebooks it names. Every mistake in it is a ValueError
    that names the choices.
    """
    file = Path(file)
    try:
        content = read_yaml(file, "batch file")
    except MissingFileError as error:
        there = ", ".join(sorted(item.name for item in file.parent.glob("*.yml"))) or "none"
        raise MissingFileError(f"{error}; batch files in {file.parent}: {there}") from None
    _check_keys(content, BATCH_KEYS, f"{file.name}")
    parameters, grid, chain = (
        content.get("parameters") or {},
        content.get("grid") or {},
        content.get("chain"),
    )
    _check_mapping(parameters, f"parameters of {file.name}")
    parameters = spread_options(parameters)
    _check_grid(grid, f"grid of {file.name}", cases=True)
    if not isinstance(chain, list) or not chain:
        raise UserError(f"{file.name} needs a chain: a list of entries `- notebook: NAME`")
    cases = {
        axis: _read_cases(axis, values, file)
        for axis, values in grid.items()
        if isinstance(values, dict)
    }
    grid = {axis: list(values) for axis, values in grid.items()}
    varied = [*grid]
    for axis in cases.values():
        varied += dict.fromkeys(name for case in axis.values() for name in case)
    for name in parameters.keys() & set(varied):
        raise UserError(f"{name} of {file.name} stands under parameters and under grid; keep one")
    for name in varied:
        if varied.count(name) > 1:
            raise UserError(f"{name} of {file.name} is varied by two axes of the grid; keep one")
    limits = read_limits(content.get("limits"), file.name)
    steps = [_load_step(entry, grid, limits, file) for entry in chain]
    names = [step.notebook for step in steps]
    for name in {name for name in names if names.count(name) > 1}:
        raise UserError(f"notebook {name} stands twice in the chain of {file.name}")
    _check_declared([*parameters, *varied], steps, file)
    return Batch(
        file.stem, str(content.get("title") or file.stem), file, parameters, grid, cases, steps
    )


def plan_tasks(batch: Batch) -> list[Task]:
    """The tasks of a batch, in order: point by point through neighbouring steps that share axes, so
    that a result is soon whole.

    A task needs the earlier tasks of its point, and those of all the points that its own contains;
    nothing needs a task that runs once."""
    # what only others declare changes no run, and so not its name
    steps = [step for step in batch.chain if not step.once]
    shared = {
        name: value
        for name, value in batch.parameters.items()
        if any(name in step.declared for step in steps)
    }
    shared |= {step.notebook: step.parameters for step in steps if step.parameters}
    tasks: list[Task] = []
    for _, block in itertools.groupby(batch.chain, key=lambda step: (step.once, sorted(step.grid))):
        steps = list(block)
        for point in _unique(point for step in steps for point in _points(step.grid)):
            for step in steps:
                if point in _points(step.grid):
                    name = run_name({**shared, **batch.spell_out(point)})
                    tasks.append(_plan_task(batch, step, point, name, tasks))
    return tasks


def _plan_task(batch: Batch, step: Step, point: dict, name: str, earlier: list[Task]) -> Task:
    given = {**batch.parameters, **step.parameters, **batch.spell_out(point)}
    given = {key: value for key, value in given.items() if key in step.declared}
    if step.once:
        run, folder = None, f"runs/batches/{batch.name}"
    else:
        run = folder = f"runs/{dataset_folder(_dataset(batch, point))}/{name}"
        if step.reads_run and not any(
            task.run == run and "run_name" in task.parameters for task in earlier
        ):
            run = None
        elif "run_name" in step.declared:
            given["run_name"] = name
    needs = tuple(
        number
        for number, task in enumerate(earlier)
        if not task.step.once
        and (point.items() <= task.point.items() or task.point.items() <= point.items())
    )
    return Task(
        step,
        point,
        fit_parameters(step.source, given),
        f"{folder}/notebooks/{step.notebook}.ipynb",
        run,
        needs,
    )


def _dataset(batch: Batch, point: dict) -> str:
    """The dataset of a run: what the batch gives, or the default of the first notebook that has
    one.
    """
    defaults = [
        step.declared["dataset"]
        for step in batch.chain
        if not step.once and "dataset" in step.declared
    ]
    return str(
        {**batch.parameters, **batch.spell_out(point)}.get(
            "dataset", defaults[0] if defaults else "any"
        )
    )


def _load_step(entry: dict, batch_grid: dict, batch_limits: Limits, file: Path) -> Step:
    where = f"a step of the chain of {file.name}"
    _check_keys(entry, STEP_KEYS, where)
    if not isinstance(entry.get("notebook"), str):
        raise UserError(f"{where} names no notebook; write `- notebook: NAME`")
    name = entry["notebook"].removesuffix(".ipynb")
    source = _find_notebook(name, file)
    options = dict.fromkeys(notebook_options(source))
    declared = options | {key: value for key, (value, _) in notebook_parameters(source).items()}
    grid = batch_grid if entry.get("grid") is None else entry["grid"]
    parameters = entry.get("parameters") or {}
    _check_mapping(parameters, f"parameters of {name} in {file.name}")
    fit_parameters(source, parameters)
    parameters = spread_options(parameters) if options else parameters
    _check_grid(grid, f"grid of {name} in {file.name}")
    for axis, values in grid.items():
        if axis not in batch_grid:
            raise UserError(
                unknown(
                    f"axis of {name}",
                    axis,
                    list(batch_grid),
                    f"They are those of the grid of {file.name}.",
                )
            )
        for value in values:
            if value not in batch_grid[axis]:
                raise UserError(
                    unknown(
                        f"{axis} of {name}",
                        str(value),
                        [str(choice) for choice in batch_grid[axis]],
                    )
                )
    if grid and not declared.keys() & {*grid, "run_name"}:
        raise UserError(
            f"{name} would do the same at each point: it declares none of {', '.join(grid)},"
            " run_name; add `grid: {}`"
        )
    limits = read_limits(entry.get("limits"), f"{name} in {file.name}", batch_limits)
    resources = _read_resources(entry.get("resources"), f"resources of {name} in {file.name}")
    reads_run = any(
        READS_RUN.search(cell["source"])
        for cell in read_cells(source)
        if cell["cell_type"] == "code"
    )
    return Step(
        name,
        source,
        grid,
        entry.get("grid") == {},
        parameters,
        declared,
        limits,
        resources,
        reads_run,
    )


def _find_notebook(name: str, file: Path) -> Path:
    """A notebook lies in the folder of the batch file or in the one above it, or in `notebooks/` of
    either.
    """
    here = file.resolve().parent
    # what is nearest counts
    folders = (here.parent / "notebooks", here.parent, here / "notebooks", here)
    found = {path.stem: path for folder in folders for path in folder.glob("*.ipynb")}
    if name not in found:
        looked = f"Looked in {', '.join(str(folder) for folder in folders)}."
        raise UserError(unknown("notebook", name, sorted(found), "" if found else looked))
    return found[name]


def _check_keys(content: Any, keys: list[str], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} must have the keys {', '.join(keys)}; it is {content!r}")
    for key in content:
        if key not in keys:
            raise UserError(unknown(f"key in {where}:", str(key), keys))


def _check_mapping(parameters: Any, where: str) -> None:
    if not isinstance(parameters, dict):
        raise UserError(f"{where} must be written as name: value; it is {parameters!r}")
    if "run_name" in parameters:
        raise UserError(
            f"{where}: run_name is given by the batch itself, one for each point of the grid; leave"
            " it out"
        )


def _check_grid(grid: Any, where: str, cases: bool = False) -> None:
    _check_mapping(grid, where)
    for axis, values in grid.items():
        if isinstance(values, dict) and values and cases:
            continue
        if not isinstance(values, list) or not values or len(_unique(values)) < len(values):
            choices = "like [a, b]" + (", or cases, like {a: {seed: 1}}" if cases else "")
            raise UserError(
                f"{axis} in the {where} must be a list of different values, {choices}; it is"
                f" {values!r}"
            )


def _read_cases(axis: str, cases: dict, file: Path) -> dict[str, dict[str, Any]]:
    """The cases of an axis, `name: {parameter: value}`; one without parameters changes nothing."""
    for name, parameters in cases.items():
        if not isinstance(name, str):
            raise UserError(
                f"a case of {axis} in {file.name} is called {name!r}; put quotes around it"
            )
        _check_mapping(parameters or {}, f"case {name} of {axis} in {file.name}")
    return {name: parameters or {} for name, parameters in cases.items()}


def _read_resources(resources: Any, where: str) -> dict[str, float] | None:
    if resources is None:
        return None
    numbers = isinstance(resources, dict) and all(
        isinstance(name, str)
        and isinstance(amount, int | float)
        and not isinstance(amount, bool)
        and amount >= 0
        for name, amount in resources.items()
    )
    if not numbers:
        raise UserError(
            f"{where} must be written as {{GPU: 1}}, names and numbers; they are {resources!r}"
        )
    return {name: float(amount) for name, amount in resources.items() if amount}


def _check_declared(names: Iterable[str], steps: list[Step], file: Path) -> None:
    declared = sorted({name for step in steps for name in step.declared} - {"run_name"})
    for name in names:
        if name not in declared:
            raise UserError(
                unknown(
                    "parameter", name, declared, f"They are those of the notebooks of {file.name}."
                )
            )


def _points(grid: dict[str, list]) -> list[dict]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _unique(values: Iterable) -> list:
    unique: list = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique
