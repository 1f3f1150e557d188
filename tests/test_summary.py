"""The last table of notebook 05, from tables made by hand."""

import pandas as pd

from vitlab.explain import summary_table
from vitlab.explain.randomisation import SAME_CLASS, UNCHANGED


def test_a_failed_sanity_check_outweighs_the_rank():
    ranked = pd.DataFrame(
        {
            "method": ["a", "b", "c"],
            "mean_rank": [1.0, 2.0, 3.0],
            "better": [4, 3, 0],
            "metrics": [5, 5, 5],
            "verdict": ["follows the model: better than all controls in 4 of 5", "follows the model: …", "not shown in any"],
        }
    )
    weights = pd.DataFrame({"method": ["a", "b"], "verdict": [UNCHANGED, "changes with the model"]})
    classes = pd.DataFrame({"method": ["a", "b", "c"], "verdict": ["differs", SAME_CLASS, "differs"]})
    found = summary_table(ranked, {"weights": weights, "other class": classes}).set_index("method")
    assert found["better"].tolist() == ["4 of 5", "3 of 5", "0 of 5"]
    assert found["weights"].tolist() == [UNCHANGED, "changes with the model", ""]
    assert found["conclusion"].tolist() == [
        "shows the image, not the model",
        "follows the model; cannot tell classes apart",
        "not shown in any",
    ]
