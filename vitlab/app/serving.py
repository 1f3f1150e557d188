"""Serve the model of a folder: the page for people, and POST /predict for programs."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vitlab.app.page import CSS, Facts, build_page, choose_theme
from vitlab.app.predictor import Predictor, open_predictor
from vitlab.app.uploads import UploadError, UploadLimits, check_bytes, read_upload
from vitlab.errors import UserError
from vitlab.pictures import IMAGE_SUFFIXES

SETTINGS = "app.json"  # title, subtitle, licence of the examples; export_space writes it
CARD = "MODEL_CARD.md"
EXAMPLES = "examples"
# visitors whose state is kept; Gradio's default of 10,000 would take a gigabyte
SESSIONS = 200


def read_facts(folder: Path | str) -> Facts:
    """The texts in a folder made by export_space; without them, the folder's name as title."""
    folder = Path(folder)
    settings, path = {}, folder / SETTINGS
    if path.is_file():
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: {error}; export the folder again") from error
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    examples = [path for path in (folder / EXAMPLES).glob("*") if _is_image(path)]
    return Facts(
        settings.get("title", folder.resolve().name),
        settings.get("subtitle", ""),
        card,
        tuple(sorted(examples)),
        settings.get("licence", ""),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def serve(
    folder: Path | str,
    host: str | None = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
    limits: UploadLimits | None = None,
    facts: Facts | None = None,
    threads: int = 1,
    block: bool = True,
) -> tuple[gr.Blocks, str]:
    """Start the app of a folder; gives the page and its address.

    host: 127.0.0.1 for this machine only, 0.0.0.0 for everybody; None: the variable
    GRADIO_SERVER_NAME, else this machine. port: None takes the first free one from 7860. share: let
    Gradio open a tunnel to a public address. block: return only after Ctrl+C; otherwise
    `page.close()` stops it. Programs use `POST /predict` (image in, JSON out) and `GET /health`."""
    limits = limits or UploadLimits()
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


def _list_routes(predictor: Predictor, limits: UploadLimits) -> list[Route]:
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


async def _read_body(request: Request, limits: UploadLimits) -> bytes:
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
