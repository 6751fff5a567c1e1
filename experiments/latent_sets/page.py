"""The page of `latent-sets`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.latent_sets.drawing import dose_response
from experiments.latent_sets.summary import COLUMNS, best_rows
from experiments.output import figures as paper


def write_page(path: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """The figure, which is saved beside the page, and the best dose of every arm."""
    with paper.style():
        figure = dose_response(table)
    rows = [dict(zip(COLUMNS, cells, strict=True)) for cells in best_rows(summary)]
    paper.write_page(path, "Sets of latents: dose and response", [figure, paper.table(pd.DataFrame(rows))])
