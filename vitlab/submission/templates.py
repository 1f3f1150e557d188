"""The texts of a bundle: the title page, and the README for the marker."""

# ruff: noqa: E501  (a row of a Markdown table is one line)

from __future__ import annotations

from string import Template

STATEMENT = """\
I declare that this submission is my own work; that what I took from others, people or programs, in words, code, figures or data, is
marked and named; that the numbers and figures in it come from the notebooks handed in with it, executed as they are; and that no
test image was used to choose a model, a threshold or a training argument."""

TITLE_PAGE = Template("""\
# $title

**$author**

$date

## Academic integrity

$statement

Signed: $author

## What is handed in

$contents
""")

README = Template("""\
# For the marker: $title, by $author

Packed on $date by vitlab $version$commit. `TITLE.md` is the title page, `report/index.html` the report, `report/report.pdf` the same on paper.

## How to check it

In an environment with this version of vitlab (`environment/requirements.lock` holds the versions, where the project had one):

```
vitlab verify BUNDLE.zip                            # about half a minute; nothing of the bundle is executed
vitlab verify BUNDLE.zip --rubric rubric.yml        # with your own rubric: which answers and evidence are there
vitlab verify BUNDLE.zip --rerun --tolerance 0.02   # executes the notebooks again: minutes to hours
vitlab verify BUNDLE.zip --junit result.xml         # for an autograder; exit status 1 when a check fails
```

$rerun_time

**`--rerun` executes the author's code with your rights.** Do it in a container or on a machine without secrets, better without a network.
The pages in `report/` hold scripts, as any web page may: your browser runs them when you open it.

## What a pass shows, and what it does not

| Check | A pass shows | It does not show |
|---|---|---|
| manifest | the files are those that were packed, to the byte | who packed them: checksums are **not signatures**. The SHA-256 that `vitlab submit` printed, handed in by another way in time, fixes the bundle. |
| executed, sources | the notebooks look as after one execution from top to bottom of the clean notebooks in `project/` | that they were executed: outputs and counts are text that can be edited. So are the pages in `report/`, which are not checked. |
| splits, data, predictions | each image is in one split; the hash of the splits; with the data available, the same images and labels | that predictions come from the model. |
| metrics | the numbers follow from the predictions | the same: invented predictions give matching metrics. |
| weights | the file is the one that the run noted | that it was trained as the notebook says, or gives these predictions. |
| answers, rubric | a cell is not empty, evidence exists | that an answer is right, or by the author. |
| **rerun** | **the code, executed here, gives these numbers within the tolerance** | that the author ran it; who wrote it. |

Only the rerun shows that code and numbers belong together. Metrics are computed again, and notebooks executed again, by the vitlab that
verifies: changes that the author made to the package do not count, and the check `environment` says whether there were any.

## Folders

| Folder or file | Content |
|---|---|
| `report/` | the rendered report |
| `runs/<data set>/<run>/` | parameters (`run.json`), splits, predictions, metrics, weights, data card, model card, executed notebooks |
| `runs/batches/<batch>/` | what the batch ran, and its notebooks that belong to no single run |
| `project/` | the clean notebooks, and the files that they read; `--rerun` executes these |
| `data/` | SHA-256 of the pixels of each image, by data set; the images themselves are not in the bundle |
| `environment/` | versions of everything that was installed |
| `MANIFEST.json` | SHA-256 of every file |

$left_out
""")


def write_title_page(
    title: str, author: str, date: str, statement: str, contents: list[str]
) -> str:
    """The title page as Markdown. contents: one line for each thing handed in."""
    lines = "\n".join(f"- {line}" for line in contents)
    return TITLE_PAGE.substitute(
        title=title,
        author=author,
        date=date,
        statement=statement.strip() or STATEMENT,
        contents=lines,
    )


def write_readme(
    title: str,
    author: str,
    date: str,
    version: str,
    commit: str,
    seconds: float | None,
    left_out: list[str],
) -> str:
    """The README for the marker. seconds: total duration of the notebooks, None or 0 where it is
    not known.
    """
    return README.substitute(
        title=title,
        author=author,
        date=date,
        version=version,
        commit=f", commit {commit}" if commit else "",
        rerun_time=(
            f"The notebooks took {seconds / 60:.1f} minutes on the author's machine."
            if seconds
            else ""
        ),
        left_out=(
            "Left out of the bundle:\n\n" + "\n".join(f"- {line}" for line in left_out)
            if left_out
            else ""
        ),
    )
