"""A project of one's own: a batch over one's images, the notebooks, the report's front matter, and
how to go on.

Everything is checked before a file is written, the images too, so that the first `vitlab batch`
does not stop at them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from vitlab.data.folder import CLASS_FILE
from vitlab.errors import UserError
from vitlab.places import CHECKOUT
from vitlab.user_files import fill_folder

COPIED = (
    "notebooks/*.ipynb",
    "notebooks/00_start.md",
    "notebooks/*.jupyterlab-workspace",
    "reports/references.bib",
    "reports/guide/[2-4]_*.md",  # how to read and choose; the others are about the checkout
)
PUBLISHED = "model,task,cells,accuracy_mean,accuracy_sd,macro_f1_mean,macro_f1_sd,protocol,source,cited_as,note\n"
IGNORED = "reports/runs/\nreports/tuning/\nreports/cache/\nreports/_build/\nreports/_site/\n.ipynb_checkpoints/\n"
# what the start page says last, in place of how to go on in the checkout
GOING_ON = """\
## How to go on

In a terminal, in the folder above these notebooks, with the environment of vitlab:

1. `vitlab batch batch.yml` runs what `batch.yml` asks for; called again, only what is missing or out of date.
2. `vitlab report batch` makes one site and one PDF of it, `reports/_site/index.html`.
3. Cell by cell, set `dataset = {dataset}` in the first code cell of a notebook.
"""

SPLIT_WORDS = {"train": "training", "val": "validation", "test": "the test"}

BATCH = """\
# vitlab batch batch.yml: these notebooks over this grid. Called again, it does only what is missing or out of date.
title: {title}
parameters:               # handed to every notebook that declares them
  dataset: {dataset}
grid:
  model: [hybrid_vit, efficientnet_lite0]  # others: vit_scratch, or any timm name (weights from the hub)
  seed: [0, 1]                             # each draws its own splits; five or more tell models apart better
chain:
  - notebook: 01_explore_data
    grid: {{}}              # once, not at each point of the grid
  - notebook: 03_finetune
    # parameters: {{epochs: 20, strategy: last_blocks}}  # default: the model's recipe; the first cell of 03 lists them all
  - notebook: 04_evaluate
    grid: {{model: [hybrid_vit, efficientnet_lite0], seed: [0]}}
  - notebook: 05_interpret
    grid: {{model: [hybrid_vit], seed: [0]}}
  - notebook: 08_compare
    grid: {{}}
    parameters: {{decisive: roc_auc, published: published.csv}}  # the metric that decides, named before looking
"""

README = """\
# {title}

{summary}

```
vitlab batch batch.yml --dry-run    # what would run, and how long it took last time
vitlab batch batch.yml              # run it; broken off, the same command carries on
vitlab report batch                 # reports/_site/index.html and reports/_site/report.pdf
vitlab report batch --strict        # the same, but nothing is published while anything is out of date, missing or broken
```

Call them in this folder, in the environment that vitlab is installed in.

- `batch.yml` says which models, seeds and notebooks. Change it and call `vitlab batch` again: only what is new runs.
- `notebooks/` are copies, yours to change; what they call is `vitlab`. Open `notebooks/00_start.md` first, or run one alone:
  `vitlab run notebooks/03_finetune.ipynb -p dataset {dataset_word}`
- `_quarto.yml` holds the report's title, language and bibliography (`reports/references.bib`).
- `reports/published.csv` takes results of others, to stand beside yours in 08; `cells` is `all` or a group.
- `reports/runs/` has a folder for each run: parameters, versions, splits, weights, predictions.
- `notebooks/vitlab.jupyterlab-workspace`, opened in JupyterLab by a double click, begins on the start page.

Before you believe a number: look at notebook 01 for near-duplicates and wrong labels, and at the intervals in 08.
"""


@dataclass(frozen=True)
class NewProject:
    """What was made. folder: the project. files: in it, relative. summary: the images in words."""

    folder: Path
    files: tuple[str, ...]
    summary: str


def create_project(
    folder: Path | str, data: str, title: str = "", checkout: Path = CHECKOUT
) -> NewProject:
    """Make a project in `folder`, which is new or empty, for a data set by its name: `folder:PATH`,
    or any other there is.

    The images are read and splits drawn once, to see that there are enough; a data set that must
    first be downloaded is only looked up. ValueError: a folder that holds something or lies among
    the images, a path that is wrong, a single class, too few images. The folder appears when all of
    it is there."""
    dataset = _make_absolute(data)
    with fill_folder(folder) as (folder, work):
        _check_place(folder, dataset)
        sources = sorted({path for pattern in COPIED for path in checkout.glob(pattern)})
        if (
            not any(path.suffix == ".ipynb" for path in sources)
            or not (checkout / "_quarto.yml").is_file()
        ):
            raise UserError(
                f"no notebooks beside the package in {checkout}: install vitlab from a clone, `pip"
                " install -e .`"
            )
        summary = describe_data(dataset)
        title = title.strip() or folder.name.replace("_", " ").replace("-", " ").capitalize()
        words = {
            "title": json.dumps(title, ensure_ascii=False),
            "dataset": json.dumps(dataset, ensure_ascii=False),
        }
        texts = {
            "batch.yml": BATCH.format(**words),
            "README.md": README.format(
                title=title, summary=summary, dataset_word=shlex.quote(dataset)
            ),
            ".gitignore": IGNORED,
            "reports/published.csv": PUBLISHED,
            "_quarto.yml": _set_title(
                (checkout / "_quarto.yml").read_text(encoding="utf-8"), title
            ),
        }
        for source in sources:
            target = work / source.relative_to(checkout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        start = work / "notebooks" / "00_start.md"
        if start.is_file():
            kept = start.read_text(encoding="utf-8").partition("## Three ways to go on")[0]
            start.write_text(kept + GOING_ON.format(**words), encoding="utf-8")
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    return NewProject(folder, tuple(files), summary)


def describe_data(dataset: str) -> str:
    """How many images in which classes and splits, as a sentence; what is wrong with them is a
    ValueError.
    """
    from vitlab.data import check_name, load_dataset
    from vitlab.data.sources import VERSIONS

    check_name(dataset)
    if dataset in VERSIONS:
        return f"The data set `{dataset}` is downloaded by the first notebook that needs it."
    bundle = load_dataset(dataset, seed=0)
    labels, splits = bundle.samples["label"].value_counts(), bundle.samples["split"].value_counts()
    classes = ", ".join(f"{name} ({labels[name]:,})" for name in bundle.classes[:12])
    more = f" and {len(bundle.classes) - 12} more" if len(bundle.classes) > 12 else ""
    drawn = ", ".join(f"{splits[name]:,} for {word}" for name, word in SPLIT_WORDS.items())
    left_out = (
        f" {len(bundle.excluded):,} files are left out; notebook 01 says why."
        if len(bundle.excluded)
        else ""
    )
    found = (
        f" The class to find is {bundle.classes[1]}, the last of the two{_how_to_turn(dataset)}."
        if len(labels) == 2
        else ""
    )
    return (
        f"{len(bundle.samples):,} images in {len(bundle.classes)} classes, {classes}{more}: {drawn}"
        f" (seed 0).{left_out}{found}"
    )


def _how_to_turn(dataset: str) -> str:
    path = dataset.removeprefix("folder:")
    return (
        ""
        if path == dataset
        else f"; for the other one, write both names into {Path(path) / CLASS_FILE}, it last"
    )


def _make_absolute(data: str) -> str:
    """`folder:PATH` with the whole path, as the notebooks run elsewhere; any other name as it
    is.
    """
    prefix, colon, path = data.partition(":")
    if not colon and "/" in data:
        raise UserError(
            f"--data is the name of a data set; for images in a folder write folder:{data}"
        )
    return f"folder:{Path(path).expanduser().absolute()}" if prefix == "folder" and path else data


def _check_place(folder: Path, dataset: str) -> None:
    prefix, _, path = dataset.partition(":")
    if prefix == "folder" and path and folder.resolve().is_relative_to(Path(path).resolve()):
        raise UserError(
            f"{folder} lies among the images, where it would count as a class; choose a place"
            f" outside of {path}"
        )


def _set_title(settings: str, title: str) -> str:
    """The settings of the checkout under another title; the rest, comments too, stays."""
    return re.sub(
        r"(?m)^(website:\n  title:) .*$",
        lambda match: f"{match[1]} {json.dumps(title, ensure_ascii=False)}",
        settings,
    )
