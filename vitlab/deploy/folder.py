"""Export a run as a folder with a complete app: for Hugging Face Spaces, for a container, or for
any machine with Python and without torch.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from string import Template

import vitlab
from vitlab.app.predictor import ONNX, WEIGHTS
from vitlab.app.serving import CARD, EXAMPLES, SETTINGS
from vitlab.compress.calibration import note_calibration
from vitlab.compress.export import export_onnx
from vitlab.compress.session import description_path, read_description, read_transform
from vitlab.compress.variants import predict_variants
from vitlab.deploy.card import model_card
from vitlab.deploy.parts import describe_run, load_run_data, write_examples
from vitlab.errors import MissingFileError, UserError
from vitlab.files import fill_folder
from vitlab.markup import escape
from vitlab.models import load_model
from vitlab.runs import Run
from vitlab.schema import DataBundle

HERE, ROOT = Path(__file__).parent, Path(vitlab.__file__).parent
ENTRY = "vitlab.app.serving"
REQUIRED = ("gradio", "onnxruntime", "numpy", "pandas", "pillow")
SOURCES = (".css",)  # files beside the modules that they read
LICENCES = {  # text in our licence -> Hugging Face's name of the licence; longer texts first
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC0": "cc0-1.0",
    "Apache": "apache-2.0",
    "MIT": "mit",
}
APP = '''\
"""Starts the app. On this machine: python app.py, then open the address that it prints."""

from pathlib import Path

from vitlab.app.serving import serve

if __name__ == "__main__":
    # 127.0.0.1, or what GRADIO_SERVER_NAME says: Spaces and the Dockerfile set it
    serve(Path(__file__).parent, host=None)
'''
# the Hub takes no others by git
ATTRIBUTES = (
    "*.onnx filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"
)


def export_space(run: Run | Path | str, folder: Path | str, onnx: Path | None = None) -> Path:
    """Write the app of a run into a new folder, for Hugging Face Spaces and `docker build`; gives
    the folder.

    It holds README.md (front matter, how to start, model card), app.py, requirements.txt (no
    torch), Dockerfile, model.onnx with its JSON, app.json (texts), example images of the test
    split, and the modules of vitlab that it needs. onnx: the file to ship; by default the run's
    own, else its weights are exported. Metrics and calibration are those of the shipped file.

    UserError for a folder that is not empty. MissingFileError where the run has no model."""
    run = run if isinstance(run, Run) else Run(run)
    with fill_folder(folder, parents=True) as (folder, work):
        data = load_run_data(run)
        _put_model(run, data, onnx, work / ONNX)
        card = _make_card(run, data, work / ONNX)
        texts = describe_run(run, data.classes) | {"licence": data.licence}
        write_examples(data, work / EXAMPLES)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        start = _fill("readme.md", python, escape(texts["title"]), escape(texts["subtitle"]))
        files = {
            f"{EXAMPLES}/LICENCE.txt": f"Images of {data.name}: {data.licence or 'not stated'}\n\n"
            f"{data.citation}\n",
            SETTINGS: json.dumps(texts, indent=1, ensure_ascii=False) + "\n",
            CARD: card,
            "README.md": _front_matter(texts, python) + "\n" + start + card,
            ".gitattributes": ATTRIBUTES,
            "app.py": APP,
            "Dockerfile": _fill("Dockerfile", python),
            ".dockerignore": ".git\n**/__pycache__\n",
            "requirements.txt": "".join(f"{name}=={version(name)}\n" for name in REQUIRED),
        }
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        copy_modules([ENTRY], work)
    return folder


def _put_model(run: Run, data: DataBundle, onnx: Path | None, target: Path) -> None:
    """Put an ONNX file and its JSON into place: copies, or made from the weights of the run."""
    if onnx is None and (run.path / ONNX).is_file():
        onnx = run.path / ONNX
    if onnx is not None:
        read_description(onnx)  # both files are there and belong together
        shutil.copy(onnx, target)
        shutil.copy(description_path(onnx), description_path(target))
    elif (run.path / WEIGHTS).is_file():
        export_onnx(load_model(run.path), target, data)
    else:
        raise MissingFileError(
            f"run {run.name} has neither {ONNX} nor {WEIGHTS} to make it from; it has"
            f" {', '.join(run.files())}"
        )


def _make_card(run: Run, data: DataBundle, path: Path) -> str:
    """The model card of the shipped file, whose calibration is fitted and stored beside it."""
    predictions = predict_variants(
        {ONNX: path}, data, read_transform(read_description(path)), ("val", "test")
    )[ONNX]
    return model_card(
        run,
        predictions,
        calibration=note_calibration(path, predictions),
        measured_on=f"the file `{ONNX}` as it is shipped",
        usage=(HERE / "usage.md").read_text(encoding="utf-8").strip(),
    )


def _fill(name: str, python: str, title: str = "", subtitle: str = "") -> str:
    template = Template((HERE / name).read_text(encoding="utf-8"))
    return template.substitute(python=python, title=title, subtitle=subtitle)


def _front_matter(texts: Mapping[str, str], python: str) -> str:
    """What Spaces reads at the head of README.md; JSON texts are valid YAML."""
    licence = next((name for text, name in LICENCES.items() if text in texts["licence"]), "other")
    fields = {
        "title": json.dumps(texts["title"][:60], ensure_ascii=False),
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": json.dumps(python),
        "app_file": "app.py",
        "pinned": "false",
        "license": licence,
        "tags": "[image-classification, vision-transformer, onnx]",
    }
    return "---\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "---\n"


def copy_modules(entries: Sequence[str], folder: Path) -> list[str]:
    """Copy modules, and all modules of vitlab that they import at the top level, to
    `folder`/vitlab; gives their names. The licence of vitlab goes with them.

    Imports inside functions are optional and left out. Of a package's __init__ only the docstring
    and the version are kept; UserError for an import that needs more of it."""
    wanted, found = list(entries), {}
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
        if not path.is_file():
            raise UserError(
                f"{name} is no module of vitlab that could be copied alone: {path} is not there"
            )
        found[name] = path
        wanted += _find_imports(path)
    for path in found.values():
        target = folder / path.relative_to(ROOT.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        for beside in path.parent.glob(f"{path.stem}.*"):
            if beside == path or beside.suffix in SOURCES:
                shutil.copy(beside, target.parent)
        for package in target.relative_to(folder).parents[:-1]:
            _write_init(ROOT.parent / package / "__init__.py", folder / package / "__init__.py")
    (folder / ROOT.name / "LICENSE").write_text(licence_text(), encoding="utf-8")
    return sorted(found)


def licence_text() -> str:
    """The licence of vitlab, from its installation (a wheel brings it) or from the checkout."""
    with suppress(PackageNotFoundError):
        text = distribution("vitlab").read_text("licenses/LICENSE")
        if text:
            return text
    return (ROOT.parent / "LICENSE").read_text(encoding="utf-8")


def _find_imports(path: Path) -> list[str]:
    """Modules of vitlab that this one imports at the top level."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("vitlab"):
            continue
        if ROOT.joinpath(*node.module.split(".")[1:]).is_dir():
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names.append(node.module)
    return names


def _write_init(source: Path, target: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    lines = [f'"""{ast.get_docstring(tree)}"""\n']
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            lines.append(f"\n{ast.unparse(node)}\n")
    target.write_text("".join(lines), encoding="utf-8")
