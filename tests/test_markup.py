"""Texts from outside are shown as they are: pandoc reads back what was escaped; notebooks escape
the names that they write.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from vitlab.markup import code, escape, list_some, pipe_table
from vitlab.report.markdown import run_pandoc

NAMES = r"""
R&D @home ¦ back\slash ¦ *star* ¦ <b>bold ¦ [x](y.ipynb) ¦ _a_ ¦ __background__ ¦ class_01 ¦
a|b ¦ # h ¦ `c` ¦ $x$ and $y$ ¦ &amp; &#64; ¦ a--b---c... ¦ 1. x ¦ (a) b ¦ - x ¦ : x ¦
~~s~~ H~2~O x^2^ ¦ it's "q" ¦ {.cls} ¦ [^1] ¦ ![i](j.png) ¦ \begin{x} ¦ == ¦ @fig-samples ¦
a@b.c ¦ x\ ¦ --- ¦ `` ` `` ¦ <!-- c --> ¦ x_ ¦ *a ¦ #. item ¦ Table: x ¦ *猫* ¦ 1
"""
NAMES = [name.strip() for name in NAMES.split("¦")]
NAMES.append("line\nbreak")
CONTEXTS = [
    "{}",
    "is *{}* here",
    "**{}**: x",
    "- {}",
    "# {}",
    "| {} | b |\n|---|---|\n| {} | *{}* |",
]
OPAQUE = ("Math", "RawInline", "RawBlock", "Code", "Link", "Image", "Cite", "Note")
OPAQUE += ("Strikeout", "Superscript", "Subscript")


def read_text(node):
    """The words that pandoc's tree shows; markup that must not be there by its name."""
    if isinstance(node, list):
        return "".join(map(read_text, node))
    if not isinstance(node, dict):
        return ""
    kind = node.get("t")
    if kind == "Str":
        return node["c"]
    return (
        f"<{kind}>"
        if kind in OPAQUE
        else " " * (kind in ("Space", "SoftBreak")) + read_text(node.get("c", []))
    )


def read_markdown(texts, kind):
    """The words of each text, all read in one call of pandoc."""
    mark = "\n\n```\nnext\n```\n\n"
    blocks = json.loads(run_pandoc(f"--from={kind}", "--to=json", text=mark.join(texts)))["blocks"]
    parts = [[]]
    for block in blocks:
        parts.append([]) if block["t"] == "CodeBlock" else parts[-1].append(block)
    return ["".join(read_text(part).split()) for part in parts]


@pytest.mark.parametrize("kind", ["markdown", "gfm"])
def test_names_are_read_back_as_they_are(kind):
    cases = [(context, name) for context in CONTEXTS for name in NAMES]
    shown = read_markdown([context.replace("{}", escape(name)) for context, name in cases], kind)
    plain = read_markdown([context.replace("{}", "NAME") for context, _ in cases], kind)
    assert shown == [
        text.replace("NAME", "".join(name.split()))
        for text, (_, name) in zip(plain, cases, strict=True)
    ]


def test_ordinary_names_stay_readable():
    for name in (
        "class_01",
        "R&D",
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "folder:/data/cats-2",
        "n02-x (3)",
        "猫",
    ):
        assert escape(name) == name


@pytest.mark.parametrize("name", ["a`b", "``", "plain", "`x`", "a|b*c*"])
def test_code_shows_the_name(name):
    (block,) = json.loads(run_pandoc("--from=markdown", "--to=json", text=code(name)))["blocks"]
    assert [(one["t"], one["c"][1]) for one in block["c"]] == [("Code", name)]


def test_lists_name_some_and_count_the_rest():
    assert (
        list_some(["*a*", "b", "c"], 2) == "&#42;a&#42;, b and 1 more"
        and list_some(["a", "b"], 2) == "a, b"
    )


def test_tables_have_a_row_for_each():
    assert pipe_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|--:|", "| 1 | 2 |"]


def list_emphasised(source):
    """Values of f-strings that stand between asterisks, as source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for before, value in zip(node.values, node.values[1:], strict=False):
                marked = isinstance(before, ast.Constant) and str(before.value).endswith("*")
                if marked and isinstance(value, ast.FormattedValue) and value.format_spec is None:
                    yield ast.unparse(value.value)


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
READY = re.compile(r"^(escape|plots\.readable)\(|^', '\.join\(map\(plots\.readable")
# words of ours
FIXED = {
    "04_evaluate": {"name", "best['method']", "worst['column']"},
    "06_compress": {"smallest", "row.model"},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_escape_the_names_that_they_emphasise(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    values = [value for source in sources for value in list_emphasised(source)]
    assert {value for value in values if not READY.match(value)} <= FIXED.get(path.stem, set())
