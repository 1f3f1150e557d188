"""The starts: a JupyterLab workspace on the start page, VS Code, Binder, Colab. What they name is
there.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[1]
NOT_ON_BINDER = {
    "make",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "pypdf",
    "torchmetrics",
    "import-linter",
    "ruff",
    "dask-jobqueue",
    "bokeh",
    "tensorboard",
    "wandb",
    "transformers",
    "trackio",
    "grad-cam",
    "quantus",
    "python",
}


def test_start_page_names_every_notebook_and_its_links_lead_somewhere():
    text = (ROOT / "notebooks" / "00_start.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert sorted(links) == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    drawn = text.split("```mermaid")[1].split("```")[0]
    assert all(f"n{name[:2]}[" in drawn for name in links), "each stands in the drawing"


def test_workspace_opens_the_start_page():
    workspace = json.loads(
        (ROOT / "notebooks" / "vitlab.jupyterlab-workspace").read_text(encoding="utf-8")
    )
    (widget,) = workspace["data"]["layout-restorer:data"]["main"]["dock"]["widgets"]
    opened = workspace["data"][widget]["data"]
    assert opened["factory"] == "Markdown Preview" and (ROOT / opened["path"]).is_file()
    assert (
        widget == f"markdownviewer-widget:{opened['path']}"
        and workspace["metadata"]["id"] == "vitlab"
    )


def test_workspace_is_taken_by_jupyterlab(tmp_path):
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    workspace = json.loads(
        (ROOT / "notebooks" / "vitlab.jupyterlab-workspace").read_text(encoding="utf-8")
    )
    manager = WorkspacesManager(str(tmp_path))
    manager.save("vitlab", json.dumps(workspace))
    assert manager.load("vitlab")["data"] == workspace["data"]


@pytest.mark.parametrize("name", ["settings.json", "extensions.json"])
def test_vscode_files_are_json(name):
    content = json.loads((ROOT / ".vscode" / name).read_text(encoding="utf-8"))
    assert content
    rulers = content.get("[python]", {}).get("editor.rulers", [100])
    assert f"line-length = {rulers[0]}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read_packages(file):
    listed = yaml.safe_load(file.read_text(encoding="utf-8"))["dependencies"]
    conda = [item for item in listed if isinstance(item, str)]
    pip = next(item["pip"] for item in listed if isinstance(item, dict))
    words = [*conda, *(item for item in pip if not item.startswith("-"))]
    return {re.match(r"[\w.-]+", word).group(): word for word in words}


def test_binder_has_what_the_environment_has():
    whole, binder = (
        read_packages(ROOT / "environment.yml"),
        read_packages(ROOT / ".binder" / "environment.yml"),
    )
    expected = {
        name: word for name, word in whole.items() if name not in NOT_ON_BINDER | {"python"}
    }
    assert {name: word for name, word in binder.items() if name != "python"} == expected


@pytest.mark.skipif(os.name == "nt", reason="Binder runs Linux")
def test_binder_opens_the_start_page_below_the_whole_folder(tmp_path):
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    for name in ("python", "jupyter"):  # stand-ins that keep what they were given
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n[ {name} = jupyter ] && cp "$4"'
            f" {tmp_path}/given || :\n"
        )
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, check=True)
    given = json.loads((tmp_path / "given").read_text())
    (widget,) = given["data"]["layout-restorer:data"]["main"]["dock"]["widgets"]
    assert given["data"][widget]["data"]["path"] == "notebooks/00_start.md"
    assert given["data"]["file-browser-filebrowser:cwd"]["path"] == "notebooks"
    assert (
        "python -m pip install --quiet --no-deps --editable ." in (tmp_path / "calls").read_text()
    )


def test_colab_notebook_is_python_without_outputs():
    notebook = nbformat.read(ROOT / "notebooks" / "colab" / "start.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        compile(TransformerManager().transform_cell(cell.source), "cell", "exec")
    named = re.findall(r"notebooks/\w+\.ipynb", "\n".join(cell.source for cell in code))
    assert named and all((ROOT / name).is_file() for name in named if "reports" not in name)
