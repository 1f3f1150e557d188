"""Data card and model card: names appear as they are, and of many classes those at both ends."""

import json

import pandas as pd
from PIL import Image

from tests.test_extremes import make_predictions
from tests.test_markup import read_text
from vitlab.data import data_card
from vitlab.deploy import model_card
from vitlab.report.markdown import run_pandoc
from vitlab.runs import Run
from vitlab.schema import DataBundle

NAMES = ["R&D @home", "back\\slash", "*star*", "<b>bold", "[x](y)", "$a$ _b_ `c` | # ^d^"]


def make_cards(names):
    predictions, old = make_predictions(len(names))
    renamed = {
        f"{kind}_{a}": f"{kind}_{b}"
        for kind in ("prob", "logit")
        for a, b in zip(old, names, strict=True)
    }
    predictions = predictions.rename(columns=renamed).replace(dict(zip(old, names, strict=True)))
    samples = predictions[["sample_id", "label", "split", "group"]].assign(source="x")
    empty = pd.DataFrame(columns=["sample_id", "source", "reason"])
    read = {"read": lambda name: Image.new("L", (2, 2)), "excluded": empty}
    data = DataBundle("data *set*", tuple(names), samples, **read, citation="By A_B <c@d.org>")
    run = Run.create(dataset="folder:/a/*b*", model="vit_$x$_<i>", seed=0, name="named")
    run.write_table("splits.csv", samples)
    run.write_table("predictions.parquet", predictions)
    (run.path / "data_card.md").write_text(data_card(data), encoding="utf-8")
    return data_card(data), model_card(run)


def read_words(markdown):
    return read_text(json.loads(run_pandoc("--from=gfm", "--to=json", text=markdown))["blocks"])


def test_names_appear_as_they_are():
    card, model = make_cards(NAMES)
    for text, times in ((read_words(card), 1), (read_words(model), 2)):
        assert [name for name in NAMES if text.count(name) < times] == []
        assert "By A_B <c@d.org>" in text and "<Link>" not in text and "<RawInline>" not in text
    assert "Data card: data *set*" in read_words(card)
    assert "Model card: vit_$x$_<i> on folder:/a/*b*" in read_words(model)


def test_many_classes_are_cut():
    _, model = make_cards([f"c{i:03d}" for i in range(30)])
    assert model.count("12 of 30 classes") == 1 and "and 10 more" in model
    assert sum(line.startswith("| c0") for line in model.splitlines()) == 12
