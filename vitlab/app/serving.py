"""Serve the model of a folder: the page for people, and POST /predict for programs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vitlab.app.page import CSS, Facts, build_page, choose_theme
from vitlab.app.prediction import Calibration
from vitlab.app.predictors import Predictor
from vitlab.app.uploads import Limits, UploadError, check_bytes, read_upload
from vitlab.compress.session import OnnxClassifier
from vitlab.errors import MissingFileError, UserError
from vitlab.pictures import IMAGE_SUFFIXES

ONNX = "model.onnx"
WEIGHTS = "model.safetensors"
SETTINGS = "app.json"  # title, subtitle, licence of the examples; export_space writes it
CARD = "MODEL_CARD.md"
EXAMPLES = "examples"
# visitors whose state is kept; Gradio's default of 10,000 would take a gigabyte
SESSIONS = 200


def open_predictor(folder: Path | str, threads: int | None = 1) -> Predictor:
    """The model of a run folder or a Space: its ONNX file, or its weights where there is none and
    torch is installed.

    threads: of ONNX Runtime for one image. With one, as many images are in work as there are cores,
    and none waits for another: two threads that shared a busy core cost a ViT-Ti in int8 33 ms of
    processor time an image, one cost 15. FileNotFoundError where the folder holds neither."""
    folder = Path(folder)
    with_torch = (folder / WEIGHTS).is_file() and importlib.util.find_spec("torch") is not None
    if not (folder / ONNX).is_file() and not with_torch:
        raise MissingFileError(
            f"{folder} contains no model: neither {ONNX} (vitlab.compress.export_onnx writes"
            f" it) nor {WEIGHTS} with torch"
        )
    model = _open_weights(folder) if with_torch else None
    if not (folder / ONNX).is_file():
        calibration = _fit_calibration(folder, model.classes)
        model.temperature = calibration.temperature
        return Predictor(model, calibration, model)
    classifier = OnnxClassifier(folder / ONNX, threads)
    noted = classifier.description["calibration"] or {}
    return Predictor(classifier, Calibration.from_sidecar(noted, classifier.classes), model)


def _open_weights(folder: Path):
    from vitlab.app.torch_model import TorchModel
    from vitlab.models import load_model

    return TorchModel(load_model(folder))


def _fit_calibration(folder: Path, classes: tuple[str, ...]) -> Calibration:
    """From the validation predictions of a run; the default where it has none."""
    if not (folder / "predictions.parquet").is_file():
        return Calibration()
    import pandas as pd

    from vitlab.compress.confidence import find_calibration

    predictions = pd.read_parquet(folder / "predictions.parquet")
    return Calibration.from_sidecar(find_calibration(predictions), classes)


def read_facts(folder: Path | str) -> Facts:
    """The texts in a folder made by export_space; without them, the folder's name as title."""
    folder = Path(folder)
    settings = _read_settings(folder)
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    examples = sorted(
        path for path in (folder / EXAMPLES).glob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    texts = {name: settings.get(name, "") for name in ("subtitle", "licence")}
    return Facts(
        settings.get("title", folder.resolve().name), card=card, examples=tuple(examples), **texts
    )


def serve(
    folder: Path | str,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
    limits: Limits | None = None,
    facts: Facts | None = None,
    threads: int | None = 1,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Start the app of a folder; gives the page and its address.

    host: 127.0.0.1 for this machine only, 0.0.0.0 for everybody; None: the variable
    GRADIO_SERVER_NAME, else this machine. port: None takes the first free one from 7860. share: let
    Gradio open a tunnel to a public address. block: return only after Ctrl+C; otherwise
    `page.close()` stops it. Programs use `POST /predict` (image in, JSON out) and `GET /health`."""
    limits = limits or Limits()
    predictor = open_predictor(folder, threads)
    page = build_page(predictor, facts or read_facts(folder), limits)
    page.queue(default_concurrency_limit=4)
    # of 2,000, each kept until it is full; there is no public way
    page._queue.pending_messages_per_session.max_size = SESSIONS
    _, address, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        inbrowser=False,
        quiet=True,
        state_session_capacity=SESSIONS,
        prevent_thread_lock=True,
        max_file_size=limits.bytes,
        theme=choose_theme(),
        css_paths=[CSS],
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        app_kwargs={"routes": _list_routes(predictor, limits)},
    )
    if block:
        page.block_thread()
    return page, public or address


def _list_routes(predictor: Predictor, limits: Limits) -> list[Route]:
    def answer(body: bytes) -> dict:
        with predictor.slots:
            return predictor.predict([read_upload(body, limits)])[0].as_dict()

    async def predict(request: Request) -> JSONResponse:
        try:
            return JSONResponse(await run_in_threadpool(answer, await _read_body(request, limits)))
        except UploadError as error:
            return JSONResponse({"error": str(error)}, status_code=413 if error.too_large else 422)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "classes": list(predictor.classifier.classes)})

    return [Route("/predict", predict, methods=["POST"]), Route("/health", health, methods=["GET"])]


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body; reading stops once it exceeds the limit, whatever the header announces."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit():
        check_bytes(max(int(announced), 1), limits)
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limits.bytes:
            check_bytes(size, limits)
    return b"".join(parts)


def _read_settings(folder: Path) -> dict:
    path = folder / SETTINGS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}; export the folder again") from error
