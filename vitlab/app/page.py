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

from vitlab.app.predictors import Predictor
from vitlab.app.table import answer_files, name_columns
from vitlab.app.uploads import NAMED, Limits, UploadError, read_upload
from vitlab.app.verdict import Verdict

CSS = Path(__file__).with_name("page.css")
HEIGHT = 340  # pixels of the two pictures
KEPT_S = 3600  # uploads are deleted when they are an hour old
# pixels of the table's columns
WIDTHS = {"file": 190, "answer": 105, "sure": 55, "set": 150, "problem": 200}
READABLE = {
    "grad_cam": "Grad-CAM",
    "transformer_attribution": "Attention with gradients",
    "rollout": "Attention rollout",
    "occlusion": "Occlusion",
}


@dataclass(frozen=True)
class Facts:
    """What the page says around the answers. card: Markdown. examples: image files. licence: of the
    examples.
    """

    title: str
    subtitle: str = ""
    card: str = ""
    examples: tuple[Path, ...] = ()
    licence: str = ""


def build_page(predictor: Predictor, facts: Facts, limits: Limits) -> gr.Blocks:
    """The page; `launch` it with css_paths=[CSS] and the theme of `choose_theme`."""
    examples = [str(path) for path in facts.examples]
    first = examples[0] if examples else None
    shown, (painted, said) = (
        respond(predictor, limits, first),
        explain_file(predictor, limits, first, predictor.methods[0]),
    )
    with gr.Blocks(
        title=facts.title, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S), fill_width=False
    ) as page:
        page.sheets = tempfile.TemporaryDirectory(prefix="vitlab-")  # goes with the page
        gr.HTML(
            f"<header><h1>{html.escape(facts.title)}</h1><p>{html.escape(facts.subtitle)}</p></header>",
            elem_id="head",
        )
        with gr.Tab("One image"):
            with gr.Row(equal_height=True):
                with gr.Column(min_width=250):
                    sources = ["upload", "clipboard"]
                    image = gr.Image(
                        first,
                        label="Image",
                        sources=sources,
                        height=HEIGHT,
                        buttons=["fullscreen"],
                        elem_id="sent",
                        format="png",
                    )
                with gr.Column(min_width=250):
                    overlay = gr.Image(
                        painted,
                        label="Map",
                        interactive=False,
                        height=HEIGHT,
                        buttons=["download", "fullscreen"],
                        elem_id="map",
                    )
                with gr.Column(min_width=250):
                    verdict = gr.HTML(shown, elem_id="verdict", padding=False)
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=320):
                    names = [(READABLE.get(name, name), name) for name in predictor.methods]
                    method = gr.Radio(
                        names,
                        value=predictor.methods[0],
                        label="Map by",
                        elem_id="method",
                        visible=len(names) > 1,
                    )
                with gr.Column(scale=1, min_width=250):
                    note = gr.HTML(said, elem_id="note", padding=False)
            if examples:
                title = (
                    f"Examples, not seen in training. Licence: {facts.licence}"
                    if facts.licence
                    else "Examples, not seen in training"
                )
                gr.Examples(examples, image, label=title, examples_per_page=12)
            gr.HTML(_describe_limits(limits), elem_id="limits", padding=False)
            # gr.Image would open and decode an upload before any limit is asked
            closed = {"preprocess": False}
            answered = image.change(
                lambda sent: respond(predictor, limits, _find_path(sent)),
                image,
                verdict,
                api_name="answer",
                show_progress="minimal",
                **closed,
            )
            for event in (answered.then, method.change):
                event(
                    lambda sent, name: explain_file(predictor, limits, _find_path(sent), name),
                    [image, method],
                    [overlay, note],
                    show_progress_on=overlay,
                    concurrency_limit=1,  # one map at a time: the answers go first
                    concurrency_id="maps",
                    api_visibility="private",
                    **closed,
                )
        with gr.Tab("Many images"):
            gr.HTML(
                f"<p>Up to {limits.files} files at a time. A file that cannot be read gets a line"
                " that says why.</p>",
                elem_id="many",
            )
            files = gr.File(file_count="multiple", label="Images", height=220)
            start = gr.Button("Answer all", variant="primary")
            columns = name_columns(predictor)
            table = gr.Dataframe(
                headers=columns,
                column_widths=[f"{WIDTHS.get(name, 130)}px" for name in columns],
                label="Answers",
                interactive=False,
                wrap=True,
                max_height=520,
            )
            sheet = gr.DownloadButton("Download as CSV", interactive=False)
            done = start.click(
                lambda paths: answer_all(predictor, limits, Path(page.sheets.name), paths),
                files,
                [table, sheet],
                show_progress_on=table,
                concurrency_limit=1,
                api_name="answer_all",
            )
            done.success(
                lambda: gr.DownloadButton(interactive=True), None, sheet, api_visibility="private"
            )
        if facts.card:
            with gr.Tab("About the model"):
                gr.Markdown(facts.card, elem_id="card")
    return page


def choose_theme() -> gr.themes.Base:
    """Quiet colours and fonts of the system: nothing is fetched from elsewhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="lg",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )


def _find_path(sent: Mapping | None) -> str | None:
    """The path of an upload, which Gradio has put into its cache, or has found there."""
    return sent["path"] if sent else None


def respond(predictor: Predictor, limits: Limits, path: str | None) -> str:
    """The answer for a file, or what is wrong with it, as HTML."""
    if path is None:
        return _panel(
            "empty", "Send an image", "Drop a file into the box, paste one, or choose an example."
        )
    try:
        with predictor.places:
            return show_verdict(predictor.answer([read_upload(path, limits)])[0])
    except UploadError as error:
        return _panel("error", "Not readable", str(error))


def explain_file(predictor: Predictor, limits: Limits, path: str | None, method: str):
    """The overlay for the most probable class of a file, and the line below it; no overlay where
    there is no answer.
    """
    if path is None:
        return None, ""
    try:
        image = read_upload(path, limits)
        with predictor.places:
            best = predictor.answer([image])[0].classes[0]
        text = f"{predictor.describe(method, best)} A map is a hint, not a proof."
        return predictor.explain(image, method, best), f"<p>{html.escape(text)}</p>"
    except UploadError:
        return None, ""


def answer_all(predictor: Predictor, limits: Limits, sheets: Path, paths: Sequence[str] | None):
    """The table of a batch, and the file in `sheets` that holds it as CSV. Raises gr.Error for none
    or too many files.

    Files of more than an hour ago are removed: Gradio has made copies of its own, which it removes
    as well."""
    try:
        table = answer_files(predictor, paths or [], limits)
    except UploadError as error:
        raise gr.Error(str(error), print_exception=False) from None
    for old in sheets.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
    sheet = Path(tempfile.mkdtemp(dir=sheets)) / "answers.csv"
    table.to_csv(sheet, index=False)
    return table, str(sheet)


def show_verdict(verdict: Verdict) -> str:
    """A panel with the headline, the reason and a bar for each of the ten most probable classes."""
    bars = []
    for name, value in list(zip(verdict.classes, verdict.probabilities, strict=True))[:10]:
        inside = "in" if verdict.promise is None or name in verdict.members else "out"
        bars.append(
            f'<div class="bar {inside}"><span class="name">{html.escape(name)}</span><span'
            f' class="share">{value:.1%}</span><div class="track"><div class="fill"'
            f' style="width:{100 * value:.1f}%"></div></div></div>'
        )
    return _panel(
        "sure" if verdict.sure else "unsure", verdict.headline, verdict.reason, "".join(bars)
    )


def _panel(kind: str, headline: str, text: str, further: str = "") -> str:
    inside = f'<h2>{html.escape(headline)}</h2>{further}<p class="reason">{html.escape(text)}</p>'
    return f'<section class="panel {kind}">{inside}</section>'


def _describe_limits(limits: Limits) -> str:
    return (
        f"<p>{NAMED} up to {limits.megabytes:g} MB and {limits.megapixels:g} megapixels. Uploads"
        " are deleted after an hour.</p>"
    )
