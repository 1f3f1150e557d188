"""Labels that say nothing of the images: what a model learns of them is not true, and neither is
what an explanation shows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitlab.data.depth import find_base
from vitlab.data.sources import DATASETS, DERIVED, Source
from vitlab.data.splits import complete_splits, draw_subset, order_by_hash

NOTE = (
    "Labels of training and validation were shuffled by vitlab and say nothing of the images. "
    "To test explanations, and for nothing else."
)


@DATASETS.register(name="shuffled:")
def shuffled(name: str = "") -> Source:
    """Another data set, NAME in shuffled:NAME, with the labels of its training and validation
    images exchanged among them.

    This is the label randomisation of Adebayo et al. 2018 (arXiv 1810.03292). Within a split each
    class keeps its size, and each own label's images get all labels in the same proportions, so
    that nothing true is left to learn, not by chance either. Validation labels are exchanged as
    well, so that early stopping does not let the truth in by the back door: its scores stay near
    chance, and the training should be judged by its own loss (monitor="train_loss"). Test labels
    are the true ones: the test score shows that nothing was learnt.

    The splits are those of NAME at seed 0, whatever seed is asked for, since the labels depend on
    them; at most 1,000 images, in proportion to split, label and group. A further column:
    own_label. sample_ids are those of NAME."""
    base = find_base("shuffled:", name)
    samples = base.samples.assign(split=complete_splits(base.samples, seed=0, strata=base.strata))
    samples = draw_subset(samples, strata=["split", "label"])[
        ["sample_id", "label", "group", "source", "split"]
    ]
    samples["own_label"] = samples["label"]
    for split in ("train", "val"):
        part = samples[samples["split"] == split]
        mixed = part.iloc[order_by_hash(part, "shuffled", ["own_label", "group"])]
        samples.loc[mixed.index, "label"] = interleave(mixed["label"])
    return Source(
        location=f"shuffled:{base.location}",
        version=f"{base.version}, {DERIVED['shuffled:']}",
        classes=base.classes,
        samples=samples,
        read=base.read,
        excluded=base.excluded,
        licence=base.licence,
        citation=f"{base.citation}\n{NOTE}".lstrip(),
        flip=base.flip,
    )


def interleave(labels: pd.Series) -> np.ndarray:
    """The same labels in an order in which each stretch holds all of them in proportion: a a a a b
    b -> a b a a b a.
    """
    count = labels.groupby(labels).transform("size")
    place = (labels.groupby(labels).cumcount() + 0.5) / count  # of each among its like, as a share
    return labels.to_numpy()[np.lexsort((labels, place))]
