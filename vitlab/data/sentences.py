"""Sentences for notebook 01 that depend on the data: tables in, Markdown out."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from vitlab.markup import escape, list_some
from vitlab.schema import DataBundle


def describe_source(data: DataBundle) -> str:
    """Number of images and classes, licence and source."""
    sources = [f"\n- {escape(line)}" for line in (data.citation or "not stated").splitlines()]
    return (
        f"**{escape(data.name)}** contains {len(data.samples):,} images in {len(data.classes)}"
        f" classes: {list_some(data.classes)}. Licence: {escape(data.licence or 'not stated')}."
        f" Source:\n{''.join(sources)}"
    )


def describe_balance(samples: pd.DataFrame) -> str:
    """The accuracy, and the balanced accuracy, of always predicting the largest class."""
    share = samples["label"].value_counts(normalize=True)
    return (
        f"The largest class, *{escape(share.index[0])}*, has {share.iloc[0]:.1%} of the images: a"
        " model that always predicts this class has this accuracy. Its balanced accuracy, the mean"
        f" recall of the classes, would be {1 / len(share):.1%}."
    )


def describe_brightness(images: pd.DataFrame) -> str:
    """How far the classes differ in brightness within a group; images: columns group, label, mean
    (of `image_table`).
    """
    by_class = images.groupby(["group", "label"])["mean"]
    means = by_class.mean().groupby("group")
    spread = (images["mean"] - by_class.transform("mean")).groupby(images["group"]).std()
    steps = (means.max() - means.min()) / spread
    where = f" in the group *{escape(steps.idxmax())}*" if len(steps) > 1 else ""
    return (
        "The darkest and the brightest class differ in mean brightness by up to"
        f" {steps.max():.1f} standard deviations of their images{where}. As a rule of thumb, 0.2 is"
        " a small difference and 0.8 a large one; the larger it is, the more a model can learn from"
        " the exposure alone."
    )


def describe_duplicates(
    pairs: pd.DataFrame, test_ids: Collection[str], clean_ids: Collection[str]
) -> str:
    """How many near-duplicate pairs cross a split, and how many test images they touch.

    pairs: of `near_duplicate_table`; clean_ids: of `clean_test_ids`."""
    touched = len(test_ids) - len(clean_ids)
    return (
        f"{len(pairs)} pairs are near-duplicates, {pairs['crosses_split'].sum()} of them are in"
        f" different splits, and {touched} of {len(test_ids)} test images"
        f" ({touched / len(test_ids):.1%}) have a near-duplicate in training or validation. In"
        f" {(~pairs['same_label']).sum()} pairs the labels differ, which shows how reliable the"
        " labels are."
    )


def describe_doubts(quality: pd.DataFrame) -> str:
    """How many labels are probably wrong, and the most frequent confusion; quality: of
    `quality_table`.
    """
    wrong = quality[quality["is_wrong_label"]]
    detail = ""
    if len(wrong):
        common = wrong.value_counts(["label", "suggested"])
        label, suggested = common.index[0]
        detail = (
            f", most often *{escape(label)}* instead of *{escape(suggested)}* ({common.iloc[0]})"
        )
    return (
        f"{len(wrong)} labels ({len(wrong) / len(quality):.1%}) are probably wrong{detail}. If the"
        " classes are grades of one property, many of these are borderline cases, not mistakes."
    )
