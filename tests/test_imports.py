"""The direction of imports (contracts in pyproject.toml), and that `import vitlab` costs
nothing.
"""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = [
    "Run",
    "build_model",
    "compare",
    "evaluate",
    "fit",
    "load_dataset",
    "load_model",
    "predict",
    "recipe",
    "run_table",
]


def test_imports_run_one_way():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_a_turned_arrow_is_noticed(tmp_path):
    """The contract is not empty: with `runs` importing torch and `schema` importing `data`, both
    contracts break.
    """
    package = tmp_path / "vitlab"
    for source in (ROOT / "vitlab").rglob("*.py"):
        target = package / source.relative_to(ROOT / "vitlab")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    (package / "schema.py").write_text(
        "import vitlab.data\nimport torch\n" + (package / "schema.py").read_text()
    )
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports;"
        " sys.exit(lint_imports(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stdout.count("BROKEN") == 2


def test_import_vitlab_is_quick_and_loads_nothing():
    code = (
        "import time; t = time.perf_counter(); import vitlab, sys; print(time.perf_counter() - t,"
        " 'torch' in sys.modules)"
    )
    seconds, torch_loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.3
    assert torch_loaded == "False"


@pytest.mark.parametrize("name", NAMES)
def test_each_name_of_the_package_has_an_example_that_runs(name):
    import vitlab

    found = doctest.DocTestFinder(recurse=False).find(getattr(vitlab, name), name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    results = [runner.run(test) for test in found]
    assert sum(result.attempted for result in results) > 1
    assert not any(result.failed for result in results)


@pytest.mark.parametrize("package", ["vitlab.data", "vitlab.compress", "vitlab.plots"])
def test_every_lazy_name_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__ and all(
        callable(getattr(module, name)) or name.isupper() or name in ("card", "sentences")
        for name in module.__all__
    )
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "module", ["vitlab.evaluation", "vitlab.plots", "vitlab.runs", "vitlab.data.datasets"]
)
def test_does_not_load_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
