"""Figures for a paper: drawn once with matplotlib, saved as SVG, PDF and PNG, and shown on a page without a network.

A module draws with `canvas` inside `style()`, names what it drew (`PaperFigure`) and hands it to a `Page`. There is no
pyplot and no state outside the figures, and the same tables give the same bytes. Names from the data need no
escaping in a figure, as `$` starts no formula; in HTML they do.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from experiments.output.colours import BAND, GRID, INK, PALETTE

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.9  # inches: one column of a paper, and its whole page
ROW = 0.165  # inches that a line of labels takes
FOLDER, FORMATS = "figures", ("svg", "pdf", "png")
_WEAK = "#6e6e6e"  # numbers on it
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.prop_cycle": cycler(color=PALETTE),
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "legend.title_fontsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"xtick.major.size": 2.5, "ytick.major.size": 2.5, "lines.linewidth": 1.2, "lines.markersize": 3.5},
    **{"grid.color": GRID, "grid.linewidth": 0.5, "axes.axisbelow": True, "text.parse_math": False},
    **{"svg.fonttype": "path", "svg.hashsalt": "figure", "pdf.fonttype": 42, "savefig.dpi": 300},
}
_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


@dataclass(frozen=True)
class PaperFigure:
    """A drawn figure.

    Attributes:
        name: Of its files, without ending.
        figure: What was drawn.
        caption: Plain text; stands below the figure on the page, not in it.
    """

    name: str
    figure: Figure
    caption: str

    def save(self, folder: Path) -> None:
        """Writes `<name>.svg`, `.pdf` and `.png` (300 dots an inch); replaces what is there."""
        folder.mkdir(parents=True, exist_ok=True)
        with style():
            self.figure.draw_without_rendering()  # laid out once, so that all formats are alike
            self.figure.set_layout_engine("none")
            for form in FORMATS:
                self.figure.savefig(folder / f"{self.name}.{form}", metadata=_UNDATED[form])


def style() -> AbstractContextManager[None]:
    """The look of all figures, whatever the user's own settings are; everything is drawn inside it."""
    return matplotlib.style.context(["default", _STYLE])


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """An empty figure whose parts are laid out so that no label is cut off.

    Args:
        width, height: Inches.
        rows, columns: Panels.
        options: Of `Figure.subplots`.

    Returns:
        The figure, and its axes as an array [rows columns].
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def intervals(
    axes: Axes, x: Any, y: Any, ends: tuple[Any, Any], colour: str, along: Literal["x", "y"] = "x", **options: Any
) -> None:
    """Points with the intervals that they have; an end that is NaN draws none.

    Args:
        axes: Where to draw.
        x, y: Places of the points.
        ends: Low and high ends of the intervals.
        colour: Of both.
        along: The axis that the intervals are on.
        options: Of the points (`Axes.plot`), such as `label` and `marker`.
    """
    across, lines = (y, axes.hlines) if along == "x" else (x, axes.vlines)
    low, high = (np.asarray(end, float) for end in ends)
    lines(across, low, high, color=colour, linewidth=0.9, zorder=2)
    axes.plot(x, y, **{"marker": "o", "linestyle": "", "color": colour, "zorder": 3, **options})


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names along the vertical axis, the first on top, row i at height i."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def block_of(hook: str) -> int:
    """Number of the block of a hook, as 3 of "blocks.3.hook_resid_post"."""
    return int(hook.split(".")[1])


def mark(colour: str, marker: str, label: str, **options: Any) -> Line2D:
    """An entry of a legend: a point; `options` of `Line2D`."""
    return Line2D([], [], **{"color": colour, "marker": marker, "linestyle": "", "label": label, **options})


def legend(figure: Figure, handles: Sequence[Any], columns: int = 6) -> None:
    """A legend above all panels, in at most so many columns."""
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)))


def colour_cells(
    axes: Axes, cells: pd.DataFrame, beyond: pd.DataFrame | None = None, number: str = "{:.2f}"
) -> AxesImage:
    """A matrix of values from -1 (blue) to 1 (red) with their numbers; cells that are not `beyond` chance are grey."""
    axes.set_facecolor(BAND)
    shown = cells if beyond is None else cells.where(beyond)
    image = axes.imshow(shown.to_numpy(float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for row, column in product(range(cells.shape[0]), range(cells.shape[1])):
        value = float(cells.iat[row, column])
        if np.isfinite(value):
            weak = beyond is not None and not beyond.iat[row, column]
            colour = _WEAK if weak else "white" if abs(value) > 0.72 else INK
            axes.text(column, row, number.format(value), ha="center", va="center", fontsize=5.5, color=colour)
    across, down = (list(map(str, names)) for names in (cells.columns, cells.index))
    axes.set_xticks(range(len(across)), across, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(down)), down)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
