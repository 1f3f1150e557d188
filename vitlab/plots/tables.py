"""Tables as a reader wants them: plain words for headers, few digits, a value and its interval in one cell."""

from __future__ import annotations

import pandas as pd

from vitlab.plots.style import readable


def present(table: pd.DataFrame, digits: int = 3, columns: str | None = None) -> pd.DataFrame:
    """A copy for display: `value, low, high` become one column such as 0.912 [0.881, 0.940]; `mean, spread` become 0.912 ± 0.012.

    `difference` and `odds_ratio` take in low and high as well, and any column `x` takes in `x_low` and `x_high`; a p-value too
    small for the digits is "< 0.001".
    columns: the column whose values become the headers (`metric`, for one row a model or slice instead of one a number); what is
    not there is "-". Empty notes go; the first column becomes the row names unless it holds numbers.
    """
    shown = table.copy()
    for name in {"metric", "method"} & set(shown):
        shown[name] = shown[name].map(readable)
    for name in ("value", "difference", "odds_ratio"):
        if {name, "low", "high"} <= set(shown):
            shown[name] = [_interval(*row, digits) for row in shown[[name, "low", "high"]].to_numpy(float)]
            shown = shown.drop(columns=["low", "high"])
    for name in [name for name in shown.columns if {f"{name}_low", f"{name}_high"} <= set(shown)]:
        shown[name] = [_interval(*row, digits) for row in shown[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)]
        shown = shown.drop(columns=[f"{name}_low", f"{name}_high"])
    for name in {"p", "p_holm"} & set(shown):
        shown[name] = [_probability(p, digits) for p in shown[name]]
    if {"mean", "spread"} <= set(shown):
        shown["mean"] = [_spread(*row, digits) for row in shown[["mean", "spread"]].to_numpy(float)]
        shown = shown.drop(columns=["spread", "low", "high"], errors="ignore").rename(columns={"mean": "value"})
    if "note" in shown and (shown["note"] == "").all():
        shown = shown.drop(columns="note")
    if columns is not None:
        order = shown[columns].unique()
        rows = [name for name in shown.columns if name not in (columns, "value", "note")]
        shown = shown.pivot_table(index=rows, columns=columns, values="value", aggfunc="first", sort=False)[order].fillna("-")
        shown = shown.rename_axis(columns=None).reset_index()
    shown = shown.round(digits).rename(columns=readable)
    first = shown.columns[0]
    if pd.api.types.is_numeric_dtype(shown[first]):
        return shown
    return shown.set_index(first).rename_axis(index=None, columns=first)  # its name stands in the row of the headers


def _interval(value: float, low: float, high: float, digits: int) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.{digits}f}" + ("" if pd.isna(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _probability(p: float, digits: int) -> str:
    """A p-value, which is never 0."""
    if pd.isna(p):
        return "-"
    return f"{p:.{digits}f}" if p >= 0.5 * 10**-digits else f"< {10**-digits:.{digits}f}"


def _spread(mean: float, spread: float, digits: int) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if pd.isna(spread) else f" ± {spread:.{digits}f}")
