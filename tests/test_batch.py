import json
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from safetensors.numpy import save_file

from tests.child_processes import start_vitlab
from vitlab.batch import (
    fingerprint as fingerprint_module,
    load_batch,
    plan_tasks,
    run_batch,
    run_notebook,
    schedule as schedule_module,
)
from vitlab.batch.claim import claim_runs
from vitlab.batch.fingerprint import (
    PACKAGE,
    describe_changes,
    fingerprint_tasks,
    imported_modules,
    notebook_imports,
    used_files,
)
from vitlab.batch.summary import describe_problem, print_summary
from vitlab.files import find_damage
from vitlab.kernels import WarmProcess
from vitlab.report.gather import gather_report
from vitlab.run_folders import dataset_folder, run_name
from vitlab.runs import PROMISED, Run

ROOT = Path(__file__).parents[1]
LOG = "import os\nwith open(os.environ['TOY_LOG'], 'a') as log:\n    print({}, file=log)"
TRAIN = (
    (
        "from vitlab.runs import Run\nrun = Run.create(name=run_name, dataset=dataset, color=color,"
        " seed=seed)"
    ),
    LOG.format("'train', color, seed"),
    (
        "# a comment\nready = True\nif os.path.exists(color):\n    raise RuntimeError(f'{color} is"
        " [b]roken')"
    ),
    "run.finish()",
)


def write_notebook(path, parameters, *cells):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Toy"), first, *map(new_code_cell, cells)]), path
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a chain of four small notebooks; each execution adds a line to `log`. Names are
    checked in this process.
    """
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        WarmProcess,
        "call",
        lambda self, function, *arguments: pkgutil.resolve_name(function)(*arguments),
    )
    folder = tmp_path / "notebooks"
    (folder / "batches").mkdir(parents=True)
    write_notebook(folder / "look.ipynb", 'dataset = "digits"\npause = 0.0', LOG.format("'look'"))
    write_notebook(
        folder / "train.ipynb", 'dataset = "digits"\ncolor = "red"\nseed = 0\nrun_name = ""', *TRAIN
    )
    write_notebook(
        folder / "judge.ipynb", 'run_name = ""\ndataset = "digits"', LOG.format("'judge', run_name")
    )
    write_notebook(folder / "compare.ipynb", 'dataset = "digits"', LOG.format("'compare'"))
    return tmp_path


CHAIN = [
    {"notebook": "look", "grid": {}},
    {"notebook": "train"},
    {"notebook": "judge"},
    {"notebook": "compare", "grid": {}},
]


def write_batch(project, **content):
    content = {
        "parameters": {"dataset": "digits"},
        "grid": {"color": ["red", "blue"]},
        "chain": CHAIN,
    } | content
    file = project / "notebooks" / "batches" / "toy.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def log_lines(project):
    log = project / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def wait_for(path, seconds=120):
    deadline = time.time() + seconds
    while not path.exists() and time.time() < deadline:
        time.sleep(0.05)
    assert path.exists()


# the plan


def test_tasks_go_point_by_point_and_once_where_asked(project):
    tasks = plan_tasks(load_batch(write_batch(project)))
    assert [task.label for task in tasks] == [
        "look",
        "train color=red",
        "judge color=red",
        "train color=blue",
        "judge color=blue",
        "compare",
    ]
    assert [task.needs for task in tasks] == [(), (), (1,), (), (3,), (1, 2, 3, 4)]


def test_a_point_shares_a_run_and_gets_only_what_is_declared(project):
    tasks = plan_tasks(load_batch(write_batch(project)))
    name = run_name({"dataset": "digits", "color": "red"})
    assert tasks[1].parameters == {"dataset": "digits", "color": "red", "run_name": name}
    assert tasks[2].parameters == {"dataset": "digits", "run_name": name}
    assert tasks[1].path == f"runs/{dataset_folder('digits')}/{name}/notebooks/train.ipynb"
    assert tasks[1].run == tasks[2].run == f"runs/{dataset_folder('digits')}/{name}"
    assert (tasks[0].path, tasks[0].run) == ("runs/batches/toy/notebooks/look.ipynb", None)


def test_a_step_may_take_a_part_of_the_grid(project):
    chain = [
        {"notebook": "train"},
        {"notebook": "judge", "grid": {"color": ["blue"], "seed": [1, 0]}},
    ]
    tasks = plan_tasks(
        load_batch(
            write_batch(project, grid={"color": ["red", "blue"], "seed": [0, 1]}, chain=chain)
        )
    )
    assert [task.label for task in tasks if task.step.notebook == "judge"] == [
        "judge color=blue seed=0",
        "judge color=blue seed=1",
    ]
    assert [task.label for task in tasks][-4:] == [
        "train color=blue seed=0",
        "judge color=blue seed=0",
        "train color=blue seed=1",
        "judge color=blue seed=1",
    ]


def test_a_step_with_fewer_axes_gathers_the_points_it_contains(project):
    write_notebook(project / "notebooks" / "gather.ipynb", 'color = ""')
    chain = [{"notebook": "train"}, {"notebook": "gather", "grid": {"color": ["red"]}}]
    tasks = plan_tasks(
        load_batch(
            write_batch(project, grid={"color": ["red", "blue"], "seed": [0, 1]}, chain=chain)
        )
    )
    assert tasks[-1].label == "gather color=red"
    assert [tasks[number].label for number in tasks[-1].needs] == [
        "train color=red seed=0",
        "train color=red seed=1",
    ]


def test_without_a_grid_there_is_one_run(project):
    tasks = plan_tasks(load_batch(write_batch(project, grid={}, parameters={"color": "red"})))
    assert (
        tasks[1].run
        == tasks[2].run
        == f"runs/{dataset_folder('digits')}/{run_name({'color': 'red'})}"
    )
    assert tasks[0].run is tasks[3].run is None


def test_parameters_of_a_step_are_its_own_and_part_of_the_runs_name(project):
    plain = plan_tasks(load_batch(write_batch(project)))
    chain = [
        CHAIN[0] | {"parameters": {"pause": 1}},
        CHAIN[1] | {"parameters": {"seed": 7}},
        *CHAIN[2:],
    ]
    tasks = plan_tasks(load_batch(write_batch(project, chain=chain)))
    assert tasks[0].parameters == {"dataset": "digits", "pause": 1.0}
    assert tasks[1].parameters["seed"] == 7
    assert tasks[1].run == tasks[2].run != plain[1].run


def test_a_parameter_of_a_notebook_that_runs_once_renames_no_run(project):
    plain = plan_tasks(load_batch(write_batch(project)))
    tasks = plan_tasks(
        load_batch(write_batch(project, parameters={"dataset": "digits", "pause": 1.0}))
    )
    assert tasks[0].parameters == {"dataset": "digits", "pause": 1.0}
    assert [task.run for task in tasks] == [task.run for task in plain]


def test_only_a_run_that_the_chain_makes_is_asked_for_by_name(project):
    """The notebooks 03 to 06 themselves, and a training notebook of the user's own."""
    for name in ("03_finetune", "04_evaluate", "05_interpret", "06_compress"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", project / "notebooks")

    def plan(*chain, **content):
        chain = [step if isinstance(step, dict) else {"notebook": step} for step in chain]
        grid = {"model": ["hybrid_vit"], "seed": [0, 1]}
        return plan_tasks(load_batch(write_batch(project, chain=chain, grid=grid, **content)))

    alone = plan("04_evaluate", "05_interpret", "06_compress")
    assert (
        all("run_name" not in task.parameters and task.run is None for task in alone)
        and len({t.path for t in alone}) == 6
    )
    assert [task.needs for task in alone] == [(), (0,), (0, 1), (), (3,), (3, 4)]
    for trains in ("03_finetune", "train"):
        both = plan(
            trains,
            "04_evaluate",
            {"notebook": "05_interpret", "grid": {"model": ["hybrid_vit"], "seed": [1]}},
        )
        assert len(both) == 5
        assert all(
            task.run == f"runs/{dataset_folder('digits')}/{task.parameters['run_name']}"
            for task in both
        )
    assert "run_name" not in plan("04_evaluate", "03_finetune")[0].parameters, (
        "it is trained too late"
    )
    other = plan(
        {"notebook": "03_finetune", "grid": {"model": ["hybrid_vit"], "seed": [0]}}, "04_evaluate"
    )
    assert [
        task.parameters.get("run_name", "") for task in other if task.step.notebook == "04_evaluate"
    ] == [
        other[0].parameters["run_name"],
        "",
    ], "seed 1 is not trained"


def test_a_notebook_that_finds_its_run_by_itself_is_done_once(project):
    write_notebook(
        project / "notebooks" / "04_evaluate.ipynb",
        'dataset = "digits"\nseed = 0\nrun_name = ""',
        LOG.format("'evaluate', seed, repr(run_name)")
        + "\n# ensure_run(dataset, seed, name=run_name)",
    )
    file = write_batch(project, chain=[{"notebook": "04_evaluate"}], grid={"seed": [0, 1]})
    assert [task["status"] for task in run_batch(file)["tasks"]] == ["done", "done"]
    assert log_lines(project) == ["evaluate 0 ''", "evaluate 1 ''"]
    run_batch(file)
    assert log_lines(project) == []


VARIED = 'dataset = "digits"\ncolor = "red"\nseed = 0\nvariant = ""\nrun_name = ""'
CASES = {"plain": None, "late": {"seed": 7}, "late blue": {"seed": 7, "color": "blue"}}


def test_a_case_stands_for_its_parameters(project):
    write_notebook(project / "notebooks" / "train.ipynb", VARIED, *TRAIN)
    chain = [{"notebook": "train"}, {"notebook": "judge", "grid": {"variant": ["late"]}}]
    tasks = plan_tasks(load_batch(write_batch(project, grid={"variant": CASES}, chain=chain)))
    names = [
        run_name({"dataset": "digits", "variant": variant} | parameters)
        for variant, parameters in (
            ("plain", {}),
            ("late", {"seed": 7}),
            ("late blue", {"seed": 7, "color": "blue"}),
        )
    ]
    assert [task.label for task in tasks] == [
        "train variant=plain",
        "train variant=late",
        "judge variant=late",
        "train variant=late blue",
    ]
    assert tasks[0].parameters == {"dataset": "digits", "variant": "plain", "run_name": names[0]}
    late = {"variant": "late blue", "seed": 7, "color": "blue"}
    assert tasks[3].parameters == {"dataset": "digits", **late, "run_name": names[2]}
    assert tasks[1].run == tasks[2].run == f"runs/{dataset_folder('digits')}/{names[1]}" and names[
        1
    ].startswith("run-late-seed7-")
    assert tasks[2].needs == (1,)


def test_cases_and_values_make_a_grid(project):
    write_notebook(project / "notebooks" / "train.ipynb", VARIED, *TRAIN)
    cases = {"plain": {}, "blue": {"color": "blue"}}
    tasks = plan_tasks(
        load_batch(
            write_batch(
                project, grid={"variant": cases, "seed": [0, 1]}, chain=[{"notebook": "train"}]
            )
        )
    )
    given = [
        (task.parameters["variant"], task.parameters["seed"], task.parameters.get("color"))
        for task in tasks
    ]
    assert given == [
        ("plain", 0, None),
        ("plain", 1, None),
        ("blue", 0, "blue"),
        ("blue", 1, "blue"),
    ]
    assert len({task.run for task in tasks}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"chian": []},
            (
                r"unknown key in toy.yml: 'chian'. Did you mean chain\? Choices: title, parameters,"
                r" grid, chain"
            ),
        ),
        ({"chain": []}, r"toy.yml needs a chain"),
        (
            {"chain": [{"notebok": "look"}]},
            r"unknown key in a step .* Choices: notebook, grid, parameters",
        ),
        (
            {"chain": ["look"]},
            r"must have the keys notebook, grid, parameters, limits, resources; it is 'look'",
        ),
        (
            {"chain": [{"notebook": "lok"}]},
            r"unknown notebook 'lok'. Did you mean look\? Choices: compare, judge, look, train",
        ),
        ({"chain": [*CHAIN, CHAIN[1]]}, r"notebook train stands twice"),
        (
            {"chain": [{"notebook": "look"}]},
            r"look would do the same at each point: it declares none of color, run_name",
        ),
        (
            {"chain": [{"notebook": "train", "grid": {"colour": ["red"]}}]},
            r"unknown axis of train 'colour'.*Choices: color",
        ),
        (
            {"chain": [{"notebook": "train", "grid": {"color": ["rde"]}}]},
            r"unknown color of train 'rde'.*Choices: red, blue",
        ),
        (
            {"chain": [{"notebook": "train", "parameters": {"sed": 1}}]},
            r"unknown parameter 'sed'.*those of train.ipynb",
        ),
        (
            {"parameters": {"dataste": "digits"}},
            r"unknown parameter 'dataste'. Did you mean dataset\? Choices: color, dataset, pause",
        ),
        (
            {"parameters": {"seed": "one"}},
            r"parameter seed of train.ipynb is 'one'; it must be of type int",
        ),
        (
            {"parameters": {"color": "red"}},
            r"color of toy.yml stands under parameters and under grid",
        ),
        ({"parameters": {"run_name": "mine"}}, r"run_name is given by the batch itself"),
        ({"parameters": ["dataset"]}, r"parameters of toy.yml must be written as name: value"),
        (
            {"grid": {"color": "red"}},
            r"color in the grid of toy.yml must be a list of different values",
        ),
        ({"grid": {"color": ["red", "red"]}}, r"must be a list of different values"),
        ({"parameters": {"dataset": "digitz"}}, r"'digitz'. Did you mean digits"),
        (
            {"grid": {"seed": {}}},
            r"seed in the grid of toy.yml must be a list of different values, .* or cases",
        ),
        (
            {"grid": {"seed": {"one": [1]}}},
            r"case one of seed in toy.yml must be written as name: value",
        ),
        (
            {"grid": {"seed": {1: {"color": "red"}}}},
            r"a case of seed in toy.yml is called 1; put quotes around it",
        ),
        (
            {"grid": {"seed": {"a": {"colour": "red"}}}},
            r"unknown parameter 'colour'. Did you mean color",
        ),
        (
            {"grid": {"seed": {"a": {"color": "red"}}, "color": ["red"]}},
            r"color of toy.yml is varied by two axes",
        ),
        ({"grid": {"seed": {"a": {"run_name": "red"}}}}, r"run_name is given by the batch itself"),
        (
            {"grid": {"seed": {"a": {"pause": 1}}}, "parameters": {"pause": 2}},
            r"pause of toy.yml stands under parameters and",
        ),
        (
            {"chain": [{"notebook": "train", "grid": {"color": {"red": {}}}}]},
            r"color in the grid of train in toy.yml must be a list",
        ),
    ],
)
def test_mistakes_are_errors_before_anything_runs(project, change, message):
    with pytest.raises(ValueError, match=message):
        run_batch(write_batch(project, **change))
    assert log_lines(project) == []


def test_an_unknown_model_is_an_error_before_anything_runs(project):
    write_notebook(
        project / "notebooks" / "train.ipynb", 'model = "vit_scratch"', LOG.format("'train'")
    )
    file = write_batch(
        project,
        parameters={},
        grid={"model": ["vit_scratch", "vit_scrach"]},
        chain=[{"notebook": "train"}],
    )
    with pytest.raises(ValueError, match=r"'vit_scrach'.*vit_scratch"):
        run_batch(file)
    assert log_lines(project) == []


def test_no_batch_file_and_no_yaml(project):
    file = write_batch(project)
    with pytest.raises(FileNotFoundError, match=r"batch files in .*: toy.yml"):
        load_batch(file.with_name("tpy.yml"))
    file.write_text("grid: [")
    with pytest.raises(ValueError, match=r"toy.yml is not YAML"):
        load_batch(file)


# fingerprints


def test_imports_are_found_wherever_they_stand():
    source = (
        "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h.i import j\n"
        "c.k(e.l)\nimport m\nm.n.o()"
    )
    assert imported_modules(source, "x.y") == {
        "a.b",
        "d",
        "d.e",
        "x.y",
        "x.y.g",
        "x.h.i",
        "x.h.i.j",
        "a.b.k",
        "m",
        "m.n",
    }


def test_used_files_are_the_closure_of_the_imports(tmp_path):
    files = {
        "__init__.py": "",
        "alone.py": "",
        "data/__init__.py": "from .reading import read",
        "data/reading.py": "def read():\n    import pack.models.vit",
        "models/__init__.py": "import torch",
        "models/vit.py": "",
        "models/other.py": "",
    }
    for name, source in files.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(source)
    used = used_files({"pack.data.read", "pandas"}, tmp_path / "pack")
    names = {file.relative_to(tmp_path / "pack").as_posix() for file in used}
    assert names == {
        "__init__.py",
        "data/__init__.py",
        "data/reading.py",
        "models/__init__.py",
        "models/vit.py",
    }


def test_of_the_lazy_names_of_the_package_only_those_used_count(tmp_path):
    files = {
        "__init__.py": "",
        "__init__.pyi": "from . import data as data\nfrom .training import fit as fit",
        "data/__init__.py": "",
        "training/__init__.py": "from .loop import fit",
        "training/loop.py": "",
    }
    for name, source in files.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(source)
    found = {}
    for source in ("import pack", "import pack as p\np.fit()", "from pack import data"):
        used = used_files(imported_modules(source), tmp_path / "pack")
        found[source] = {file.relative_to(tmp_path / "pack").as_posix() for file in used}
    top = {"__init__.py", "__init__.pyi"}
    assert list(found.values()) == [
        top,
        {*top, "training/__init__.py", "training/loop.py"},
        {*top, "data/__init__.py"},
    ]


def test_what_a_package_imports_lazily_is_used_too():
    files = {
        file.relative_to(PACKAGE).as_posix() for file in used_files({"vitlab.compress"}, PACKAGE)
    }
    assert {
        "compress/__init__.py",
        "compress/__init__.pyi",
        "compress/quantize.py",
        "compress/bias.py",
    } <= files


def test_magics_and_commands_are_no_obstacle(tmp_path):
    write_notebook(
        tmp_path / "magic.ipynb",
        "",
        "%matplotlib inline\nimport json\n!ls",
        "%%time\nx = 1",
        "from pathlib import Path?",
    )
    assert "json" in notebook_imports(tmp_path / "magic.ipynb")
    write_notebook(tmp_path / "wrong.ipynb", "", "import json as")
    with pytest.raises(ValueError, match=r"wrong.ipynb has a cell that is not Python"):
        notebook_imports(tmp_path / "wrong.ipynb")


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_work_on_the_report_puts_no_notebook_out_of_date(notebook):
    used = {
        file.relative_to(PACKAGE).parts[0]
        for file in used_files(notebook_imports(notebook), PACKAGE)
    }
    assert "notebook.py" in used
    assert used.isdisjoint({"report", "batch", "cli.py", "kernels.py"})


def test_each_part_of_a_fingerprint_follows_its_cause(project, monkeypatch):
    package = project / "vitlab"
    package.mkdir()
    for name in ("__init__.py", "runs.py", "other.py"):
        (package / name).write_text("")
    monkeypatch.setattr(fingerprint_module, "PACKAGE", package)

    def changes(version="1", **content):
        tasks = plan_tasks(load_batch(write_batch(project, **content)))
        prints = fingerprint_tasks(tasks, lambda dataset: dataset + version)
        labels = [task.label for task in tasks]
        return {
            (label, part)
            for label, now, then in zip(labels, prints, first, strict=True)
            for part in now
            if now[part] != then[part]
        }

    first = fingerprint_tasks(
        plan_tasks(load_batch(write_batch(project))), lambda dataset: dataset + "1"
    )
    assert changes() == set()
    assert {part for _, part in changes(version="2")} == {"data", "needs"}
    assert changes(parameters={"dataset": "digits", "pause": 3}) == {("look", "parameters")}
    (package / "other.py").write_text("unused = 1")
    assert changes() == set()
    trained = {("train color=red", "code"), ("train color=blue", "code")}
    (package / "runs.py").write_text("used = 1")
    assert {(label, part) for label, part in changes() if part == "code"} == trained
    (package / "runs.py").write_text("")
    (package / "page.html").write_text("<p>")  # vitlab itself is a package that notebooks import
    assert {(label, part) for label, part in changes() if part == "code"} == trained
    (package / "page.html").unlink()
    write_notebook(
        project / "notebooks" / "judge.ipynb",
        'run_name = ""\ndataset = "digits"',
        LOG.format("'judge', run_name"),
        "",
    )
    assert changes() == set(), "an empty cell changes no result"
    write_notebook(
        project / "notebooks" / "judge.ipynb", 'run_name = ""\ndataset = "digits"', "'another'"
    )
    assert changes() == {
        ("judge color=red", "notebook"),
        ("judge color=blue", "notebook"),
        ("compare", "needs"),
    }


def test_data_files_of_a_package_belong_to_its_code(tmp_path):
    package = tmp_path / "vitlab" / "models"
    for folder in (package / "shipped", package / "other", package / "__pycache__"):
        folder.mkdir(parents=True)
    for name in (
        "__init__.py",
        "zoo.py",
        "zoo.pyi",
        "page.html",
        "shipped/a.safetensors",
        "shipped/a.csv",
        ".hidden",
    ):
        (package / name).write_text("")
    for name in ("other/__init__.py", "other/page.css", "__pycache__/zoo.pyc"):
        (package / name).write_text("")
    found = {
        path.relative_to(package).as_posix() for path in fingerprint_module._find_data(package)
    }
    assert found == {"page.html", "shipped/a.safetensors", "shipped/a.csv"}


def test_the_data_files_of_vitlab_count_where_they_are_used(monkeypatch):
    """What notebook 08 reads, and what only the report and the app read."""
    hashed = []
    monkeypatch.setattr(
        fingerprint_module,
        "_hash_file",
        lambda path: hashed.append(path.relative_to(PACKAGE).as_posix()) or "",
    )
    fingerprint_module._hash_code(
        used_files(notebook_imports(ROOT / "notebooks" / "08_compare.ipynb"), PACKAGE)
    )
    assert {"plots/runs_table.html", "models/shipped/vit_tiny_vitlab.safetensors"} <= set(hashed)
    assert not any(name.startswith("report/") for name in hashed)


def test_versions_of_the_libraries_are_kept_and_a_change_is_named(project, monkeypatch):
    write_notebook(
        project / "notebooks" / "look.ipynb",
        'dataset = "digits"',
        "import sklearn.metrics, json",
        "import no_such_module",
    )
    tasks = plan_tasks(load_batch(write_batch(project, chain=CHAIN[:2], grid={})))

    def libraries(number=0):
        return fingerprint_tasks(tasks, lambda dataset: "")[number]

    before = libraries()
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    assert before["libraries"].splitlines() == [python, f"scikit-learn {version('scikit-learn')}"]
    assert f"pandas {version('pandas')}" in libraries(1)["libraries"].splitlines(), (
        "which vitlab.runs imports"
    )
    monkeypatch.setattr(
        fingerprint_module,
        "version",
        lambda name: "99.1" if name == "scikit-learn" else version(name),
    )
    said = describe_changes(before, libraries())
    assert said == f"libraries changed: scikit-learn {version('scikit-learn')} -> 99.1"
    assert describe_changes(before, before) == ""
    assert (
        describe_changes(before | {"code": "0", "data": "1"}, libraries())
        == "code, data changed; " + said
    )
    assert describe_changes({}, {"files": "a.csv 12"}) == "files changed: not recorded before"
    many = "\n".join(f"lib{number} 1" for number in range(5))
    assert describe_changes({"libraries": many}, {"libraries": ""}).endswith(
        "lib2 1 -> none and 2 more"
    )


@pytest.mark.parametrize(
    ("place", "name"),
    [("", "published.csv"), ("reports", "a, b c.csv"), ("absolute", "published.csv")],
)
def test_a_file_that_a_parameter_names_is_part_of_the_fingerprint(project, place, name):
    """As `published` of notebook 08 does, given by the batch or as a default."""
    table = project / ("elsewhere" if place == "absolute" else place) / name
    table.parent.mkdir(exist_ok=True)
    table.write_text("model,accuracy\n")
    (project / "digits").mkdir()  # a folder of that name is no file
    named = str(table) if place == "absolute" else name
    write_notebook(
        project / "notebooks" / "look.ipynb",
        'dataset = "digits"\npublished = ""',
        LOG.format("'look'"),
    )
    write_notebook(
        project / "notebooks" / "compare.ipynb",
        f"published = {named!r}\nodd = '\\0./'",
        LOG.format("'compare'"),
    )
    steps = [CHAIN[0] | {"parameters": {"published": named}}, CHAIN[3]]
    file = write_batch(project, chain=steps, grid={})
    assert {task["status"] for task in run_batch(file)["tasks"]} == {"done"}
    assert {task["note"] for task in run_batch(file, dry_run=True)["tasks"]} == {""}
    table.write_text("model,accuracy\nvit,0.9\n")
    for task in run_batch(file, dry_run=True)["tasks"]:
        assert re.fullmatch(
            rf"files changed: {re.escape(named)} \w{{12}} -> \w{{12}}", task["note"]
        )
    run_batch(file)
    assert log_lines(project) == ["look", "compare"] * 2
    table.unlink()
    assert all(task["note"].endswith("-> none") for task in run_batch(file, dry_run=True)["tasks"])


def test_a_comparison_is_out_of_date_when_another_run_of_its_data_set_is_finished(
    project, reports_folder
):
    reads = (
        "from vitlab.run_tables import latest_runs\nruns, _ = latest_runs(dataset)",
        LOG.format("'compare', len(runs)"),
    )
    write_notebook(project / "notebooks" / "compare.ipynb", 'dataset = "digits"', *reads)
    file = write_batch(project, grid={"color": ["red"]}, chain=[CHAIN[1], CHAIN[2], CHAIN[3]])
    run_batch(file)
    assert [task["note"] for task in run_batch(file, dry_run=True)["tasks"]] == [
        "",
        "",
        "",
    ], "its own runs are known"
    other = Run.create(name="other", dataset="digits", model="vit")
    assert [task["note"] for task in run_batch(file, dry_run=True)["tasks"]] == [
        "",
        "",
        "",
    ], "it is not finished"
    make_whole(other)
    assert [task["note"] for task in run_batch(file, dry_run=True)["tasks"]] == [
        "",
        "",
        "runs changed",
    ]
    log_lines(project)
    run_batch(file)
    assert [line.split()[0] for line in log_lines(project)] == ["compare"]
    elsewhere = Run.create(name="other", dataset="elpv", model="vit")
    make_whole(elsewhere)
    assert run_batch(file, dry_run=True)["tasks"][2]["note"] == ""
    shutil.rmtree(other.path)
    assert run_batch(file, dry_run=True)["tasks"][2]["note"] == "runs changed"


def make_whole(run):
    """Leave the files that notebook 03 promises, and finish."""
    for name in PROMISED["03_finetune"]:
        (run.path / name).write_text("{}")
    pd.DataFrame({"sample_id": ["a"]}).to_parquet(run.path / "predictions.parquet")
    save_file({"weight": np.zeros(2, np.float32)}, run.path / "model.safetensors")
    run.finish()


MAKES_ALL = """\
from tests.test_batch import make_whole
from vitlab.runs import Run
run = Run.create(name=run_name, dataset=dataset, model="vit", seed=seed)
make_whole(run)"""
JUDGES = (
    "from vitlab.runs import Run, run_path\nRun(run_path(dataset=dataset,"
    " name=run_name)).write_json('metrics.json', {'auc': 1})"
)


def test_a_file_that_a_run_has_lost_is_made_again(project, reports_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    parameters = 'dataset = "digits"\nseed = 0\nrun_name = ""'
    cells = {
        "03_finetune": MAKES_ALL,
        "04_evaluate": JUDGES,
        "05_interpret": "run_name",
        "08_compare": "seed",
    }
    names = list(cells)
    for name in names:
        write_notebook(
            project / "notebooks" / f"{name}.ipynb",
            parameters if name != "08_compare" else "seed = 0",
            cells[name],
        )
    chain = [{"notebook": name} for name in names[:3]] + [{"notebook": names[3], "grid": {}}]
    batch = write_batch(project, grid={"seed": [0]}, chain=chain)
    run = reports_folder / run_batch(batch)["tasks"][0]["run"]
    for notebook, files in PROMISED.items():
        again = names.index(notebook)
        for file in files:
            assert [task["note"] for task in run_batch(batch, dry_run=True)["tasks"]] == [""] * 4
            whole, is_text = (run / file).read_bytes(), file.endswith((".csv", ".md"))
            for damage in [None, b"", *([] if is_text else [whole[: len(whole) // 2]])]:
                (run / file).unlink() if damage is None else (run / file).write_bytes(damage)
                state = "missing" if damage is None else "empty" if is_text else "damaged"
                notes = [task["note"] for task in run_batch(batch, dry_run=True)["tasks"]]
                assert notes == [""] * again + [f"{file} is {state}"] + [
                    f"{notebook} runs again"
                ] * (3 - again)
            (run / file).write_bytes(whole)
    (run / "model.safetensors").unlink()
    (run / "metrics.json").write_text('{"auc": ')
    assert {task["status"] for task in run_batch(batch)["tasks"]} == {"done"}
    assert find_damage(run, [file for files in PROMISED.values() for file in files]) == []
    assert [task["note"] for task in run_batch(batch, dry_run=True)["tasks"]] == [""] * 4


# execution


def test_a_batch_goes_on_past_a_failure_and_then_does_only_the_rest(
    project, reports_folder, capsys
):
    file = write_batch(project)
    (project / "red").touch()  # makes the notebook `train` fail for this colour
    content = run_batch(file)
    records = {(task["notebook"], task["point"].get("color")): task for task in content["tasks"]}
    assert {key: task["status"] for key, task in records.items()} == {
        ("look", None): "done",
        ("train", "red"): "failed",
        ("judge", "red"): "skipped",
        ("train", "blue"): "done",
        ("judge", "blue"): "done",
        ("compare", None): "done",
    }
    error = {
        "cell": 5,
        "line": "raise RuntimeError(f'{color} is [b]roken')",
        "name": "RuntimeError",
        "value": "red is [b]roken",
    }
    assert records["train", "red"]["error"] == error
    assert records["judge", "red"]["note"] == "train failed"
    assert content == json.loads(
        (reports_folder / "runs" / "batches" / "toy" / "batch.json").read_text()
    )
    copy = nbformat.read(reports_folder / records["train", "red"]["path"], as_version=4)
    assert any(
        output.get("evalue") == "red is [b]roken"
        for cell in copy.cells
        for output in cell.get("outputs", [])
    )
    assert not (reports_folder / records["judge", "red"]["path"]).exists()
    assert len(log_lines(project)) == 5
    assert {path.suffix for path in reports_folder.rglob(".*")} == {".lock"}

    print_summary(content)
    shown = capsys.readouterr().out
    assert (
        "cell 5: raise RuntimeError" in shown
        and "RuntimeError: red is [b]roken" in shown
        and "train failed" in shown
    )

    (project / "red").unlink()
    notes = {
        task["notebook"]: task["note"]
        for task in run_batch(file, dry_run=True)["tasks"]
        if task["status"] == "pending"
    }
    assert notes == {
        "train": "failed before",
        "judge": "train runs again",
        "compare": "train runs again",
    }
    assert log_lines(project) == []
    assert {task["status"] for task in run_batch(file)["tasks"]} == {"done"}
    assert [line.split()[0] for line in log_lines(project)] == ["train", "judge", "compare"]
    run_batch(file)
    assert log_lines(project) == []


def test_what_is_gone_or_changed_is_done_again(project, reports_folder):
    file = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[:2])
    look, train = run_batch(file)["tasks"]
    log_lines(project)
    (reports_folder / look["path"]).unlink()
    assert [task["note"] for task in run_batch(file, dry_run=True)["tasks"]] == [
        "executed copy is gone",
        "",
    ]
    info = reports_folder / train["run"] / "run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"status": "running"}))
    assert run_batch(file, dry_run=True)["tasks"][1]["note"] == "run is not complete"
    write_notebook(
        project / "notebooks" / "look.ipynb", 'dataset = "digits"\npause = 0.0', "'another'"
    )
    assert run_batch(file, dry_run=True)["tasks"][0]["note"] == "notebook changed"
    assert [task["note"] for task in run_batch(file, dry_run=True, force=True)["tasks"]] == [
        "asked for",
        "asked for",
    ]
    assert log_lines(project) == []


@pytest.mark.parametrize("text", ["", '{"status": "do', "[]", "{}"])
def test_a_damaged_run_is_not_complete(project, reports_folder, text):
    file = write_batch(project, grid={"color": ["red"]}, chain=[CHAIN[1]])
    (train,) = run_batch(file)["tasks"]
    (reports_folder / train["run"] / "run.json").write_text(text)
    assert run_batch(file, dry_run=True)["tasks"][0]["note"] == "run is not complete"


def test_a_torn_batch_json_says_what_to_do(project, reports_folder):
    file = write_batch(project, chain=[CHAIN[0]], grid={})
    state = reports_folder / "runs" / "batches" / "toy" / "batch.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"tasks": [')
    with pytest.raises(
        ValueError, match=r"toy.batch\.json is damaged \(.*\); remove it to run the batch anew"
    ):
        run_batch(file)
    with pytest.raises(ValueError, match=r"batch\.json is damaged"):
        gather_report()
    state.unlink()
    assert run_batch(file)["tasks"][0]["status"] == "done"


def test_a_run_that_another_batch_has_made_again_is_judged_again_and_not_made_a_third_time(
    project, reports_folder
):
    """toy and other share the run of their point; what `judge` had left in it goes when `other`
    makes it.
    """
    toy = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[1:3])
    run_batch(toy)
    other = toy.with_name("other.yml")
    other.write_text(yaml.safe_dump(yaml.safe_load(toy.read_text()) | {"chain": [CHAIN[1]]}))
    run_batch(other)
    assert [line.split()[0] for line in log_lines(project)] == ["train", "judge", "train"]
    assert [task["note"] for task in run_batch(toy, dry_run=True)["tasks"]] == [
        "",
        "its run was made again since",
    ]
    for file in (toy, other, toy):
        assert {task["status"] for task in run_batch(file)["tasks"]} == {"done"}
    assert [line.split()[0] for line in log_lines(project)] == ["judge"]


def test_records_of_before_run_start_was_kept_stay_as_they_are(project, reports_folder):
    file = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[1:3])
    run_batch(file)
    state = reports_folder / "runs" / "batches" / "toy" / "batch.json"
    content = json.loads(state.read_text())
    for record in content["tasks"]:
        del record["run_start"]
    state.write_text(json.dumps(content))
    assert [task["note"] for task in run_batch(file, dry_run=True)["tasks"]] == ["", ""]


def test_with_nothing_to_do_no_cluster_is_asked_for_and_nothing_is_written(
    project, reports_folder, monkeypatch
):
    def refuse(scheduler):
        raise AssertionError("a cluster was opened")

    file = write_batch(project, grid={}, chain=[CHAIN[0]])
    run_batch(file)
    state = reports_folder / "runs" / "batches" / "toy" / "batch.json"
    before = state.stat()
    monkeypatch.setattr(schedule_module, "_open_cluster", refuse)
    assert run_batch(file, scheduler="slurm.yml")["tasks"][0]["status"] == "done"
    assert (state.stat().st_ino, state.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (
        run_batch(write_batch(project, grid={}, chain=[CHAIN[0]], title="Another"))["title"]
        == "Another"
    )
    assert json.loads(state.read_text())["title"] == "Another"
    wrong = write_batch(project, parameters={"dataset": "digitz"}, grid={}, chain=[CHAIN[0]])
    with pytest.raises(ValueError, match="digitz"):  # before the cluster
        run_batch(wrong, scheduler="slurm.yml")


def test_a_batch_whose_runs_another_one_is_at_does_not_start(project, reports_folder):
    file = write_batch(project, grid={"color": ["red"]}, chain=[CHAIN[1]])
    run = plan_tasks(load_batch(file))[0].run
    batches = reports_folder / "runs" / "batches"
    with claim_runs(batches / "other", [run]):
        with pytest.raises(
            ValueError,
            match=(
                rf"another batch \(pid {os.getpid()} on .*\) is running over .*{run}; wait for it"
            ),
        ):
            run_batch(file)
        assert (
            run_batch(file, dry_run=True)["tasks"][0]["status"] == "pending"
            and log_lines(project) == []
        )
    run_batch(file)
    with claim_runs(batches / "toy", []):  # there is nothing to do
        assert run_batch(file)["tasks"][0]["status"] == "done"
        with pytest.raises(ValueError, match=r"is running over .*batches.toy"):
            run_batch(file, force=True)


def test_a_task_that_comes_back_into_the_grid_is_not_done_again(project):
    run_batch(write_batch(project, chain=[CHAIN[1]]))
    assert log_lines(project) == ["train red 0", "train blue 0"]
    for colors in (["blue"], ["blue", "red"]):
        content = run_batch(write_batch(project, grid={"color": colors}, chain=[CHAIN[1]]))
        assert [task["status"] for task in content["tasks"]] == ["done"] * len(colors)
    assert log_lines(project) == []


def test_a_kernel_that_dies_is_a_failure_like_any_other(project, reports_folder):
    write_notebook(
        project / "notebooks" / "look.ipynb",
        'dataset = "digits"',
        "1 + 1",
        "import os\nos.kill(os.getpid(), 9)",
        "3",
    )
    look, compare = run_batch(write_batch(project, chain=[CHAIN[0], CHAIN[3]], grid={}))["tasks"]
    assert (look["status"], compare["status"]) == ("failed", "done")
    assert (look["error"]["cell"], look["error"]["line"], look["error"]["name"]) == (
        4,
        "import os",
        "DeadKernelError",
    )
    assert describe_problem(look).startswith("cell 4: import os\nDeadKernelError: the kernel died")
    cells = [
        cell
        for cell in nbformat.read(reports_folder / look["path"], as_version=4).cells
        if cell.cell_type == "code"
    ]
    assert [cell.outputs[0].output_type if cell.outputs else "" for cell in cells[2:]] == [
        "execute_result",
        "error",
        "",
    ]


def test_two_workers_share_the_cores(project, monkeypatch):
    """Each of the two notebooks waits for the other one to be there, which only works side by
    side.
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = (
        "import os, time\nopen(color, 'w').close()\nwhile not all(map(os.path.exists, ['red',"
        " 'blue'])):\n    time.sleep(0.02)"
    )
    write_notebook(
        project / "notebooks" / "train.ipynb",
        'color = ""',
        meet,
        "print(os.environ['OMP_NUM_THREADS'], file=open(color, 'w'))",
    )
    file = write_batch(project, parameters={}, chain=[{"notebook": "train"}], limits={"minutes": 5})
    content = run_batch(file, workers=2)
    assert [task["status"] for task in content["tasks"]] == ["done", "done"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert (project / "red").read_text() == f"{max(1, cores // 2)}\n"
    assert "OMP_NUM_THREADS" not in os.environ


SLOW = (
    (
        "import os, time\nprint(os.getpid(), os.getppid(), file=open('pids.new',"
        " 'w'))\nos.rename('pids.new', 'pids')"
    ),
    "time.sleep(delay)",
)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_batch_ended_half_way_leaves_nothing_behind_and_carries_on(
    project, reports_folder, number
):
    write_notebook(project / "notebooks" / "train.ipynb", 'color = ""\ndelay = 600.0', *SLOW)
    grid = {"color": ["red"]}
    file = write_batch(project, parameters={}, grid=grid, chain=[{"notebook": "train"}])
    temporary = project / "temporary"
    temporary.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"
    }
    environment["TMPDIR"] = str(temporary)
    with start_vitlab("batch", str(file), env=environment) as batch:
        wait_for(project / "pids")
        pids = [int(pid) for pid in (project / "pids").read_text().split()]
        batch.send_signal(number)
        _, errors = batch.communicate(timeout=60)
    assert batch.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert errors == "Stopped. Run the same command to continue.\n"
        assert not list(temporary.iterdir())
    deadline = time.time() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    content = json.loads((reports_folder / "runs" / "batches" / "toy" / "batch.json").read_text())
    assert [task["status"] for task in content["tasks"]] == ["pending"]
    assert not list(reports_folder.rglob("*.ipynb"))

    file = write_batch(project, parameters={"delay": 0}, grid=grid, chain=[{"notebook": "train"}])
    assert [task["status"] for task in run_batch(file)["tasks"]] == ["done"]


def test_a_kernel_that_does_not_start_at_once_gets_a_second_try(project, monkeypatch):
    """Its ports are chosen before it binds them, and another process may be quicker."""
    from vitlab.batch import execute

    original, calls = execute.papermill.execute_notebook, []

    def die_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return original(*arguments, **options)

    monkeypatch.setattr(execute.papermill, "execute_notebook", die_once)
    outcome = run_notebook(project / "notebooks" / "look.ipynb", project / "copy.ipynb", {})
    assert (outcome["status"], len(calls)) == ("done", 2)


def test_one_notebook_alone(project):
    outcome = run_notebook(
        project / "notebooks" / "look.ipynb", project / "out" / "copy.ipynb", {"pause": 2}
    )
    assert (outcome["status"], outcome["error"]) == ("done", None)
    copy = nbformat.read(project / "out" / "copy.ipynb", as_version=4)
    assert "pause = 2.0" in next(
        cell.source for cell in copy.cells if "injected-parameters" in cell.metadata.get("tags", [])
    )
    assert sys.platform != "linux" or outcome["peak_memory_mb"] > 20
