"""What a deployment takes from a run: its folder, data, examples and texts."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from html import unescape
from pathlib import Path

from vitlab.app.page import Facts
from vitlab.app.predictor import ONNX
from vitlab.app.serving import CARD, read_facts
from vitlab.compress.session import read_description
from vitlab.data import load_dataset
from vitlab.data.sources import DERIVED
from vitlab.deploy.card import model_card, read_data_card
from vitlab.errors import UserError
from vitlab.files import fill_folder
from vitlab.models.saving import DESCRIPTION
from vitlab.places import reports_dir
from vitlab.run_folders import list_runs
from vitlab.runs import Run
from vitlab.schema import DataBundle

EXAMPLES = 8  # images
LONGEST = 60  # letters of a title that names the classes


def find_run(name: str | Path) -> Path:
    """The folder of a finished run or an exported app, by its path or by the name of a run under
    reports/runs or the beginning of one.

    A name may include its data set, as in elpv/hybrid_vit-seed0. Runs on planted or shuffled data,
    which serve to test explanations, are only found that way. UserError for an unknown or ambiguous
    name, and for a run that is not finished or has lost files."""
    folder = Path(os.path.abspath(Path(name).expanduser()))  # `.` has a name then
    if str(name) and (folder / "run.json").is_file():
        return _check_finished(folder)
    if str(name) and (folder / ONNX).is_file():
        return folder
    names = {path: _names_of(path) for path in list_runs()}
    fitting = [path for path in names if str(name) in names[path]]
    if not fitting:
        fitting = [path for path in names if any(one.startswith(str(name)) for one in names[path])]
    if len(fitting) == 1:
        return _check_finished(fitting[0])
    if fitting:
        shown = ", ".join(names[path][0] for path in fitting)
        raise UserError(
            f"{name} is the beginning of {len(fitting)} runs: {shown}; write more of it"
        )
    known = [one for several in names.values() for one in several]
    if near := difflib.get_close_matches(str(name), known, n=5) or known[:5]:
        hint = f"the nearest are {', '.join(near)}; `vitlab runs` lists all"
    else:
        hint = f"there are no runs in {reports_dir() / 'runs'} yet; notebook 03 makes one"
    raise UserError(
        f"{name} is neither a folder with run.json or {ONNX} nor the name of a run; {hint}"
    )


def _names_of(path: Path) -> tuple[str, ...]:
    """Names of a run: with its folder, with its data set, and alone (not of derived data)."""
    try:
        dataset = Run(path).parameters.get("dataset", "")
    except UserError:  # damaged; `_check_finished` says so
        dataset = ""
    full = (f"{path.parent.name}/{path.name}", f"{dataset}/{path.name}")
    return full if str(dataset).startswith(tuple(DERIVED)) else (*full, path.name)


def _check_finished(folder: Path) -> Path:
    problem = Run(folder).problem
    if problem:
        raise UserError(
            f"run {folder} is not finished: {problem}; run notebook 03 again with its parameters"
        )
    return folder


def load_run_data(run: Run) -> DataBundle:
    """The run's data set with its own splits."""
    return load_dataset(run.parameters["dataset"], samples=run.read_table("splits.csv"))


def write_examples(data: DataBundle, folder: Path, count: int = EXAMPLES) -> None:
    """Write test images as PNG, drawn at random from each class in turn, named by their label."""
    test = data.split("test").sample(frac=1, random_state=0)
    turn = test.groupby("label", observed=True).cumcount()
    # the last class first: of two, it is the positive one
    order = {name: place for place, name in enumerate(reversed(data.classes))}
    test = test.assign(turn=turn, place=test["label"].map(order)).sort_values(["turn", "place"])
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(test.head(count).to_dict("records"), start=1):
        image = data.read(row["sample_id"])
        if image.mode not in ("L", "RGB", "RGBA", "I;16"):
            image = image.convert("RGB")
        name = f"{number:02d}-{_plain(row['label'])}-{_plain(row['sample_id'])}.png"
        image.save(folder / name)


def page_facts(folder: Path) -> Facts:
    """The texts of the page for a run; for a folder made by export_space, those in it.

    Examples need the data set and the card needs the predictions of the run; the page leaves out
    what is missing."""
    if not (folder / "run.json").is_file():
        return read_facts(folder)
    run = Run(folder)
    examples = folder / "app" / "examples"
    if not examples.is_dir():
        # no data set, no right to write, or another process that was first
        with suppress(UserError, OSError), fill_folder(examples, parents=True) as (_, work):
            write_examples(load_run_data(run), work)
    paths = sorted(examples.glob("*.png"))
    stored = folder / CARD
    try:
        card = stored.read_text(encoding="utf-8") if stored.is_file() else model_card(run)
    except FileNotFoundError:
        card = ""
    return Facts(**describe_run(run, _read_classes(folder)), card=card, examples=tuple(paths))


def describe_run(run: Run, classes: Sequence[str]) -> dict[str, str]:
    """Title, subtitle and licence of the examples."""
    dataset = run.parameters["dataset"]
    asked = f"{', '.join(classes[:-1])} or {classes[-1]}?"
    title = (
        asked[0].upper() + asked[1:]
        if len(asked) <= LONGEST
        else f"{dataset}: which of {len(classes)} classes?"
    )
    subtitle = f"Images like those of {dataset}, told apart by {run.title} (vitlab, run {run.name})"
    return {
        "title": title,
        "subtitle": subtitle,
        "licence": unescape(read_data_card(run)["licence"]),
    }


def _read_classes(folder: Path) -> list[str]:
    """The classes of the run's model, by the description of its ONNX file or of its weights."""
    if (folder / ONNX).is_file():
        return read_description(folder / ONNX)["classes"]
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["classes"]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", str(text))[:60]
