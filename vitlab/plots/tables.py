"""Tables as a reader wants them: plain words for headers, few digits, a value and its interval in
one cell.
"""

from __future__ import annotations

import pandas as pd

from vitlab.extremes import keep_extremes
from vitlab.plots.style import readable

GAP = "–"  # what is not there


def present(
    table: pd.DataFrame, digits: int = 3, columns: str | None = None, extremes: str | None = None
) -> pd.DataFrame:
    """A copy for display: `value, low, high` become one column such as 0.912 [0.881, 0.940]; `mean,
    spread` become 0.912 ± 0.012.

    `difference` takes in low and high as well, and any column `x` takes in `x_low`
    and `x_high`; a p-value too small for the digits is "< 0.001". columns: the column whose values
    become the headers (`metric`, for one row a model or slice instead of one a number); what is not
    there is "–". Empty notes go; whole numbers from 10,000 on get commas; the first column becomes
    the row names unless it holds numbers. extremes: a column with numbers; of more than a dozen
    rows, those with its lowest and its highest values are shown."""
    total, table = len(table), table if extremes is None else keep_extremes(table, extremes)
    shown = table.copy()
    for name in {"metric", "method", "measure", "importance"} & set(shown):
        if not pd.api.types.is_numeric_dtype(shown[name]):
            shown[name] = shown[name].map(readable)
    for name in ("value", "difference"):
        if {name, "low", "high"} <= set(shown):
            shown[name] = [
                _interval(*row, digits) for row in shown[[name, "low", "high"]].to_numpy(float)
            ]
            shown = shown.drop(columns=["low", "high"])
    for name in [name for name in shown.columns if {f"{name}_low", f"{name}_high"} <= set(shown)]:
        shown[name] = [
            _interval(*row, digits)
            for row in shown[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
        ]
        shown = shown.drop(columns=[f"{name}_low", f"{name}_high"])
    for name in {"p", "p_holm"} & set(shown):
        shown[name] = [_probability(p, digits) for p in shown[name]]
    if {"mean", "spread"} <= set(shown):
        shown["mean"] = [_spread(*row, digits) for row in shown[["mean", "spread"]].to_numpy(float)]
        shown = shown.drop(columns=["spread", "low", "high"], errors="ignore").rename(
            columns={"mean": "value"}
        )
    if "note" in shown and (shown["note"] == "").all():
        shown = shown.drop(columns="note")
    if columns is not None:
        order = shown[columns].unique()
        rows = [name for name in shown.columns if name not in (columns, "value", "note")]
        shown = shown.pivot_table(
            index=rows, columns=columns, values="value", aggfunc="first", sort=False
        )[order].fillna(GAP)
        shown = shown.rename_axis(columns=None).reset_index()
    shown = shown.apply(_write_numbers, digits=digits).rename(columns=readable)
    first = shown.columns[0]
    if len(table) < total:
        gap = pd.DataFrame(
            [[f"… {total - len(table):,} more", *["…"] * (shown.shape[1] - 1)]],
            columns=shown.columns,
        )
        half = len(table) - len(table) // 2
        return (
            pd.concat([shown.iloc[:half], gap, shown.iloc[half:]])
            .set_index(first)
            .rename_axis(index=None, columns=first)
        )
    if pd.api.types.is_numeric_dtype(table[table.columns[0]]):
        return shown.set_axis([""] * len(shown))
    # its name stands in the row of the headers
    return shown.set_index(first).rename_axis(index=None, columns=first)


def _write_numbers(column: pd.Series, digits: int) -> pd.Series:
    """Rounded, without a negative zero; as texts where there are gaps or thousands."""
    if pd.api.types.is_extension_array_dtype(column) and pd.api.types.is_numeric_dtype(column):
        column = column.astype("float64")  # its gaps are NaN then
    if pd.api.types.is_integer_dtype(column):
        return (
            column.map("{:,}".format)
            if column.max() >= 10_000 and column.name != "seed"
            else column
        )
    if not pd.api.types.is_float_dtype(column):
        return column
    # by the decimal digits, as texts are rounded
    rounded = column.map(lambda value: round(value, digits)) + 0.0
    if not rounded.isna().any():
        return rounded
    places = 0 if (rounded.dropna() % 1 == 0).all() else digits
    return rounded.map(lambda value: GAP if pd.isna(value) else f"{value:.{places}f}").astype(
        object
    )


def _interval(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return GAP
    return " ".join(
        [
            _fix(value, digits),
            *([] if pd.isna(low) else [f"[{_fix(low, digits)}, {_fix(high, digits)}]"]),
        ]
    )


def _fix(value: float, digits: int) -> str:
    return f"{round(float(value), digits) + 0.0:.{digits}f}"  # no negative zero


def _probability(p: float, digits: int) -> str:
    """A p-value, which is never 0."""
    if pd.isna(p):
        return GAP
    return f"{p:.{digits}f}" if p >= 0.5 * 10**-digits else f"< {10**-digits:.{digits}f}"


def _spread(mean: float, spread: float, digits: int) -> str:
    if pd.isna(mean):
        return GAP
    return _fix(mean, digits) + ("" if pd.isna(spread) else f" ± {_fix(spread, digits)}")
