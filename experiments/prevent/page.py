"""The page of `prevent`: verdicts, figures, which are saved beside it, and the table."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.output import figures as paper
from experiments.prevent import drawing
from experiments.prevent.summary import LEGEND, cells, findings


def write_page(path: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs nothing else, and its figures into the folder `figures` beside it.

    Args:
        path: The file, replaced if it exists.
        table: What `prevent` returns.
        summary: What `summarise` returns.
    """
    with paper.style():
        figures = [drawing.loss_and_harm(table, summary["stop_loss"]), drawing.chosen_doses(table)]
    rows = [cells(row) for row in table.to_dict("records")]  # pyright: ignore[reportCallIssue]
    all_rows = ["<h2>All fine-tunes</h2>", f"<p>{escape(LEGEND)}.</p>", paper.table(pd.DataFrame(rows))]
    parts = [paper.sentences(findings(summary)), *figures, *all_rows]
    paper.write_page(path, "Emergent misalignment, prevented while training", parts)
