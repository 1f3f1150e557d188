"""A project for your own images: a batch file, the notebooks, the report's settings, a README.

Everything is checked before a file is written, the images too."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from vitlab.data.local import CLASS_FILE
from vitlab.errors import UserError
from vitlab.files import fill_folder
from vitlab.places import CHECKOUT

COPIED = (
    "notebooks/*.ipynb",
    "notebooks/00_start.md",
    "notebooks/*.jupyterlab-workspace",
    "reports/references.bib",
    "reports/guide/[02-4]_*.md",  # the other guides are about the checkout
)
PUBLISHED = (
    "model,task,cells,accuracy_mean,accuracy_sd,macro_f1_mean,macro_f1_sd,"
    "protocol,source,cited_as,note\n"
)
IGNORED = (
    "reports/runs/\nreports/tuning/\nreports/cache/\nreports/_build/\nreports/_site/\n"
    ".ipynb_checkpoints/\n/.quarto/\n**/*.quarto_ipynb\n"  # the last two, Quarto would add
)
# replaces the end of the start page
NEXT_STEPS = """\
## Next steps

In a terminal, in the folder above these notebooks, with the environment of vitlab:

1. `vitlab batch batch.yml` runs the notebooks; run it again to execute only what is missing or out of date.
2. `vitlab report batch` renders a site, `reports/_site/index.html`, and a PDF.
3. To work cell by cell, set `dataset = {dataset}` in the first code cell of a notebook.
"""  # noqa: E501

BATCH = """\
# vitlab batch batch.yml runs these notebooks over this grid. A second call runs only what is missing or out of date.
title: {title}
parameters:               # for every notebook that has them
  dataset: {dataset}
grid:
  model: [hybrid_vit, efficientnet_lite0]  # others: vit_scratch, or any timm name (weights from the hub)
  seed: [0, 1]                             # each seed draws its own splits; use five or more to compare models
chain:
  - notebook: 01_explore_data
    grid: {{}}              # run once, not for each point of the grid
  - notebook: 03_finetune
    # parameters: {{epochs: 20, mixup: 0.2}}  # default: the model's recipe; `vitlab run 03_finetune --help` lists them all
  - notebook: 04_evaluate
    grid: {{model: [hybrid_vit, efficientnet_lite0], seed: [0]}}
  - notebook: 05_interpret
    grid: {{model: [hybrid_vit], seed: [0]}}
  - notebook: 08_compare
    grid: {{}}
    parameters: {{decisive: roc_auc, published: published.csv}}  # the metric that decides, chosen in advance
"""  # noqa: E501

README = """\
# {title}

{summary}

```
vitlab check {dataset_word}    # a first answer in about a minute: are the data sound, what does a simple model reach
vitlab batch batch.yml --dry-run    # what would run, and how long it took last time
vitlab batch batch.yml              # run it; after an interruption, the same command continues
vitlab report batch                 # reports/_site/index.html and reports/_site/report.pdf
vitlab report batch --strict        # the same, but publish only if nothing is out of date, missing or broken
```

Run these commands in this folder, in the environment of vitlab.

- `batch.yml` lists models, seeds and notebooks. Change it and call `vitlab batch` again: only what is new runs.
- `notebooks/` contains copies that you can change. Open `notebooks/00_start.md` first, or run a single notebook:
  `vitlab run notebooks/03_finetune.ipynb -p dataset {dataset_word}`
- `_quarto.yml` holds the report's title, language and bibliography (`reports/references.bib`).
- `reports/published.csv` is for published results, which notebook 08 compares with yours; `cells` is `all` or a group.
- `reports/runs/` has a folder for each run: parameters, versions, splits, weights, predictions.
- `notebooks/vitlab.jupyterlab-workspace`, opened in JupyterLab with a double click, shows the start page.

Before you trust a result, check notebook 01 for near-duplicates and wrong labels, and the intervals in notebook 08.
"""  # noqa: E501


@dataclass(frozen=True)
class NewProject:
    """folder: the project. files: in it, relative. summary: the images in words."""

    folder: Path
    files: tuple[str, ...]
    summary: str


def create_project(
    folder: Path | str, data: str, title: str = "", checkout: Path = CHECKOUT
) -> NewProject:
    """Make a project in a new or empty folder, for a data set such as `folder:PATH`.

    The images are read and split once, to see that there are enough; a data set that must be
    downloaded first is only looked up. UserError for a folder that is not empty or lies among the
    images, a wrong path, a single class, too few images; then nothing is left behind."""
    prefix, colon, path = data.partition(":")
    if not colon and "/" in data:
        raise UserError(
            f"--data is the name of a data set; for images in a folder write folder:{data}"
        )
    if prefix == "folder" and path:  # the notebooks run in other folders
        path = str(Path(path).expanduser().absolute())
        data = f"folder:{path}"
    with fill_folder(folder) as (folder, work):
        if prefix == "folder" and path and folder.resolve().is_relative_to(Path(path).resolve()):
            raise UserError(
                f"{folder} is inside the folder of images, where it would count as a class; choose"
                f" a folder outside of {path}"
            )
        sources = sorted({path for pattern in COPIED for path in checkout.glob(pattern)})
        if not any(path.suffix == ".ipynb" for path in sources):
            raise UserError(
                f"{checkout} contains no notebooks: install vitlab from a clone, `pip install -e .`"
            )
        summary = describe_data(data)
        title = title.strip() or folder.name.replace("_", " ").replace("-", " ").capitalize()
        for source in sources:
            target = work / source.relative_to(checkout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for name, text in _write_texts(checkout, data, title, summary).items():
            (work / name).write_text(text, encoding="utf-8")
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return NewProject(folder, tuple(path.as_posix() for path in paths), summary)


def _write_texts(checkout: Path, data: str, title: str, summary: str) -> dict[str, str]:
    """File name -> content of the files that are not plain copies."""
    quoted = {
        "title": json.dumps(title, ensure_ascii=False),
        "dataset": json.dumps(data, ensure_ascii=False),
    }
    settings = (checkout / "_quarto.yml").read_text(encoding="utf-8")
    start = (checkout / "notebooks" / "00_start.md").read_text(encoding="utf-8")
    return {
        "batch.yml": BATCH.format(**quoted),
        "README.md": README.format(title=title, summary=summary, dataset_word=shlex.quote(data)),
        ".gitignore": IGNORED,
        "reports/published.csv": PUBLISHED,
        "_quarto.yml": _set_title(settings, title),
        "notebooks/00_start.md": start.partition("## Three ways to continue")[0]
        + NEXT_STEPS.format(**quoted),
    }


def describe_data(dataset: str) -> str:
    """How many images in which classes and splits; UserError for what is wrong with them."""
    from vitlab.data import load_dataset
    from vitlab.data.datasets import check_name
    from vitlab.data.sources import VERSIONS

    check_name(dataset)
    if dataset in VERSIONS:
        return f"The data set `{dataset}` is downloaded by the first notebook that needs it."
    bundle = load_dataset(dataset, seed=0)
    labels, splits = bundle.samples["label"].value_counts(), bundle.samples["split"].value_counts()
    classes = ", ".join(f"{name} ({labels[name]:,})" for name in bundle.classes[:12])
    if len(bundle.classes) > 12:
        classes += f" and {len(bundle.classes) - 12} more"
    text = (
        f"{len(bundle.samples):,} images in {len(bundle.classes)} classes, {classes}:"
        f" {splits['train']:,} for training, {splits['val']:,} for validation,"
        f" {splits['test']:,} for the test (seed 0)."
    )
    if len(bundle.excluded):
        count = len(bundle.excluded)
        files = "1 file is" if count == 1 else f"{count:,} files are"
        text += f" {files} left out; notebook 01 gives the reasons."
    if len(labels) == 2:
        text += f" The positive class is {bundle.classes[1]}, the last of the two"
        path = dataset.removeprefix("folder:")
        if path != dataset:
            file = Path(path) / CLASS_FILE
            text += f"; to change this, list both names in {file}, the positive one last"
        text += "."
    return text


def _set_title(settings: str, title: str) -> str:
    """The settings of the checkout under another title; the rest, comments too, stays."""
    return re.sub(
        r"(?m)^(website:\n  title:) .*$",
        lambda match: f"{match[1]} {json.dumps(title, ensure_ascii=False)}",
        settings,
    )
