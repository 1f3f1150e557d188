"""A batch file as a list of tasks: a chain of notebooks over a grid of parameters.

```yaml
title: Solar cells, Vision Transformers against a CNN
parameters: {dataset: elpv}                 # for every notebook that declares them
grid: {model: [hybrid_vit, efficientnet_lite0], seed: [0, 1]}
chain:
  - notebook: 01_explore_data
    grid: {}                                # once, not at each point of the grid
  - notebook: 03_finetune                   # at each point of the batch's grid
  - notebook: 05_interpret
    grid: {model: [hybrid_vit], seed: [0]}  # at some points of it
    parameters: {samples: 8}                # for this notebook only
```

An axis may have cases instead of values: names, each with the parameters that it stands for. A case
changes several parameters together. The notebooks get these parameters, and the name of the case as
the parameter of the axis:

```yaml
grid:
  variant:
    plain: {class_weights: none}
    oversampled: {class_weights: none, resample: oversample}
  seed: [0, 1]
```

An option of notebook 03 may be given by its own name in all of these, like a parameter
(`mixup: 0.2`), or in the text `options` ("mixup=0.2, ema=0.99"): both give the same run.

The batch and each step may have `limits: {minutes: 30, memory: 6 GB}`: a notebook that needs more
is ended. On a cluster, `resources: {GPU: 1}` of a step names what a Dask worker must have free.
Without that key a notebook takes one GPU where workers offer any; `resources: {}` lets it run on
any worker."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.batch.specs import BatchSpec, Limits, StepSpec, read_spec, unique
from vitlab.errors import MissingFileError, UserError
from vitlab.notebook import fit_parameters, notebook_options, notebook_parameters, read_cells
from vitlab.registry import unknown
from vitlab.run_folders import dataset_folder, run_name
from vitlab.training.options import spread_options

# a notebook that asks for a finished run by its name
READS_RUN = re.compile(r"\bensure_run\([^)]*\brun_name\b")


@dataclass(frozen=True)
class Step:
    """One notebook of the chain. once: it has no point of the grid (`grid: {}`). declared: its
    parameters with their defaults, and the names of its options.

    reads_run: it takes `run_name` as the name of a finished run (04 to 06); any other notebook that
    declares `run_name` makes the run of that name."""

    notebook: str
    source: Path
    grid: dict[str, list]
    once: bool
    parameters: dict[str, Any]
    declared: dict[str, Any]
    limits: Limits
    resources: dict[str, float] | None
    reads_run: bool


@dataclass(frozen=True)
class Batch:
    """grid: axis -> values, or the names of its cases. cases: axis -> case -> parameters."""

    name: str
    title: str
    file: Path
    parameters: dict[str, Any]
    grid: dict[str, list]
    cases: dict[str, dict[str, dict[str, Any]]]
    chain: list[Step]
    author: str = ""
    abstract: str = ""

    def expand(self, point: dict[str, Any]) -> dict[str, Any]:
        """A point of the grid with the parameters of its cases, and each option by its own name."""
        expanded = dict(point)
        for axis, cases in self.cases.items():
            if axis in point:
                expanded |= cases[point[axis]]
        return spread_options(expanded)


@dataclass(frozen=True)
class Task:
    """A notebook at a point of the grid.

    path: executed copy, run: folder of the run that all steps of a point share, both relative to
    the reports folder. run is None for a step that runs once, and for one that reads a run which
    the chain does not make: it gets no run_name, and finds its run by itself. needs: numbers of the
    earlier tasks whose results this one reads."""

    step: Step
    point: dict[str, Any]
    parameters: dict[str, Any]
    path: str
    run: str | None
    needs: tuple[int, ...]

    @property
    def label(self) -> str:
        axes = [f"{axis}={value}" for axis, value in self.point.items()]
        return " ".join([self.step.notebook, *axes])

    @property
    def dataset(self) -> str:
        """The data set that the notebook works on, empty if it declares none."""
        return str(self.parameters.get("dataset", self.step.declared.get("dataset")) or "")


def load_batch(file: Path | str) -> Batch:
    """Read and check a batch file with its notebooks; UserError for any mistake in it."""
    file = Path(file)
    try:
        spec = read_spec(BatchSpec, file, "batch file")
    except MissingFileError as error:
        there = ", ".join(sorted(item.name for item in file.parent.glob("*.yml"))) or "none"
        raise MissingFileError(f"{error}; batch files in {file.parent}: {there}") from None
    parameters = spread_options(spec.parameters)
    cases = {axis: values for axis, values in spec.grid.items() if isinstance(values, dict)}
    grid = {axis: list(values) for axis, values in spec.grid.items()}
    steps = [_load_step(step, grid, spec.limits, file) for step in spec.chain]
    for name, count in Counter(step.notebook for step in steps).items():
        if count > 1:
            raise UserError(f"notebook {name} is in the chain of {file.name} {count} times")
    _check_batch_parameters(parameters, grid, cases, steps, file)
    title = str(spec.title or file.stem)
    texts = {"author": spec.author, "abstract": spec.abstract}
    return Batch(file.stem, title, file, parameters, grid, cases, steps, **texts)


def _check_batch_parameters(
    parameters: dict[str, Any],
    grid: dict[str, list],
    cases: dict[str, dict[str, dict[str, Any]]],
    steps: list[Step],
    file: Path,
) -> None:
    """UserError for a parameter that no notebook declares, or that is set in two places."""
    varied = list(grid)
    for axis in cases.values():
        varied += unique(name for case in axis.values() for name in case)
    for name, count in Counter(varied).items():
        if name in parameters:
            raise UserError(f"{name} of {file.name} is both in parameters and in grid; keep one")
        if count > 1:
            raise UserError(f"{name} of {file.name} is varied by two axes of the grid; keep one")
    declared = sorted({name for step in steps for name in step.declared} - {"run_name"})
    for name in [*parameters, *varied]:
        if name not in declared:
            advice = f"They are those of the notebooks of {file.name}."
            raise UserError(unknown("parameter", name, declared, advice))


def plan_tasks(batch: Batch) -> list[Task]:
    """The tasks of a batch, in order: neighbouring steps that share axes are executed point by
    point, so that the first results are complete soon.

    A task needs the earlier tasks of its point, and those of all the points that its own contains.
    No task needs one that runs once."""
    # parameters that only steps without a point declare change no run, and so not its name
    steps = [step for step in batch.chain if not step.once]
    named = {
        name: value
        for name, value in batch.parameters.items()
        if any(name in step.declared for step in steps)
    }
    named |= {step.notebook: step.parameters for step in steps if step.parameters}
    tasks: list[Task] = []
    for _, block in itertools.groupby(batch.chain, key=lambda step: (step.once, sorted(step.grid))):
        steps = list(block)
        for point in unique(point for step in steps for point in _points(step.grid)):
            for step in steps:
                if point in _points(step.grid):
                    name = run_name({**named, **batch.expand(point)})
                    tasks.append(_plan_task(batch, step, point, name, tasks))
    return tasks


def _plan_task(batch: Batch, step: Step, point: dict, name: str, earlier: list[Task]) -> Task:
    given = {**batch.parameters, **step.parameters, **batch.expand(point)}
    given = {key: value for key, value in given.items() if key in step.declared}
    if step.once:
        run, folder = None, f"runs/batches/{batch.name}"
    else:
        run = folder = f"runs/{dataset_folder(_find_dataset(batch, point))}/{name}"
        is_made = any(task.run == run and "run_name" in task.parameters for task in earlier)
        if step.reads_run and not is_made:
            run = None
        elif "run_name" in step.declared:
            given["run_name"] = name
    needs = []
    for number, task in enumerate(earlier):
        contained = point.items() <= task.point.items() or task.point.items() <= point.items()
        if contained and not task.step.once:
            needs.append(number)
    copy = f"{folder}/notebooks/{step.notebook}.ipynb"
    return Task(step, point, fit_parameters(step.source, given), copy, run, tuple(needs))


def _find_dataset(batch: Batch, point: dict) -> str:
    """The data set of a run: that of the batch, or the default of the first notebook with one."""
    given = {**batch.parameters, **batch.expand(point)}
    if "dataset" in given:
        return str(given["dataset"])
    for step in batch.chain:
        if not step.once and "dataset" in step.declared:
            return str(step.declared["dataset"])
    return "any"


def _load_step(spec: StepSpec, batch_grid: dict[str, list], limits: Limits, file: Path) -> Step:
    name = spec.notebook.removesuffix(".ipynb")
    source = _find_notebook(name, file)
    options = dict.fromkeys(notebook_options(source))
    declared = options | {key: value for key, (value, _) in notebook_parameters(source).items()}
    fit_parameters(source, spec.parameters)
    parameters = spread_options(spec.parameters) if options else spec.parameters
    grid = batch_grid if spec.grid is None else spec.grid
    for axis, values in grid.items():
        if axis not in batch_grid:
            advice = f"They are those of the grid of {file.name}."
            raise UserError(unknown(f"axis of {name}", axis, list(batch_grid), advice))
        for value in values:
            if value not in batch_grid[axis]:
                choices = [str(choice) for choice in batch_grid[axis]]
                raise UserError(unknown(f"{axis} of {name}", str(value), choices))
    if grid and not declared.keys() & {*grid, "run_name"}:
        raise UserError(
            f"{name} would do the same at each point: it declares none of {', '.join(grid)},"
            " run_name; add `grid: {}`"
        )
    resources = spec.resources
    if resources is not None:
        resources = {resource: amount for resource, amount in resources.items() if amount}
    code = [cell["source"] for cell in read_cells(source) if cell["cell_type"] == "code"]
    return Step(
        notebook=name,
        source=source,
        grid=grid,
        once=spec.grid == {},
        parameters=parameters,
        declared=declared,
        limits=limits.override(spec.limits),
        resources=resources,
        reads_run=any(READS_RUN.search(cell) for cell in code),
    )


def _find_notebook(name: str, file: Path) -> Path:
    """The notebook beside the batch file, in the folder above, or in `notebooks/` of either."""
    here = file.resolve().parent
    # the nearest one counts
    folders = (here.parent / "notebooks", here.parent, here / "notebooks", here)
    found = {path.stem: path for folder in folders for path in folder.glob("*.ipynb")}
    if name not in found:
        searched = f"Searched {', '.join(str(folder) for folder in folders)}."
        raise UserError(unknown("notebook", name, sorted(found), "" if found else searched))
    return found[name]


def _points(grid: dict[str, list]) -> Iterable[dict]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
