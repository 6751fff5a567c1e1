"""The page of `trajectory`: what it says, figures, which are saved beside it, and the table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.output import figures as paper
from experiments.trajectory import drawing
from experiments.trajectory.summary import cells, findings


def write_page(path: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: The file, replaced if it exists.
        table: What `trajectory_table` returns.
        summary: What `summarise` returns.
    """
    with paper.style():
        figures = [drawing.trajectory(table, summary["latent"]), drawing.masking(summary["masking"])]
    rows = [cells(row) for row in table.to_dict("records")]  # pyright: ignore[reportCallIssue]
    all_rows = ["<h2>All measurements</h2>", paper.table(pd.DataFrame(rows))]
    paper.write_page(path, "Corruption and re-alignment", [paper.sentences(findings(summary)), *figures, *all_rows])
