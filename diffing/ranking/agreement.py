"""Do ranking methods agree? Rank correlation and overlap of the first places."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from diffing.ranking.rank import METHODS

OVERLAPS = (10, 100, 1000)


def method_agreement(
    table: pd.DataFrame, methods: Sequence[str] | None = None, tops: Sequence[int] = OVERLAPS
) -> pd.DataFrame:
    """Agreement of every pair of ranking methods.

    Args:
        table: A ranking's table.
        methods: Columns that rank by their absolute value; None: all that the table has.
        tops: Numbers of first places that are compared (those with fewer latents than that are left out).

    Returns:
        One row for each pair: `first`, `second`, `spearman` (rank correlation of the absolute values over all
        latents), `overlap_<n>` (share of the first n latents of one that are among those of the other).
    """
    named = [name for name in (methods or METHODS) if name in table]
    sizes = {name: table[name].abs().to_numpy() for name in named}
    first = {name: np.argsort(-size, kind="stable") for name, size in sizes.items()}
    rows = []
    for one, other in combinations(named, 2):
        overlap = {
            f"overlap_{n}": len(np.intersect1d(first[one][:n], first[other][:n])) / n for n in tops if n <= len(table)
        }
        correlation = float(np.asarray(spearmanr(sizes[one], sizes[other]))[0])
        rows.append({"first": one, "second": other, "spearman": correlation, **overlap})
    return pd.DataFrame(rows)
