"""A folder that is a whole app: for Hugging Face Spaces, for a container, or for any machine with
Python and no torch.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from vitlab.app.serving import CARD, EXAMPLES, ONNX, SETTINGS, WEIGHTS
from vitlab.app.verdict import Calibration
from vitlab.compress.confidence import note_calibration
from vitlab.compress.export import export_onnx
from vitlab.compress.session import OnnxClassifier
from vitlab.compress.sidecar import sidecar_path
from vitlab.deploy.card import model_card
from vitlab.deploy.parts import describe_run, load_run_data, predict_splits, write_examples
from vitlab.deploy.vendor import copy_modules
from vitlab.errors import MissingFileError, UserError
from vitlab.markup import escape
from vitlab.models import load_model
from vitlab.runs import Run
from vitlab.schema import DataBundle
from vitlab.user_files import fill_folder

ENTRY = "vitlab.app.serving"
REQUIRED = ("gradio", "onnxruntime", "numpy", "pandas", "pillow")
LICENCES = {  # Hugging Face's names of licences, by what is written in ours; the longer ones first
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
'''

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
"""

START = """\
# {title}

{subtitle}.

This folder is the whole app: the page, the model as ONNX, and the part of the package vitlab that they need, without torch.

- Here: `pip install -r requirements.txt`, `python app.py`, then open the address that it prints (Python {python}).
- In a container: `docker build -t app .`, then `docker run --rm -p 7860:7860 app` and http://127.0.0.1:7860.
- On Hugging Face Spaces: `hf upload YOU/NAME . --repo-type space` (`pip install huggingface_hub`, `hf auth login` before it).

`app.py` and `vitlab/` are under the MIT licence in `vitlab/LICENSE`; the terms of the model and of the images are below.

"""

ATTRIBUTES = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("onnx", "png")
)  # the Hub takes no others by git

USAGE = """\
```python
from PIL import Image
from vitlab.compress.session import OnnxClassifier

classifier = OnnxClassifier("model.onnx")  # needs onnxruntime, numpy and Pillow, no torch
image = Image.open("image.png")
classifier.predict([image])  # calibrated probabilities, one row an image; classifier.classes names the columns
classifier.predict_table([image])  # the same with the classes of the conformal set and whether the answer is sure
```

The running app answers programs as well: `curl --data-binary @image.png http://127.0.0.1:7860/predict` gives JSON with
`answer`, `sure`, `set` and `probabilities`."""


def export_space(
    run: Run | Path | str,
    folder: Path | str,
    *,
    onnx: Path | str | None = None,
    data: DataBundle | None = None,
    alpha: float = 0.1,
) -> Path:
    """Write the app of a run into a new folder, ready for Hugging Face Spaces and `docker build`;
    gives the folder.

    In it: README.md (front matter, how to start, model card), app.py, requirements.txt (no torch),
    Dockerfile, model.onnx with what lies beside it, app.json (texts), example images of the test
    split, and the modules of vitlab that it needs. onnx: the file to ship; by default the run's
    own, and where it has none its weights are exported. data: by default that of the run. alpha:
    share of sets that may miss. Metrics and calibration in it are those of the shipped file, not of
    the weights.

    UserError where the folder holds something already; nothing is left behind when it fails.
    """
    run = run if isinstance(run, Run) else Run(run)
    with fill_folder(folder, parents=True) as (folder, work):
        source = _find_onnx(run, onnx)
        data = data or load_run_data(run)
        _put_model(run, source, data, work)
        _fill(run, data, work, alpha)
    return folder


def _put_model(run: Run, source: Path | None, data: DataBundle, work: Path) -> None:
    """model.onnx and the JSON beside it: copies, or made from the weights of the run."""
    if source is None:
        export_onnx(load_model(run.path), work / ONNX, data)
        return
    for path, target in ((source, work / ONNX), (sidecar_path(source), sidecar_path(work / ONNX))):
        if not path.is_file():
            raise MissingFileError(
                f"{path} is missing; an ONNX file and the JSON beside it belong together"
            )
        shutil.copy(path, target)


def _fill(run: Run, data: DataBundle, work: Path, alpha: float) -> None:
    classifier = OnnxClassifier(work / ONNX)
    if tuple(classifier.classes) != data.classes:
        raise UserError(
            f"the ONNX file tells apart {', '.join(classifier.classes)}, the data"
            f" {', '.join(data.classes)}"
        )
    predictions = predict_splits(classifier, data)
    calibration = Calibration.from_sidecar(
        note_calibration(work / ONNX, predictions, alpha), data.classes
    )
    texts = describe_run(run, data.classes) | {"licence": data.licence}
    write_examples(data, work / EXAMPLES)
    _write(
        work / EXAMPLES / "LICENCE.txt",
        f"Images of {data.name}: {data.licence or 'not stated'}\n\n{data.citation}\n",
    )
    sizes = {path.name: path.stat().st_size for path in sorted(work.glob(f"{ONNX}*"))}
    card = model_card(
        run,
        predictions,
        calibration=calibration,
        measured_on=f"the file `{ONNX}` as it is shipped",
        files=sizes,
        usage=USAGE,
    )
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    _write(work / SETTINGS, json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    _write(work / CARD, card)
    start = START.format(
        title=escape(texts["title"]), subtitle=escape(texts["subtitle"]), python=python
    )
    _write(work / "README.md", _front_matter(texts) + "\n" + start + card)
    _write(work / ".gitattributes", ATTRIBUTES)
    _write(work / "app.py", APP)
    _write(work / "Dockerfile", DOCKERFILE.format(python=python))
    _write(work / ".dockerignore", ".git\n**/__pycache__\n")
    _write(work / "requirements.txt", "".join(f"{name}=={version(name)}\n" for name in REQUIRED))
    copy_modules([ENTRY], work)


def _front_matter(texts: Mapping[str, str]) -> str:
    """What Spaces reads at the head of README.md. A title is quoted as JSON, which YAML reads as
    well.
    """
    named = next((name for text, name in LICENCES.items() if text in texts["licence"]), "other")
    fields = {
        "title": json.dumps(texts["title"][:60], ensure_ascii=False),
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": json.dumps(f"{sys.version_info.major}.{sys.version_info.minor}"),
        "app_file": "app.py",
        "pinned": "false",
        "license": named,
        "tags": "[image-classification, vision-transformer, onnx]",
    }
    return "---\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "---\n"


def _find_onnx(run: Run, onnx: Path | str | None) -> Path | None:
    """The file to ship; None where the weights of the run are to be exported."""
    if onnx is not None:
        if not Path(onnx).is_file():
            raise MissingFileError(
                f"there is no ONNX file {onnx}; vitlab.compress.export.export_onnx writes one"
            )
        return Path(onnx)
    if (run.path / ONNX).is_file():
        return run.path / ONNX
    if not (run.path / WEIGHTS).is_file():
        raise MissingFileError(
            f"run {run.name} has neither {ONNX} nor {WEIGHTS} to make it from; it has"
            f" {', '.join(run.files())}"
        )
    return None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
