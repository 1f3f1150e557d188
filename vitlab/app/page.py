"""The page in the browser: one image with its maps, many images to a table, and the model card."""

from __future__ import annotations

import html
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from vitlab.app.predictor import Prediction, Predictor, name_columns, predict_files
from vitlab.app.uploads import NAMED, UploadError, UploadLimits, read_upload

CSS = Path(__file__).with_name("page.css")
HEIGHT = 340  # pixels of the two pictures
KEPT_S = 3600  # uploads are deleted when they are an hour old
WIDTHS = {"file": 190, "answer": 105, "sure": 55, "set": 150, "problem": 200}  # pixels of columns
MAP_NAMES = {
    "grad_cam": "Grad-CAM",
    "transformer_attribution": "Attention with gradients",
    "rollout": "Attention rollout",
    "occlusion": "Occlusion",
}


@dataclass(frozen=True)
class Facts:
    """The texts of the page. card: Markdown. examples: image files. licence: of the examples."""

    title: str
    subtitle: str = ""
    card: str = ""
    examples: tuple[Path, ...] = ()
    licence: str = ""


def build_page(predictor: Predictor, facts: Facts, limits: UploadLimits) -> gr.Blocks:
    """The page; `launch` it with css_paths=[CSS] and the theme of `choose_theme`."""
    head = f"<h1>{html.escape(facts.title)}</h1><p>{html.escape(facts.subtitle)}</p>"
    with gr.Blocks(
        title=facts.title, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)
    ) as page:
        page.sheets = tempfile.TemporaryDirectory(prefix="vitlab-")  # deleted with the page
        gr.HTML(f"<header>{head}</header>", elem_id="head")
        with gr.Tab("One image"):
            _add_image_tab(predictor, facts, limits)
        with gr.Tab("Many images"):
            _add_table_tab(predictor, limits, Path(page.sheets.name))
        if facts.card:
            with gr.Tab("About the model"):
                gr.Markdown(facts.card, elem_id="card")
    return page


def _add_image_tab(predictor: Predictor, facts: Facts, limits: UploadLimits) -> None:
    examples = [str(path) for path in facts.examples]
    first = examples[0] if examples else None
    painted, text = explain_file(predictor, limits, first, predictor.methods[0])
    with gr.Row(equal_height=True):
        with gr.Column(min_width=250):
            image = gr.Image(
                first,
                label="Image",
                sources=["upload", "clipboard"],
                buttons=["fullscreen"],
                elem_id="sent",
                format="png",
                height=HEIGHT,
            )
        with gr.Column(min_width=250):
            overlay = gr.Image(
                painted,
                label="Map",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="map",
                height=HEIGHT,
            )
        with gr.Column(min_width=250):
            shown = predict_file(predictor, limits, first)
            prediction = gr.HTML(shown, elem_id="verdict", padding=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            names = [(MAP_NAMES.get(name, name), name) for name in predictor.methods]
            method = gr.Radio(
                names,
                value=predictor.methods[0],
                label="Map by",
                elem_id="method",
                visible=len(names) > 1,
            )
        with gr.Column(scale=1, min_width=250):
            note = gr.HTML(text, elem_id="note", padding=False)
    if examples:
        licence = f". Licence: {facts.licence}" if facts.licence else ""
        label = f"Examples, not seen in training{licence}"
        gr.Examples(examples, image, label=label, examples_per_page=12)
    gr.HTML(
        f"<p>{NAMED} up to {limits.megabytes:g} MB and {limits.megapixels:g} megapixels. Uploads"
        " are deleted after one hour.</p>",
        elem_id="limits",
        padding=False,
    )
    # preprocess=False: gr.Image would open and decode an upload before any limit is checked
    predicted = image.change(
        lambda sent: predict_file(predictor, limits, _find_path(sent)),
        image,
        prediction,
        api_name="answer",
        show_progress="minimal",
        preprocess=False,
    )
    for event in (predicted.then, method.change):
        event(
            lambda sent, name: explain_file(predictor, limits, _find_path(sent), name),
            [image, method],
            [overlay, note],
            show_progress_on=overlay,
            concurrency_limit=1,  # one map at a time: predictions go first
            concurrency_id="maps",
            api_visibility="private",
            preprocess=False,
        )


def _add_table_tab(predictor: Predictor, limits: UploadLimits, sheets: Path) -> None:
    gr.HTML(
        f"<p>Up to {limits.files} files at a time. For a file that cannot be read, the table shows"
        " the reason.</p>",
        elem_id="many",
    )
    files = gr.File(file_count="multiple", label="Images", height=220)
    start = gr.Button("Classify all", variant="primary")
    columns = name_columns(predictor)
    table = gr.Dataframe(
        headers=columns,
        column_widths=[f"{WIDTHS.get(name, 130)}px" for name in columns],
        label="Predictions",
        interactive=False,
        wrap=True,
        max_height=520,
    )
    sheet = gr.DownloadButton("Download as CSV", interactive=False)
    done = start.click(
        lambda paths: predict_all(predictor, limits, sheets, paths),
        files,
        [table, sheet],
        show_progress_on=table,
        concurrency_limit=1,
        api_name="answer_all",
    )
    done.success(lambda: gr.DownloadButton(interactive=True), None, sheet, api_visibility="private")


def choose_theme() -> gr.themes.Base:
    """Muted colours and system fonts; nothing is downloaded."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _find_path(sent: Mapping | None) -> str | None:
    """The path of an upload in Gradio's cache."""
    return sent["path"] if sent else None


def predict_file(predictor: Predictor, limits: UploadLimits, path: str | None) -> str:
    """The prediction for a file, or what is wrong with it, as HTML."""
    if path is None:
        text = "Drop an image into the box, paste one, or choose an example."
        return _panel("empty", "Send an image", text)
    try:
        with predictor.slots:
            return show_prediction(predictor.predict([read_upload(path, limits)])[0])
    except UploadError as error:
        return _panel("error", "Not readable", str(error))


def explain_file(predictor: Predictor, limits: UploadLimits, path: str | None, method: str):
    """The overlay for the most probable class of a file, and the line below it."""
    if path is None:
        return None, ""
    try:
        image = read_upload(path, limits)
        with predictor.slots:
            best = predictor.predict([image])[0].classes[0]
        text = f"{predictor.describe(method, best)} A map is not proof of the reason."
        return predictor.explain(image, method, best), f"<p>{html.escape(text)}</p>"
    except UploadError:
        return None, ""


def predict_all(
    predictor: Predictor, limits: UploadLimits, sheets: Path, paths: Sequence[str] | None
):
    """The table of many files, and a CSV file with it in `sheets`. gr.Error for none or too many
    files. CSV files older than an hour are removed.
    """
    try:
        table = predict_files(predictor, paths or [], limits)
    except UploadError as error:
        raise gr.Error(str(error), print_exception=False) from None
    for old in sheets.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
    sheet = Path(tempfile.mkdtemp(dir=sheets)) / "answers.csv"
    table.to_csv(sheet, index=False)
    return table, str(sheet)


def show_prediction(prediction: Prediction) -> str:
    """A panel with the headline, the reason and a bar for each of the ten most probable classes."""
    bars = []
    pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))
    for name, value in pairs[:10]:
        inside = prediction.coverage is None or name in prediction.members
        bars.append(
            f'<div class="bar {"in" if inside else "out"}">'
            f'<span class="name">{html.escape(name)}</span>'
            f'<span class="share">{value:.1%}</span>'
            f'<div class="track"><div class="fill" style="width:{100 * value:.1f}%"></div></div>'
            "</div>"
        )
    kind = "sure" if prediction.sure else "unsure"
    return _panel(kind, prediction.headline, prediction.reason, "".join(bars))


def _panel(kind: str, headline: str, text: str, further: str = "") -> str:
    inside = f'<h2>{html.escape(headline)}</h2>{further}<p class="reason">{html.escape(text)}</p>'
    return f'<section class="panel {kind}">{inside}</section>'
