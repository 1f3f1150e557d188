"""What near-duplicates of training images did for the score: the same test once naively, once
without them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from vitlab.errors import UserError
from vitlab.evaluation.scores import select_split
from vitlab.evaluation.slices import slice_table

NAIVE, CLEAN, TOUCHED = "all", "without near-duplicates", "near-duplicates only"


def leakage_table(
    predictions: pd.DataFrame,
    clean_ids: Collection[str],
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "roc_auc"),
    positive: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The test metrics of all test images (the naive score), of those in `clean_ids`, and of the
    others.

    Columns: images ("all", "without near-duplicates", "near-duplicates only"), n, metric, value,
    low, high, note. clean_ids: the test images without a near-duplicate in training, of
    `vitlab.data.clean_test_ids`. Where they are all or none of the test images, there is only the
    row "all". The near-duplicates may be easier or harder than the rest for other reasons than
    having been seen; a higher score on them is a warning, not a proof."""
    test = select_split(predictions, "test")
    strange = sorted(set(clean_ids) - set(test["sample_id"]))
    if strange:
        raise UserError(
            f"{len(strange)} clean_ids are no test images of these predictions, the first is"
            f" {strange[0]!r}"
        )
    part = test.assign(images=test["sample_id"].isin(clean_ids).map({True: CLEAN, False: TOUCHED}))
    table = slice_table(
        part,
        by="images",
        metrics=metrics,
        positive=positive,
        replicates=replicates,
        seed=seed,
        confidence=confidence,
    )
    order = {name: place for place, name in enumerate((NAIVE, CLEAN, TOUCHED))}
    return table.sort_values(
        "images", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )
