"""Small notebooks and batch files. Each executed toy notebook adds a line to a log."""

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

LOG = "import os\nwith open(os.environ['TOY_LOG'], 'a') as log:\n    print({}, file=log)"
TRAIN_PARAMETERS = 'dataset = "digits"\ncolor = "red"\nseed = 0\nrun_name = ""'
TRAIN = (
    "from vitlab.runs import Run\n"
    "run = Run.create(name=run_name, dataset=dataset, color=color, seed=seed)",
    LOG.format("'train', color, seed"),
    "# a comment\nready = True\n"
    "if os.path.exists(color):\n    raise RuntimeError(f'{color} is [b]roken')",
    "run.finish()",
)
CHAIN = [
    {"notebook": "look", "grid": {}},
    {"notebook": "train"},
    {"notebook": "judge"},
    {"notebook": "compare", "grid": {}},
]


def write_notebook(path, parameters, *cells):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_markdown_cell("# Toy"), first, *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=cells), path)


def write_chain(folder):
    """The notebooks of CHAIN."""
    write_notebook(folder / "look.ipynb", 'dataset = "digits"\npause = 0.0', LOG.format("'look'"))
    write_notebook(folder / "train.ipynb", TRAIN_PARAMETERS, *TRAIN)
    judge = LOG.format("'judge', run_name")
    write_notebook(folder / "judge.ipynb", 'run_name = ""\ndataset = "digits"', judge)
    write_notebook(folder / "compare.ipynb", 'dataset = "digits"', LOG.format("'compare'"))


def write_batch(project, name="toy", **content):
    content = {
        "parameters": {"dataset": "digits"},
        "grid": {"color": ["red", "blue"]},
        "chain": CHAIN,
    } | content
    file = project / "notebooks" / "batches" / f"{name}.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def log_lines(project):
    """The lines since the last call."""
    log = project / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines
