"""Tables for people: one list of rows, printed in the terminal and shown on the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """A titled table.

    Attributes:
        title: Plain text.
        rows: Cells by column; what a row lacks stays empty.
        note: A sentence on how to read the table.
        printed: Whether the terminal shows it, too; long tables are for the page alone.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    printed: bool = True

    @property
    def columns(self) -> list[str]:
        """Every column of any row, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def cells(self) -> list[list[str]]:
        """Cells by row, in the order of `columns`."""
        return [[row.get(name, "") for name in self.columns] for row in self.rows]

    def print(self, console: "Console") -> None:
        """Shows the table in the terminal."""
        from rich.table import Table
        from rich.text import Text

        # As text, since square brackets would be read as markup.
        table = Table(title=Text(self.title), title_justify="left")
        for name in self.columns:
            table.add_column(Text(name))
        for row in self.cells:
            table.add_row(*map(Text, row))
        console.print(table)
        if self.note:
            console.print(self.note, soft_wrap=True, markup=False)


def percent(value: float) -> str:
    """A rate, as 12.3%."""
    return f"{value:.1%}"


def percent_interval(row: Mapping[str, float], prefix: str = "") -> str:
    """Both ends of a rate's interval, as 9.1% - 15.2%."""
    return f"{row[f'{prefix}low']:.1%} - {row[f'{prefix}high']:.1%}"
