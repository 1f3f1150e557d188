"""Files of a bundle that are made to take much memory or time when they are read."""

import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitlab.submission import opened
from vitlab.submission.answers import find_answers
from vitlab.submission.opened import Bundle, check_parquet
from vitlab.submission.rubric import load_rubric


def test_aliases_in_a_rubric_are_refused(tmp_path):
    lines = ["title: &a [x, x, x, x]", *(f"k{n}: &b{n} [*a, *a, *a, *a]" for n in range(3))]
    (tmp_path / "rubric.yml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="aliases"):
        load_rubric(tmp_path / "rubric.yml")


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"numbers": [list(range(5))]}),
        pa.table({"text": pa.array(["x" * 1000] * 200).dictionary_encode()}),
        pa.table({"many": np.zeros(5000)}),
        pa.table({"fixed": pa.array([b"x" * 2000] * 40, pa.binary(2000))}),
        pa.table({"text": ["x" * 10**6]}),
    ],
    ids=["lists", "one text many times", "many values", "fixed length", "one long text"],
)
def test_a_small_parquet_file_that_stands_for_much_is_refused(tmp_path, monkeypatch, table):
    monkeypatch.setattr(opened, "MAX_BYTES", 10**5)
    monkeypatch.setattr(opened, "MAX_VALUES", 1000)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet"):
        check_parquet(tmp_path / "a.parquet")
    pd.DataFrame({"label": ["a", "b"], "value": [1.0, 2.0]}).to_parquet(tmp_path / "fine.parquet")
    check_parquet(tmp_path / "fine.parquet")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("markdown", "<!-- #| answer:" + " " * 100_000 + "x"),
        ("markdown", "<!-- #| answer: a -->\n" + "<!--" * 100_000),
        ("markdown", "<!-- #| answer: a -->\n" + "-" * 100_000 + "x"),
    ],
    ids=["blanks", "comments", "dashes"],
)
def test_long_answers_are_read_in_a_moment(kind, text):
    start = time.process_time()
    find_answers([("a.ipynb", [{"cell_type": kind, "source": text}])])
    assert time.process_time() - start < 5  # a pattern with backtracking takes hours


def test_a_table_of_many_columns_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "wide.csv").write_text("," * 20_000)
    with pytest.raises(ValueError, match=r"the first line of wide\.csv has more than 10,000 bytes"):
        Bundle(tmp_path).read_table("wide.csv")
