"""Rows of tables."""

from typing import Any, cast

import numpy as np
import pandas as pd


def where(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    """Rows for which the boolean column `keep` holds (pandas annotates masks and indexing with broad unions)."""
    return cast(pd.DataFrame, table[keep])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries by column (pandas annotates the keys as hashable)."""
    return cast(list[dict[str, Any]], table.to_dict("records"))


def where_equal(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Rows with these values in these columns."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in values.items():
        chosen &= (table[column] == value).to_numpy()
    return table.loc[chosen]


def json_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: no value (None) instead of NaN."""
    return records(table.astype(object).where(table.notna(), None))
