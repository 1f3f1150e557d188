"""The last table of notebook 05, from tables made by hand."""

import pandas as pd

from vitlab.explain import summary_table
from vitlab.explain.randomisation import CHANGES, SAME_CLASS, UNCHANGED
from vitlab.explain.summary import UNTESTED


def test_a_failed_sanity_check_outweighs_the_rank():
    ranked = pd.DataFrame(
        {
            "method": ["a", "b", "c", "d"],
            "mean_rank": [1.0, 2.0, 3.0, 4.0],
            "better": [4, 3, 0, 3],
            "worse": [0, 0, 1, 0],
            "metrics": [5, 5, 5, 5],
            "verdict": [
                "follows the model: better than all controls in 4 of 5",
                "follows the model: …",
                "worse in part: …",
                "follows the model",
            ],
        }
    )
    weights = pd.DataFrame(
        {"method": ["a", "b", "d"], "verdict": [UNCHANGED, CHANGES, "not shown"]}
    )
    classes = pd.DataFrame(
        {"method": ["a", "b", "c", "d"], "verdict": ["differs", SAME_CLASS, "differs", "differs"]}
    )
    found = summary_table(ranked, {"weights": weights, "other class": classes}).set_index("method")
    assert found["better"].tolist() == ["4 of 5", "3 of 5", "0 of 5", "3 of 5"]
    assert found["worse"].tolist() == ["0 of 5", "0 of 5", "1 of 5", "0 of 5"]
    assert found["weights"].tolist() == [UNCHANGED, CHANGES, "", "not shown"]
    assert found["conclusion"].tolist() == [
        "shows the image, not the model",
        "follows the model; cannot tell classes apart",
        "worse in part",
        UNTESTED,
    ]
