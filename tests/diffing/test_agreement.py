"""Agreement of ranking methods."""

import numpy as np
import pandas as pd
import pytest

from diffing.ranking.agreement import method_agreement

TABLE = pd.DataFrame(
    {
        "shift": [9.0, -8.0, 7.0, 1.0, 0.0, 0.5],
        "max_shift": [-9.0, 8.0, 7.0, 1.0, 0.0, 0.5],
        "frequency_shift": [0.0, 0.1, 0.2, 0.9, -1.0, 0.8],
        "stability": np.zeros(6),
    }
)


def test_agreement_is_of_absolute_values() -> None:
    """Breaks if signs count, columns that rank nothing are compared, or an overlap is of other places."""
    found = method_agreement(TABLE, "shift", tops=(2, 3, 10)).set_index("method")
    assert list(found.index) == ["max_shift", "frequency_shift"]
    assert list(found.columns) == ["spearman", "overlap_2", "overlap_3"]
    assert found.loc["max_shift"].tolist() == [1.0, 1.0, 1.0]
    ranks = TABLE.abs().rank()
    expected = np.corrcoef(ranks["shift"], ranks["frequency_shift"])[0, 1]
    assert found.loc["frequency_shift", "spearman"] == pytest.approx(expected)
    assert found.loc["frequency_shift", ["overlap_2", "overlap_3"]].tolist() == [0.0, 0.0]
