"""The page of the monitor: its figures, which are saved beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.monitor import drawing
from experiments.monitor.summary import SCREENINGS
from experiments.output import figures as paper


def write_page(path: Path, tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any]) -> None:
    """Writes the page, and its figures into the folder `figures` beside it.

    Args:
        path: HTML file, replaced if it exists.
        tables: Those of `monitor`: "prompts" and "before", and what else there is.
        summary: That of `monitor`.
    """
    with paper.style():
        figures = [
            drawing.correlations_before(tables["before"]),
            *drawing.before_points(tables["prompts"], tables["before"]),
        ]
        if "shifts" in tables:
            figures.append(drawing.correlations_of_shifts(tables["shifts"], summary["fine_tunes"]))
            figures += drawing.shift_points(tables["members"], tables["shifts"])
        if screenings := [tables[name] for name in SCREENINGS if name in tables]:
            figures += [drawing.screening_aucs(screenings), drawing.screening_recall(screenings[0])]
    paper.write_page(path, "Trait directions as monitors", ["<p>Intervals are 95%.</p>", *figures])
