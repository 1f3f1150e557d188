"""A submission small enough for the tests, and ways to tamper with it."""

import shutil
import zipfile
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vitlab.submission.archive import open_bundle, read_manifest, write_manifest, write_zip
from vitlab.submission.opened import Bundle, Options
from vitlab.submission.verify import CHECKS, judge

ROOT = Path(__file__).parents[1]
PARAMETERS = (
    'dataset = "digits"  # data\nmodel = "vit_scratch"  # model\nseed = 0  # seed\nrun_name = ""  #'
    " folder of the run\n"
)
FINETUNE = """\
from vitlab.training.experiment import finetune
options = {"size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
settings = {"epochs": 1, "batch_size": 256, "learning_rate": 3e-3, "precision": "fp32"}
run = finetune(dataset, model, seed, run_name, options=options, **settings)"""
EVALUATE = """\
#| label: tbl-metrics
#| tbl-cap: Metrics on the test split.
from dataclasses import replace
from vitlab import data, evaluation, plots
from vitlab.training import ensure_run
run = ensure_run(dataset, model, seed, name=run_name)
predictions = run.read_table("predictions.parquet")
images = data.load_dataset(dataset, samples=run.read_table("splits.csv"))
tested = replace(images, samples=images.split("test"))
pairs = data.near_duplicate_table(tested)
clusters = data.cluster_table(tested.samples, pairs).set_index("sample_id")["cluster"]
predictions["cluster"] = predictions["sample_id"].map(clusters)
metrics = evaluation.metrics_table(predictions, replicates=replicates)
run.write_json("metrics.json", metrics.drop(columns="note").set_index("metric").to_dict("index"))
plots.present(metrics)"""
ANSWERS = {
    "integrity": "I agree; I used no aids.",
    "balance": (
        "Digits are even: always naming the largest class reaches about one in ten, so anything far"
        " above is learnt. " * 2
    ),
    "metrics": (
        "Balanced accuracy comes first, since every digit matters as much as any other. " * 5
    ),
    "failures-code": "print(predictions.groupby('label').size())",
    "failures": (
        "Eights are taken for ones, and nines for threes; the model was trained for one epoch and"
        " sees coarse pixels. " * 2
    ),
}  # and no verdict


def write_project(folder: Path) -> Path:
    """Notebooks that train and evaluate in seconds, and the project's own assignment with answers;
    the batch file.
    """
    (folder / "notebooks" / "batches").mkdir(parents=True)
    (folder / "reports").mkdir()
    shutil.copy(ROOT / "_quarto.yml", folder)
    shutil.copy(ROOT / "reports" / "references.bib", folder / "reports")
    (folder / "requirements.lock").write_text("numpy==2.4.0\n")
    for name, source, further in (
        ("03_finetune", FINETUNE, ""),
        ("04_evaluate", EVALUATE, "replicates = 50  # replicates\n"),
    ):
        cells = [
            new_markdown_cell(f"# {name}"),
            new_code_cell(PARAMETERS + further, metadata={"tags": ["parameters"]}),
            new_code_cell(source),
        ]
        nbformat.write(new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
    assignment = nbformat.read(ROOT / "notebooks" / "assignment" / "assignment.ipynb", as_version=4)
    for cell in assignment.cells:
        for name, text in ANSWERS.items():
            if f"#| answer: {name}" in cell.source.split("\n")[0].split(" -->"):
                cell.source = cell.source.split("\n")[0] + "\n\n" + text
            elif cell.source.startswith(f"<!-- #| answer: {name} -->"):
                cell.source = f"<!-- #| answer: {name} -->\n\n{text}"
    nbformat.write(assignment, folder / "notebooks" / "assignment.ipynb")
    batch = {
        "title": "Toy",
        "parameters": {"dataset": "digits", "model": "vit_scratch"},
        "grid": {"seed": [0]},
        "chain": [{"notebook": name} for name in ("03_finetune", "04_evaluate", "assignment")],
    }
    file = folder / "notebooks" / "batches" / "toy.yml"
    file.write_text(yaml.safe_dump(batch))
    return file


def unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def pack(folder: Path, path: Path, *, forge: bool = False) -> Path:
    """The folder as a zip; forge: with a manifest that fits the files as they are now."""
    if forge:
        write_manifest(folder, read_manifest(folder))
    return write_zip(folder, path)


def verify(path: Path, names=tuple(CHECKS), **options):
    """The verdict, by default without reading the images, which takes longest; failures as (check,
    subject).
    """
    with open_bundle(path) as folder:
        verdict = judge(Bundle(folder, Options(**{"images": False, **options})), names)
    return verdict, [(result.check, result.subject) for result in verdict.failed]
