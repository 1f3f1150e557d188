"""What the results of a notebook depend on, and how a change is described."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.batch.toys import CHAIN, LOG, log_lines, write_batch, write_notebook
from vitlab.batch import fingerprint as fingerprint_module, load_batch, plan_tasks, run_batch
from vitlab.batch.fingerprint import (
    PACKAGE,
    describe_changes,
    find_data,
    fingerprint_tasks,
    imported_modules,
    notebook_imports,
    used_files,
)

ROOT = Path(__file__).parents[2]


def write_package(folder, files):
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)


def names_below(folder, files):
    return {file.relative_to(folder).as_posix() for file in files}


def test_imports_are_found_in_functions_and_attributes_too():
    source = (
        "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h.i import j\n"
        "c.k(e.l)\nimport m\nm.n.o()"
    )
    relative = {"x.y", "x.y.g", "x.h.i", "x.h.i.j"}
    assert imported_modules(source, "x.y") == {"a.b", "d", "d.e", "a.b.k", "m", "m.n"} | relative


def test_used_files_are_the_closure_of_the_imports(tmp_path):
    used = {
        "__init__.py": "",
        "data/__init__.py": "from .reading import read",
        "data/reading.py": "def read():\n    import pack.models.vit",
        "models/__init__.py": "import torch",
        "models/vit.py": "",
    }
    write_package(tmp_path / "pack", used | {"alone.py": "", "models/other.py": ""})
    found = used_files({"pack.data.read", "pandas"}, tmp_path / "pack")
    assert names_below(tmp_path / "pack", found) == set(used)


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("import pack", set()),
        ("import pack as p\np.fit()", {"training/__init__.py", "training/loop.py"}),
        ("from pack import data", {"data/__init__.py"}),
    ],
)
def test_of_the_lazy_names_of_the_package_only_those_used_count(tmp_path, source, files):
    package = {
        "__init__.py": "",
        "__init__.pyi": "from . import data as data\nfrom .training import fit as fit",
        "data/__init__.py": "",
        "training/__init__.py": "from .loop import fit",
        "training/loop.py": "",
    }
    write_package(tmp_path / "pack", package)
    found = used_files(imported_modules(source), tmp_path / "pack")
    assert names_below(tmp_path / "pack", found) == {"__init__.py", "__init__.pyi", *files}


def test_what_a_package_imports_lazily_is_used_too():
    files = names_below(PACKAGE, used_files({"vitlab.compress"}, PACKAGE))
    assert {"compress/__init__.pyi", "compress/quantize.py", "compress/export.py"} <= files


def test_magics_and_commands_are_allowed_in_notebooks(tmp_path):
    cells = "%matplotlib inline\nimport json\n!ls", "%%time\nx = 1", "from pathlib import Path?"
    write_notebook(tmp_path / "magic.ipynb", "", *cells)
    assert "json" in notebook_imports(tmp_path / "magic.ipynb")
    write_notebook(tmp_path / "wrong.ipynb", "", "import json as")
    with pytest.raises(ValueError, match=r"wrong.ipynb has a cell that is not Python"):
        notebook_imports(tmp_path / "wrong.ipynb")


@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_work_on_the_report_puts_no_notebook_out_of_date(notebook):
    used = used_files(notebook_imports(notebook), PACKAGE)
    parts = {file.relative_to(PACKAGE).parts[0] for file in used}
    assert "notebook.py" in parts
    assert parts.isdisjoint({"report", "batch", "cli.py", "kernels.py"})


def test_data_files_of_a_package_belong_to_its_code(tmp_path):
    data = ["page.html", "shipped/a.safetensors", "shipped/a.csv"]
    others = ["__init__.py", "zoo.py", "zoo.pyi", ".hidden", "__pycache__/zoo.pyc"]
    others += ["other/__init__.py", "other/page.css"]
    write_package(tmp_path, dict.fromkeys(data + others, ""))
    assert names_below(tmp_path, find_data(tmp_path)) == set(data)
    # notebook 08 uses the page of its table and the shipped weights
    used = used_files(notebook_imports(ROOT / "notebooks" / "08_compare.ipynb"), PACKAGE)
    found = {path for folder in {file.parent for file in used} for path in find_data(folder)}
    names = names_below(PACKAGE, found)
    assert "models/shipped/vit_tiny_vitlab.safetensors" in names
    assert not any(name.startswith("report/") for name in names)


def test_each_part_of_a_fingerprint_follows_its_cause(project, monkeypatch):
    package = project / "vitlab"
    write_package(package, dict.fromkeys(("__init__.py", "runs.py", "other.py"), ""))
    monkeypatch.setattr(fingerprint_module, "PACKAGE", package)

    def take(version="1", **content):
        tasks = plan_tasks(load_batch(write_batch(project, **content)))
        prints = fingerprint_tasks(tasks, lambda dataset: dataset + version)
        return {task.label: parts for task, parts in zip(tasks, prints, strict=True)}

    def changes(*arguments, **content):
        now = take(*arguments, **content)
        return {
            (label, part)
            for label in now
            for part in now[label]
            if now[label] != first[label]
            if now[label][part] != first[label][part]
        }

    first = take()
    assert changes() == set()
    assert {part for _, part in changes("2")} == {"data", "needs"}
    assert changes(parameters={"dataset": "digits", "pause": 3}) == {("look", "parameters")}
    (package / "other.py").write_text("unused = 1")
    assert changes() == set()
    trained = {("train color=red", "code"), ("train color=blue", "code")}
    for name in ("runs.py", "page.html"):  # vitlab itself is a package with data files
        (package / name).write_text("used")
        if name == "page.html":
            (package / "runs.py").write_text("")
        else:
            (package / name).write_text("used = 1")
        assert {change for change in changes() if change[1] == "code"} == trained
    (package / "page.html").unlink()
    judge, parameters = project / "notebooks" / "judge.ipynb", 'run_name = ""\ndataset = "digits"'
    write_notebook(judge, parameters, LOG.format("'judge', run_name"), "")
    assert changes() == set(), "an empty cell changes no result"
    write_notebook(judge, parameters, "'another'")
    assert changes() == {
        ("judge color=red", "notebook"),
        ("judge color=blue", "notebook"),
        ("compare", "needs"),
    }


def test_versions_of_the_libraries_are_kept(project):
    cells = "import sklearn.metrics, json", "import no_such_module", "import yaml, PIL.Image"
    write_notebook(project / "notebooks" / "look.ipynb", 'dataset = "digits"', *cells)
    tasks = plan_tasks(load_batch(write_batch(project, chain=CHAIN[:2], grid={})))
    look, train = (parts["libraries"] for parts in fingerprint_tasks(tasks, lambda dataset: ""))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    known = {name: version(name) for name in ("scikit-learn", "PyYAML", "pillow")}
    assert {name.lower(): number for name, number in look.items()} == {
        "python": python,
        **{name.lower(): number for name, number in known.items()},
    }
    assert train["pandas"] == version("pandas"), "vitlab.runs imports it"


LIBRARIES = {"numpy": "1", "torch": "2"}


@pytest.mark.parametrize(
    ("then", "now", "text"),
    [
        ({"code": "0"}, {"code": "0"}, ""),
        ({"code": "0", "data": "1"}, {"code": "2", "data": "3"}, "code, data changed"),
        ({}, {"files": {"a.csv": "12"}}, "files changed"),
        (
            {"code": "0", "libraries": LIBRARIES},
            {"code": "1", "libraries": LIBRARIES | {"torch": "3"}},
            "code changed; libraries changed: torch 2 -> 3",
        ),
        (
            {"libraries": {f"lib{number}": "1" for number in range(5)}},
            {"libraries": {}},
            "libraries changed: lib0 1 -> none, lib1 1 -> none, lib2 1 -> none and 2 more",
        ),
    ],
)
def test_changes_in_words(then, now, text):
    assert describe_changes(then, now) == text


@pytest.mark.parametrize(
    ("place", "name"),
    [("", "published.csv"), ("reports", "a, b c.csv"), ("absolute", "published.csv")],
)
def test_a_file_that_a_parameter_names_is_part_of_the_fingerprint(project, no_kernels, place, name):
    """Given by the batch or as a default, as `published` of notebook 08."""
    table = project / ("elsewhere" if place == "absolute" else place) / name
    table.parent.mkdir(exist_ok=True)
    table.write_text("model,accuracy\n")
    (project / "digits").mkdir()  # a folder of that name is no file
    named = str(table) if place == "absolute" else name
    folder = project / "notebooks"
    parameters = 'dataset = "digits"\npublished = ""'
    write_notebook(folder / "look.ipynb", parameters, LOG.format("'look'"))
    parameters = f"published = {named!r}\nodd = '\\0./'"
    write_notebook(folder / "compare.ipynb", parameters, LOG.format("'compare'"))
    steps = [CHAIN[0] | {"parameters": {"published": named}}, CHAIN[3]]
    file = write_batch(project, chain=steps, grid={})

    def notes():
        return {task["note"] for task in run_batch(file, dry_run=True)["tasks"]}

    run_batch(file)
    assert notes() == {""}
    table.write_text("model,accuracy\nvit,0.9\n")
    (note,) = notes()
    assert note.startswith(f"files changed: {named} ") and " -> " in note
    run_batch(file)
    assert log_lines(project) == ["look", "compare"] * 2
    table.unlink()
    (note,) = notes()
    assert note.endswith("-> none")
