"""What a figure needs of its table, asked before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from vitlab.errors import UserError


def check_table(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raise ValueError for a table without these columns or without a row. what: the table's name, for the message."""
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(
            f"{what}: columns missing: {', '.join(missing)}; the table has {', '.join(map(str, table.columns)) or 'no columns'}"
        )
    if table.empty:
        raise UserError(f"{what} has no rows, so there is nothing to draw")
