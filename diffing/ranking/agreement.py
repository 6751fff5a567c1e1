"""Do ranking methods agree? Rank correlation and overlap of the first places."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from diffing.ranking.methods import METHODS
from diffing.statistics.correlation import spearman

OVERLAPS = (10, 100, 1000)


def method_agreement(table: pd.DataFrame, method: str, tops: Sequence[int] = OVERLAPS) -> pd.DataFrame:
    """Agreement of one ranking method with every other that the table has.

    Args:
        table: A ranking's table.
        method: Column that ranks by its absolute value.
        tops: Numbers of first places that are compared (those that exceed the latents are left out).

    Returns:
        One row for each other method, the closest first: `method`, `spearman` (rank correlation of the absolute values
        over all latents), `overlap_<n>` (share of the first n latents of one that are among those of the other).
    """
    sizes = {name: table[name].abs().to_numpy() for name in (method, *METHODS) if name in table}
    first = {name: np.argsort(-size, kind="stable") for name, size in sizes.items()}
    rows = []
    for other in sizes.keys() - {method}:
        overlap = {
            f"overlap_{n}": len(np.intersect1d(first[method][:n], first[other][:n])) / n
            for n in tops
            if n <= len(table)
        }
        rows.append({"method": other, "spearman": spearman(sizes[method], sizes[other]), **overlap})
    return pd.DataFrame(rows).sort_values(["spearman", "method"], ascending=[False, True], ignore_index=True)
