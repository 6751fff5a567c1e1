"""Rows of tables."""

from typing import Any, cast

import pandas as pd


def where(table: pd.DataFrame, keep: Any) -> pd.DataFrame:
    """Rows for which the boolean column `keep` holds (pandas annotates masks and indexing with broad unions)."""
    return cast(pd.DataFrame, table[keep])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries by column (pandas annotates the keys as hashable)."""
    return cast(list[dict[str, Any]], table.to_dict("records"))
