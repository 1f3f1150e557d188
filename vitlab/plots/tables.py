"""Tables for readers: plain words for headers, few digits, a value and its interval in one cell."""

from __future__ import annotations

import pandas as pd

from vitlab.extremes import keep_extremes
from vitlab.plots.style import readable

GAP = "–"  # what is not there


def present(
    table: pd.DataFrame, digits: int = 3, columns: str | None = None, extremes: str | None = None
) -> pd.DataFrame:
    """A copy for display: readable headers, rounded numbers, a value and its interval in one cell.

    value, low, high (or difference, low, high; or x, x_low, x_high) become 0.912 [0.881, 0.940];
    mean, spread become 0.912 ± 0.012; a p-value too small for the digits is "< 0.001"; what is not
    there is "–". An empty column of notes goes. The first column becomes the row names unless it
    holds numbers. columns: the column whose values become the headers, such as `metric` for one row
    a model instead of one a number. extremes: a column with numbers; of more than a dozen rows,
    those with its lowest and its highest values are shown.

    >>> scores = pd.DataFrame({"metric": ["f1"], "value": [0.912], "low": [0.881], "high": [0.94]})
    >>> present(scores).loc["F1", "value"]
    '0.912 [0.881, 0.940]'
    """
    total, table = len(table), table if extremes is None else keep_extremes(table, extremes)
    shown = table.copy()
    for name in {"metric", "method", "measure", "importance"} & set(shown):
        if not pd.api.types.is_numeric_dtype(shown[name]):
            shown[name] = shown[name].map(readable)
    for name in list(shown):
        ends = [f"{name}_low", f"{name}_high"]
        if name in ("value", "difference") and {"low", "high"} <= set(shown):
            ends = ["low", "high"]
        if set(ends) <= set(shown):
            rows = shown[[name, *ends]].to_numpy(float)
            shown[name] = [_interval(*row, digits) for row in rows]
            shown = shown.drop(columns=ends)
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
    if len(table) < total:
        words = [f"… {total - len(table):,} more", *["…"] * (shown.shape[1] - 1)]
        gap = pd.DataFrame([words], columns=shown.columns)
        half = len(table) - len(table) // 2
        shown = pd.concat([shown.iloc[:half], gap, shown.iloc[half:]])
    elif pd.api.types.is_numeric_dtype(table[table.columns[0]]):
        return shown.set_axis([""] * len(shown))
    # the name of the first column stands in the row of the headers
    first = shown.columns[0]
    return shown.set_index(first).rename_axis(index=None, columns=first)


def _write_numbers(column: pd.Series, digits: int) -> pd.Series:
    """Rounded, without a negative zero; as texts where there are gaps or thousands."""
    if pd.api.types.is_extension_array_dtype(column) and pd.api.types.is_numeric_dtype(column):
        column = column.astype("float64")  # its gaps are NaN then
    if pd.api.types.is_integer_dtype(column):
        large = column.max() >= 10_000 and column.name != "seed"
        return column.map("{:,}".format) if large else column
    if not pd.api.types.is_float_dtype(column):
        return column
    # by the decimal digits, as texts are rounded
    rounded = column.map(lambda value: round(value, digits)) + 0.0
    if not rounded.isna().any():
        return rounded
    places = 0 if (rounded.dropna() % 1 == 0).all() else digits
    return rounded.map(lambda value: _fix(value, places)).astype(object)


def _fix(value: float, digits: int) -> str:
    """With so many digits, without a negative zero; a dash for NaN."""
    return GAP if pd.isna(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"


def _interval(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value) or pd.isna(low):
        return _fix(value, digits)
    return f"{_fix(value, digits)} [{_fix(low, digits)}, {_fix(high, digits)}]"


def _spread(mean: float, spread: float, digits: int) -> str:
    if pd.isna(mean) or pd.isna(spread):
        return _fix(mean, digits)
    return f"{_fix(mean, digits)} ± {_fix(spread, digits)}"


def _probability(p: float, digits: int) -> str:
    """A p-value, which is never 0."""
    return f"< {10**-digits:.{digits}f}" if p < 0.5 * 10**-digits else _fix(p, digits)
