"""The attention viewer holds all its data, asks nothing of the network, moves in a browser, and has
a twin for paper.
"""

import base64
import io
import json
import re
import shutil
import subprocess

import nbformat
import numpy as np
import pytest
from PIL import Image

from vitlab import plots
from vitlab.plots.viewer import LIMIT
from vitlab.report.clean import clean_notebook, for_paper, for_web

GRID = (2, 3)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def make_attention(layers=2, prefix=1, grid=GRID):
    tokens = prefix + grid[0] * grid[1]
    return np.random.default_rng(0).dirichlet(np.full(tokens, 0.5), (layers, tokens))


def make_image(height=40, width=60):
    return np.random.default_rng(1).random((height, width, 3))


def read_data(html):
    return json.loads(re.search(r"var data = (\{.*\});", html)[1])


def test_the_fragment_holds_the_attention_to_one_part_in_255():
    attention = make_attention()
    data = read_data(plots.iplot_patch_attention(make_image(), attention, GRID).to_html())
    assert data["grid"] == [2, 3] and data["prefix"] == 1 and data["layers"] == ["1", "2"]
    for layer in range(2):
        levels = np.frombuffer(base64.b64decode(data["weights"][layer]), np.uint8).reshape(7, 6)
        highest = np.array(data["highest"][layer])
        np.testing.assert_allclose(highest, attention[layer, :, 1:].max(axis=1), rtol=1e-3)
        error = np.abs(levels / 255 * highest[:, None] - attention[layer, :, 1:])
        assert (error <= highest[:, None] * (0.5 / 255 + 1e-3)).all()
    np.testing.assert_allclose(data["toPrefix"], attention[:, :, 0], rtol=1e-3)
    picture = Image.open(io.BytesIO(base64.b64decode(data["image"])))
    assert picture.size == (60, 40) and data["size"] == [448, 299]


def test_the_fragment_asks_nothing_of_the_network():
    html = plots.iplot_patch_attention(make_image(), make_attention(), GRID).to_html()
    # without the data in base64, which may spell anything
    code = re.sub(r'"[A-Za-z0-9+/=]{40,}"', '""', html)
    assert not re.search(r"https?:|src=|href=|import |fetch|XMLHttp|//[a-z]", code)
    assert html.count("</script>") == 1 and html.count("<script>") == 1
    assert 'aria-label="An image; pointing at one of its patches' in html
    names = [
        re.search(r'id="(vitlab-[^"]+)"', made)[1]
        for made in (
            html,
            plots.iplot_patch_attention(make_image(), make_attention(), GRID).to_html(),
        )
    ]
    assert names[0] != names[1], "two figures on a page do not disturb each other"


@pytest.mark.parametrize(("prefix", "token"), [(1, 0), (2, 0), (0, 4)])
def test_the_query_shown_first(prefix, token):
    viewer = plots.iplot_patch_attention(make_image(), make_attention(1, prefix)[0], GRID)
    assert read_data(viewer.to_html())["query"] == token


def test_a_vit_of_twelve_blocks_stays_small():
    attention = np.full((12, 197, 197), 1 / 197, np.float32)
    image = (255 * make_image(224, 224)).astype(np.uint8)  # noise, the worst case for JPEG
    assert len(plots.iplot_patch_attention(image, attention, (14, 14)).to_html()) < LIMIT
    with pytest.raises(
        ValueError,
        match=r"takes 8\.\d MB of a page, the limit is 1.5: give at most 2 of the 18 blocks",
    ):
        plots.iplot_patch_attention(image, np.full((18, 577, 577), 1 / 577, np.float32), (24, 24))
    with pytest.raises(ValueError, match="give a smaller image, which has fewer patches"):
        plots.iplot_patch_attention(image, np.full((1370, 1370), 1 / 1370, np.float32), (37, 37))


def test_the_twin_for_paper_shows_several_queries():
    attention = make_attention(2, 0, (8, 8))
    viewer = plots.iplot_patch_attention(make_image(80, 80), attention, (8, 8))
    axes = [ax for ax in viewer.static.axes if ax.images]
    assert axes[0].get_title() == "queries"
    shown = axes[1].images[0].get_array()
    np.testing.assert_allclose(
        shown, attention[1, 36].reshape(8, 8) / attention[1, 36].max(), rtol=1e-6
    )
    assert axes[1].get_title() == f"patch 1\n(strongest {attention[1, 36].max():.1%})"
    assert viewer.to_png().startswith(b"\x89PNG")
    bundle = viewer._repr_mimebundle_()
    assert (
        set(bundle) == {"text/html", "image/png", "text/plain"} and len(bundle["text/plain"]) < 100
    )


def test_reports_keep_the_viewer_on_the_web_and_its_twin_on_paper():
    bundle = plots.iplot_patch_attention(make_image(), make_attention(), GRID)._repr_mimebundle_()
    source = '#| fig-cap: Attention.\n#| fig-alt: "Attention of a patch"\nviewer'
    cell = nbformat.v4.new_code_cell(
        source, outputs=[nbformat.v4.new_output("display_data", data=bundle)]
    )
    clean = clean_notebook(nbformat.v4.new_notebook(cells=[cell]))
    web, paper = (make(clean).cells[0].outputs[0].data for make in (for_web, for_paper))
    assert (
        bundle["text/html"].strip() in web["text/markdown"]
        and 'aria-label="Attention of a patch"' in web["text/markdown"]
    )
    assert set(paper) == {"image/png"}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_viewer_answers_in_a_browser(tmp_path):
    attention = make_attention()
    page = tmp_path / "page.html"
    act = """<script>setTimeout(function () {
      var canvas = document.querySelector(".vv-query"), box = canvas.getBoundingClientRect();
      var at = {clientX: box.left + 0.9 * box.width, clientY: box.top + 0.2 * box.height, bubbles: true};
      canvas.dispatchEvent(new PointerEvent("pointermove", at));
      var chooser = document.querySelector(".vv-layer");
      chooser.value = 0;
      chooser.dispatchEvent(new Event("change"));
    }, 300);</script>"""  # noqa: E501
    viewer = plots.iplot_patch_attention(make_image(), attention, GRID)
    page.write_text(
        f"<!doctype html><meta charset=utf-8><body>{viewer.to_html()}{act}", encoding="utf-8"
    )
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    weights = attention[0, 3]  # a class token, then row 1: columns 1, 2, 3
    best = int(weights[1:].argmax())
    share = weights[1:].max()
    expected = (
        f"the strongest patch (row {best // 3 + 1}, column {best % 3 + 1}) gets"
        f" {100 * share:.{int(share < 0.0995)}f} %"
    )
    assert (
        "query: patch in row 1, column 3" in done.stdout and "its attention, block 1" in done.stdout
    )
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (
            np.zeros((2, 3, 7, 7)),
            r"attention must be \(T, T\), or \(L, T, T\).*average the heads or choose one",
        ),
        (np.zeros((5, 5)), "attention over 5 tokens does not fit a grid of 2 x 3 patches"),
        (np.full((7, 7), np.nan), "attention holds NaN, infinite or negative weights"),
    ],
)
def test_attention_that_does_not_fit(attention, message):
    with pytest.raises(ValueError, match=message):
        plots.iplot_patch_attention(make_image(), attention, GRID)
