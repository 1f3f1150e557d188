"""Which variant of a model to take: chosen by the validation split alone, then reported once on the
test split.
"""

from __future__ import annotations

import pandas as pd

from vitlab.compress.benchmark import EVEN, LEVEL, MARGIN
from vitlab.compress.processor import read_instructions
from vitlab.errors import UserError
from vitlab.evaluation.inference import correct_holm


def choose_variant(validation: pd.DataFrame) -> str:
    """The name of the variant to take, from a `benchmark_table` of the validation split.

    It is the fastest, at the smallest batch size, of those that are faster than the first variant
    and for which a loss above the margin is ruled out; the first variant where there is none. The
    tests (`loss_p_value`) are corrected for the number of faster variants by Holm's method: where
    all lose just the margin, one passes in at most 5 % of draws, about. ValueError for a table of
    another split: a variant chosen by its test result would look better on the test split than it
    is."""
    splits = set(validation["split"])
    if splits != {"val"}:
        raise UserError(
            f"the table is of the split {', '.join(sorted(splits))}; choose by benchmark_table(...,"
            " split='val')"
        )
    rows = validation[validation["batch_size"] == validation["batch_size"].min()]
    faster = rows[rows["speed"] == "faster"]
    good = faster[correct_holm(faster["loss_p"].to_numpy()) <= LEVEL]
    return (
        str(good.loc[good["ratio"].idxmin(), "variant"])
        if len(good)
        else str(validation["variant"].iloc[0])
    )


def describe_compression(validation: pd.DataFrame, test: pd.DataFrame) -> str:
    """Markdown on two `benchmark_table`s: the processor, a list of the variants on the test split,
    and which variant to take.
    """
    lines = [f"- {line}" for line in describe_variants(test)]
    return "\n".join([describe_processor(), "", *lines, "", recommend(validation, test)])


def recommend(validation: pd.DataFrame, test: pd.DataFrame) -> str:
    """Which variant to take, in sentences: chosen by the `benchmark_table` of validation, reported
    by that of test.
    """
    chosen, first = choose_variant(validation), str(validation["variant"].iloc[0])
    smallest = validation["batch_size"].min()
    limit = f"{100 * MARGIN:.2g} points of {_readable(validation['metric'].iloc[0])}"
    if chosen == first:
        return (
            f"Take *{first}*: on the validation split no variant is both faster at batch {smallest}"
            f" and shown to lose at most {limit}."
        )
    before, after = (_find_row(table, chosen, smallest) for table in (validation, test))
    verdict = {
        "worse": f"It is worse there: keep *{first}* where quality counts more than time",
        "better": "It is better there",
        "as good": f"A loss above {limit} is ruled out there as well",
        "loss not ruled out": f"A loss above {limit} is not ruled out there",
    }[after["quality"]]
    return (
        f"Take *{chosen}*: on the validation split it is the fastest at batch {smallest}"
        f" ({before['ratio']:.2f} times the time) of those shown to lose at most {limit} (change"
        f" {_points(before)}). On the test split, which took no part in the choice, the change is"
        f" {_points(after)} points. {verdict}."
    )


def describe_variants(table: pd.DataFrame) -> list[str]:
    """A sentence on each variant of a `benchmark_table` but the first: where it is slower or worse
    comes first.
    """
    first = str(table["variant"].iloc[0])
    return [
        _describe(part, first)
        for name, part in table.groupby("variant", sort=False)
        if name != first
    ]


def describe_processor() -> str:
    """Whether this processor has instructions for 8-bit products, in one sentence."""
    found = read_instructions()
    if found is None:
        return "The instructions of this processor are unknown; the times were measured on it."
    if found:
        return f"This processor has instructions for 8-bit products ({', '.join(found)})."
    return (
        "This processor has no instructions for 8-bit products: int8 may be slower than float, and"
        " its weights have 7 bits."
    )


def _describe(part: pd.DataFrame, first: str) -> str:
    row = part.iloc[0]
    speeds = []
    for one in part.sort_values(
        "speed", key=lambda column: column != "slower", kind="stable"
    ).itertuples():
        factor = (
            f"{1 / one.ratio:.2f} times as fast"
            if one.speed == "faster"
            else f"{one.ratio:.2f} times the time"
        )
        word = {"slower": "SLOWER here", "faster": "faster", EVEN: "no difference in speed shown"}[
            one.speed
        ]
        speeds.append(
            f"{word} at batch {one.batch_size} ({factor}, ratio {one.ratio_low:.2f} to"
            f" {one.ratio_high:.2f})"
        )
    quality = {"worse": "WORSE"}.get(row["quality"], row["quality"].capitalize())
    calibration = {"worse": "Calibration WORSE", "better": "Calibration better"}.get(
        row["calibration"], "Calibration: " + EVEN
    )
    ece = (
        f"ECE {row['ece']:.3f}, {row['ece_change']:+.3f} [{row['ece_low']:+.3f},"
        f" {row['ece_high']:+.3f}]"
    )
    agreement = f"the same class as {first} on {row['agreement']:.1%} of the images"
    points = f"{_points(row)} points of {_readable(row['metric'])}"
    return (
        f"{row['variant']}: {'; '.join(speeds)}. {quality}: {points}; {agreement}. {calibration}"
        f" ({ece})."
    )


def _points(row: pd.Series) -> str:
    return (
        f"{100 * row['change']:+.2f} [{100 * row['change_low']:+.2f},"
        f" {100 * row['change_high']:+.2f}]"
    )


def _find_row(table: pd.DataFrame, name: str, batch_size: int) -> pd.Series:
    return table[(table["variant"] == name) & (table["batch_size"] == batch_size)].iloc[0]


def _readable(metric: str) -> str:
    return metric.replace("_", " ")
