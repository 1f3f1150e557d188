"""What each method has shown in all tests, in one table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from vitlab.explain.randomisation import CHANGES, SAME_CLASS, UNCHANGED

FOLLOWS = "follows the model"
UNTESTED = "better than the controls; that it changes with the model is not shown"


def summary_table(ranked: pd.DataFrame, sanity: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a method, as in `ranked`: method, mean_rank, better and worse ("3 of 7" metrics), a
    verdict a test, conclusion.

    ranked: of `rank_table`. sanity: name of a test -> table with columns method and verdict
    (`sanity_verdicts`, `class_verdicts`); a method that a test was not made of has an empty
    verdict. conclusion: the verdict of `ranked`, unless the map does not change with the model,
    which outweighs it; it follows the model only if it changes in a test. And whether the map is
    the same for every class."""
    verdicts = {name: table.set_index("method")["verdict"] for name, table in sanity.items()}
    rows = []
    for row in ranked.itertuples():
        said = {name: verdict.get(row.method, "") for name, verdict in verdicts.items()}
        conclusion = row.verdict.partition(":")[0]
        if UNCHANGED in said.values():
            conclusion = "shows the image, not the model"
        elif conclusion == FOLLOWS and CHANGES not in said.values():
            conclusion = UNTESTED
        conclusion += "; cannot tell classes apart" if SAME_CLASS in said.values() else ""
        counts = [f"{count} of {row.metrics}" for count in (row.better, row.worse)]
        rows.append((row.method, row.mean_rank, *counts, *said.values(), conclusion))
    return pd.DataFrame(
        rows, columns=["method", "mean_rank", "better", "worse", *verdicts, "conclusion"]
    )
