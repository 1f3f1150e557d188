"""Export a run as a folder with a complete app: for Hugging Face Spaces, for a container, or for
any machine with Python and without torch.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from vitlab.app.prediction import Calibration
from vitlab.app.serving import CARD, EXAMPLES, ONNX, SETTINGS, WEIGHTS
from vitlab.compress.confidence import note_calibration
from vitlab.compress.export import export_onnx
from vitlab.compress.session import OnnxClassifier
from vitlab.compress.sidecar import sidecar_path
from vitlab.deploy.card import model_card
from vitlab.deploy.parts import describe_run, load_run_data, predict_splits, write_examples
from vitlab.deploy.vendor import copy_modules
from vitlab.errors import MissingFileError, UserError
from vitlab.files import fill_folder
from vitlab.markup import escape
from vitlab.models import load_model
from vitlab.runs import Run
from vitlab.schema import DataBundle

ENTRY = "vitlab.app.serving"
REQUIRED = ("gradio", "onnxruntime", "numpy", "pandas", "pillow")
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
    serve(Path(__file__).parent, host=None)  # 127.0.0.1, or what GRADIO_SERVER_NAME says: Spaces and the Dockerfile set it
'''  # noqa: E501

DOCKERFILE = """\
FROM python:{python}-slim
ENV PYTHONUNBUFFERED=1 GRADIO_ANALYTICS_ENABLED=False GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
RUN useradd --create-home --uid 1000 app
WORKDIR /srv/app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER app
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD python -c \
"import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"
CMD ["python", "app.py"]
"""  # noqa: E501

START = """\
# {title}

{subtitle}.

This folder contains the complete app: the page, the model as ONNX, and the required part of the package vitlab, without torch.

- On this machine: `pip install -r requirements.txt`, `python app.py`, then open the address that it prints (Python {python}).
- In a container: `docker build -t app .`, then `docker run --rm -p 7860:7860 app` and http://127.0.0.1:7860.
- On Hugging Face Spaces: `hf upload YOU/NAME . --repo-type space` (first `pip install huggingface_hub` and `hf auth login`).

`app.py` and `vitlab/` are under the MIT licence in `vitlab/LICENSE`; the terms of the model and of the images are below.

"""  # noqa: E501

ATTRIBUTES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("onnx", "png")
)  # the Hub takes no others by git

USAGE = """\
```python
from PIL import Image
from vitlab.compress.session import OnnxClassifier

classifier = OnnxClassifier("model.onnx")  # needs onnxruntime, numpy and Pillow, no torch
image = Image.open("image.png")
classifier.predict([image])  # calibrated probabilities, one row per image; columns as in classifier.classes
classifier.predict_table([image])  # the same with the conformal set and whether the prediction is sure
```

Programs can ask the running app: `curl --data-binary @image.png http://127.0.0.1:7860/predict` gives JSON with
`answer`, `sure`, `set` and `probabilities`."""  # noqa: E501


def export_space(run: Run | Path | str, folder: Path | str, onnx: Path | None = None) -> Path:
    """Write the app of a run into a new folder, for Hugging Face Spaces and `docker build`; gives
    the folder.

    It holds README.md (front matter, how to start, model card), app.py, requirements.txt (no
    torch), Dockerfile, model.onnx with its JSON, app.json (texts), example images of the test
    split, and the modules of vitlab that it needs. onnx: the file to ship; by default the run's
    own, else its weights are exported. Metrics and calibration are those of the shipped file.

    UserError if the folder is not empty; a failure leaves nothing behind."""
    run = run if isinstance(run, Run) else Run(run)
    with fill_folder(folder, parents=True) as (folder, work):
        data = _put_model(run, onnx, work)
        texts = describe_run(run, data.classes) | {"licence": data.licence}
        write_examples(data, work / EXAMPLES)
        licence = f"Images of {data.name}: {data.licence or 'not stated'}\n\n{data.citation}\n"
        card = _make_card(run, data, work)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        shown = {name: escape(texts[name]) for name in ("title", "subtitle")}
        start = START.format(python=python, **shown)
        pinned = "".join(f"{name}=={version(name)}\n" for name in REQUIRED)
        files = {
            f"{EXAMPLES}/LICENCE.txt": licence,
            SETTINGS: json.dumps(texts, indent=1, ensure_ascii=False) + "\n",
            CARD: card,
            "README.md": _front_matter(texts, python) + "\n" + start + card,
            ".gitattributes": ATTRIBUTES,
            "app.py": APP,
            "Dockerfile": DOCKERFILE.format(python=python),
            ".dockerignore": ".git\n**/__pycache__\n",
            "requirements.txt": pinned,
        }
        for name, text in files.items():
            (work / name).write_text(text, encoding="utf-8")
        copy_modules([ENTRY], work)
    return folder


def _put_model(run: Run, onnx: Path | None, work: Path) -> DataBundle:
    """Put model.onnx and its JSON into `work`: copies, or made from the weights of the run. Gives
    the data set of the run.
    """
    if onnx is None and (run.path / ONNX).is_file():
        onnx = run.path / ONNX
    if onnx is None and not (run.path / WEIGHTS).is_file():
        raise MissingFileError(
            f"run {run.name} has neither {ONNX} nor {WEIGHTS} to make it from; it has"
            f" {', '.join(run.files())}"
        )
    if onnx is not None:
        for path, name in ((onnx, ONNX), (sidecar_path(onnx), sidecar_path(ONNX).name)):
            if not path.is_file():
                raise MissingFileError(
                    f"{path} is missing; an ONNX file needs the JSON file beside it"
                )
            shutil.copy(path, work / name)
    data = load_run_data(run)
    if onnx is None:
        export_onnx(load_model(run.path), work / ONNX, data)
    return data


def _make_card(run: Run, data: DataBundle, work: Path) -> str:
    """The model card of the shipped file, whose calibration is fitted and stored beside it."""
    classifier = OnnxClassifier(work / ONNX)
    if classifier.classes != data.classes:
        raise UserError(
            f"the ONNX file has the classes {', '.join(classifier.classes)}, the data"
            f" {', '.join(data.classes)}"
        )
    predictions = predict_splits(classifier, data)
    noted = note_calibration(work / ONNX, predictions)
    return model_card(
        run,
        predictions,
        calibration=Calibration.from_sidecar(noted, data.classes),
        measured_on=f"the file `{ONNX}` as it is shipped",
        usage=USAGE,
    )


def _front_matter(texts: Mapping[str, str], python: str) -> str:
    """What Spaces reads at the head of README.md. Titles are quoted as JSON, which is valid
    YAML.
    """
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
