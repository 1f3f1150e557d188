"""The data card: where the images come from, how they were split, and what limits a result on
them. And the sentences of notebook 01 that depend on the data: tables in, Markdown out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pandas as pd

from vitlab.data.balance import drop_synthetic
from vitlab.markup import code, escape, list_some, pipe_table
from vitlab.schema import SPLITS, DataBundle

# images of a class in a split, below which one image changes its recall by more than 10 %
RARE = 10
IMBALANCED = 3  # times as many images in the largest class as in the smallest
MAX_LISTED = 20  # classes, groups and excluded images that are named; more are counted


def data_card(data: DataBundle, pairs: pd.DataFrame | None = None) -> str:
    """A data set as Markdown: source, licence, version, counts, hash of the splits, groups,
    excluded images and known limits.

    pairs: near-duplicates, of `near_duplicate_table`; without them the card states that they
    were not searched for."""
    samples = drop_synthetic(data.samples)
    synthetic = len(data.samples) - len(samples)
    counts = _count(samples, "label", data.classes)
    groups = _count(samples, "group", sorted(samples["group"].astype(str).unique()))
    lines = [
        f"# Data card: {escape(data.name)}",
        "",
        f"- Images: {len(samples):,} in {len(data.classes)} classes; {len(data.excluded):,}"
        " excluded",
    ]
    if synthetic:
        lines.append(f"- Synthetic images, for training only and not counted below: {synthetic:,}")
    lines += [
        f"- Version: {escape(data.version or 'not stated')}",
        f"- Licence: {escape(data.licence or 'not stated')}",
        f"- Hash of the splits: `{hash_splits(samples)}` (SHA-256 of the sorted lines `sample_id"
        " split`)",
        "",
        "## Source",
        "",
        *(f"- {escape(line)}" for line in (data.citation or "not stated").splitlines()),
        "",
        "## Images of each class and split",
        "",
        *_write_table(counts, "class"),
        "",
        "## Groups",
        "",
        *(_write_table(groups, "group") if len(groups) > 1 else ["The images have no groups."]),
        "",
        "## Excluded images",
        "",
        *_describe_excluded(data.excluded),
        "",
        "## Known limits",
        "",
    ]
    limits = _find_limits(counts, groups)
    if counts.sum(axis=1).max() >= IMBALANCED * counts.sum(axis=1).min():
        limits.insert(0, describe_balance(samples))
    if pairs is None:
        limits.append("Near-duplicates between the splits were not searched for; notebook 01 does.")
    else:
        limits.append(describe_duplicates(pairs, samples))
    if data.value_range:
        low, high = data.value_range
        limits.append(
            f"Images of more than 8 bits a pixel are scaled to 8, in all splits: {low:,.6g} is"
            f" black and {high:,.6g} white. This range was estimated over all images, without"
            " their labels; values outside it are clipped."
        )
    return "\n".join([*lines, *(f"- {limit}" for limit in limits)]) + "\n"


def hash_splits(samples: pd.DataFrame) -> str:
    """SHA-256 of the sorted lines `sample_id split`: equal where the same images are in the same
    splits, in whatever order.
    """
    lines = sorted(
        f"{sample_id} {split}\n"
        for sample_id, split in zip(samples["sample_id"], samples["split"], strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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


def describe_duplicates(pairs: pd.DataFrame, samples: pd.DataFrame) -> str:
    """How many near-duplicate pairs cross a split of these samples, how many test images they
    touch, and in how many the labels differ. Pairs with other images are not counted as crossing.
    """
    split = samples.set_index("sample_id")["split"]
    one, other = pairs["sample_id_a"].map(split), pairs["sample_id_b"].map(split)
    crossing = pairs[(one != other) & one.notna() & other.notna()]
    ends = set(crossing["sample_id_a"]) | set(crossing["sample_id_b"])
    touched = sum(split[sample_id] == "test" for sample_id in ends)
    tested = (split == "test").sum()
    return (
        f"Of {len(pairs):,} pairs of near-duplicates, {len(crossing):,} lie in different splits;"
        f" {touched:,} of {tested:,} test images ({touched / max(tested, 1):.1%}) have a"
        f" near-duplicate in training or validation. In {(~pairs['same_label']).sum():,} pairs the"
        " labels differ, which shows how reliable the labels are."
    )


def describe_doubts(quality: pd.DataFrame) -> str:
    """How many labels are probably wrong, and the most frequent confusion; quality: of
    `quality_table`.
    """
    scored = quality[quality["issue"] == "wrong_label"]
    wrong = scored[scored["flagged"]]
    if not len(scored):
        return "The labels were not scored: no two classes have enough images."
    detail = ""
    if len(wrong):
        common = wrong.value_counts(["label", "suggested"])
        label, suggested = common.index[0]
        detail = (
            f", most often *{escape(label)}* instead of *{escape(suggested)}* ({common.iloc[0]})"
        )
    return (
        f"{len(wrong)} labels ({len(wrong) / len(scored):.1%}) are probably wrong{detail}. If the"
        " classes are grades of one property, many of these are borderline cases, not mistakes."
    )


def _count(samples: pd.DataFrame, column: str, values: Sequence[str]) -> pd.DataFrame:
    """Images by value of the column (rows) and by split."""
    table = pd.crosstab(samples[column].astype(str), samples["split"])
    return table.reindex(index=list(values), columns=list(SPLITS), fill_value=0)


def _write_table(counts: pd.DataFrame, title: str) -> list[str]:
    rows = [(escape(name), row) for name, *row in counts.head(MAX_LISTED).itertuples()]
    if len(counts) > MAX_LISTED:
        rows.append((f"{len(counts) - MAX_LISTED} more", counts.iloc[MAX_LISTED:].sum().tolist()))
    rows.append(("**all**", counts.sum().tolist()))
    cells = [[name, *(f"{n:,}" for n in [*row, sum(row)])] for name, row in rows]
    return pipe_table([title, *counts.columns, "all"], cells)


def _describe_excluded(excluded: pd.DataFrame) -> list[str]:
    if not len(excluded):
        return ["None."]
    lines = [
        f"- {count:,} because: {escape(reason)}"
        for reason, count in excluded["reason"].value_counts().items()
    ]
    if len(excluded) <= MAX_LISTED:
        lines += ["", "They are " + ", ".join(map(code, excluded["sample_id"])) + "."]
    return lines


def _find_limits(counts: pd.DataFrame, groups: pd.DataFrame) -> list[str]:
    """What each split lacks."""
    limits = []
    for split in SPLITS:
        part = counts[split]
        if not part.sum():
            limits.append(f"The split {split} is empty.")
            continue
        missing, rare = list(part.index[part == 0]), part[(part > 0) & (part < RARE)]
        absent = list(groups.index[groups[split] == 0])
        if missing:
            limits.append(
                f"No image in {split} of the class {list_some(missing, MAX_LISTED)}: it cannot be"
                " evaluated there."
            )
        if len(rare):
            named = list_some([f"{name} ({count})" for name, count in rare.items()], MAX_LISTED)
            limits.append(
                f"Fewer than {RARE} images in {split} of the class {named}: its numbers there are"
                " rough."
            )
        if absent:
            limits.append(f"No image in {split} of the group {list_some(absent, MAX_LISTED)}.")
    return limits
