"""What results are shown with: figures and their files, the page, and tables for terminal and page."""

import io
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
from figure_files import SVG, require_figures
from matplotlib.collections import LineCollection
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from rich.console import Console

from experiments.output.colours import BLUE
from experiments.output.figures import FORMATS, PaperFigure, canvas, intervals, legend, mark, style
from experiments.output.page import Page, fragment
from experiments.output.tables import Section, percent, percent_interval

# A formula in matplotlib, an element in HTML, markup in the terminal.
HOSTILE = "$x_1$ <b>& [bold]"
ESCAPED = "$x_1$ &lt;b&gt;&amp; [bold]"


def plain_figure(name: str = "plain", label: str = HOSTILE) -> PaperFigure:
    with style():
        figure, ((axes,),) = canvas(3.3, 2.0)
        intervals(axes, [0.2, 0.4], [0, 1], ([0.1, np.nan], [0.3, np.nan]), BLUE)
        axes.set_title(label)
        return PaperFigure(name, figure, f"Caption of {label}")


def printed(section: Section) -> str:
    console = Console(file=io.StringIO(), width=120)
    section.print(console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


class TestFigures:
    def test_three_forms_of_every_figure(self, tmp_path: Path) -> None:
        """Breaks if a form is missing, cannot be opened, or has another size or resolution."""
        Page("Title", figures=[plain_figure("one"), plain_figure("two")]).write(tmp_path / "page.html")
        require_figures(tmp_path / "figures", {"one", "two"})

    def test_a_dollar_is_a_dollar(self, tmp_path: Path) -> None:
        """Breaks if "$x_1$" is set as a formula, which has no "$", or XML is not escaped."""
        plain_figure().save(tmp_path)
        glyphs = {element.get("id") for element in ElementTree.parse(tmp_path / "plain.svg").iter(f"{SVG}path")}
        dollar = FT2Font(findfont("DejaVu Sans")).get_char_index(ord("$"))
        assert f"DejaVuSans-{dollar:x}" in glyphs

    def test_the_same_figure_has_the_same_bytes(self, tmp_path: Path) -> None:
        """Breaks if a date or a random id is written, or the user's own settings are used."""
        plain_figure().save(tmp_path / "one")
        with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "text.parse_math": True}):
            plain_figure().save(tmp_path / "two")
        for form in FORMATS:
            one, two = ((tmp_path / place / f"plain.{form}").read_bytes() for place in ("one", "two"))
            assert one == two, form
        assert b"CreationDate" not in (tmp_path / "one" / "plain.pdf").read_bytes()

    def test_ends_are_drawn_where_they_are(self) -> None:
        """An estimate may lie outside its interval: breaks if it is moved, or the interval starts at it."""
        _, ((axes,),) = canvas(3.3, 2.0)
        intervals(axes, [0.9, 0.5], [0, 1], ([0.2, np.nan], [0.6, np.nan]), BLUE)
        lines = [line for line in axes.collections if isinstance(line, LineCollection)]
        drawn = [segment for segment in lines[0].get_segments() if np.isfinite(segment).all() and len(segment)]
        assert np.array(drawn).tolist() == [[[0.2, 0.0], [0.6, 0.0]]]
        assert axes.lines[0].get_xdata(orig=False).tolist() == [0.9, 0.5]  # pyright: ignore[reportAttributeAccessIssue]

    def test_legend_stands_above_all_panels(self) -> None:
        """Breaks if an entry is lost, or the legend lies on a panel."""
        with style():
            figure, panels = canvas(6.9, 3.0, 1, 2)
            legend(figure, [mark(BLUE, "o", name) for name in "abc"], columns=2)
            figure.draw_without_rendering()
        [found] = figure.legends
        assert [text.get_text() for text in found.get_texts()] == ["a", "b", "c"]
        assert found.get_window_extent().y0 >= max(axes.get_window_extent().y1 for axes in panels.flat)


class TestPage:
    def test_it_needs_nothing_and_escapes(self, tmp_path: Path) -> None:
        """Breaks if the page runs or fetches something, or text is read as HTML."""
        section = Section(HOSTILE, [{HOSTILE: HOSTILE}], note=HOSTILE)
        Page(HOSTILE, HOSTILE, [HOSTILE], [plain_figure()], [section]).write(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
        assert '<img src="data:image/svg+xml;base64,' in page
        assert f'alt="Caption of {ESCAPED}"' in page
        assert '<a href="figures/plain.pdf">PDF</a>' in page
        for shown in ("<h1>{}</h1>", "<li>{}</li>", "<h2>{}</h2>", "<th>{}</th>", "<td>{}</td>", "<p>{}</p>"):
            assert shown.format(ESCAPED) in page
        assert not [text for text in ("<script", "<b>", 'src="http', "plotly") if text in page]

    def test_tables_without_rows_are_left_out(self, tmp_path: Path) -> None:
        """Breaks if an empty heading is shown, or a table that is not for the terminal is missing."""
        sections = [Section("Empty", []), Section("Long", [{"a": "1"}], printed=False)]
        Page("Title", sections=sections).write(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "<h2>Long</h2>" in page
        assert "Empty" not in page

    def test_figures_of_an_earlier_page_go(self, tmp_path: Path) -> None:
        """Breaks if figures stay that the page no longer shows, or other files are deleted."""
        Page("Title", figures=[plain_figure("one"), plain_figure("two")]).write(tmp_path / "page.html")
        (tmp_path / "figures" / "notes.txt").write_text("mine", encoding="utf-8")
        Page("Title", figures=[plain_figure("two")]).write(tmp_path / "page.html")
        kept = {path.name for path in (tmp_path / "figures").iterdir()}
        assert kept == {"notes.txt", *(f"two.{form}" for form in FORMATS)}

    def test_fragment_escapes(self) -> None:
        """Shown in notebooks; breaks if text is read as HTML, or a sentence or a table is missing."""
        shown = fragment([HOSTILE], [Section(HOSTILE, [{"a": HOSTILE}])])
        assert f"<li>{ESCAPED}</li>" in shown
        assert f"<td>{ESCAPED}</td>" in shown
        assert "<b>" not in shown


class TestTables:
    def test_cells_stand_in_their_column(self) -> None:
        """Breaks if a column of a later row is lost, or a cell that a row lacks shifts the others."""
        section = Section("Title", [{"a": "1", "b": "2"}, {"c": "3", "b": "4"}])
        assert section.columns == ["a", "b", "c"]
        assert section.cells == [["1", "2", ""], ["", "4", "3"]]

    def test_the_terminal_shows_text_as_it_is(self) -> None:
        """Breaks if square brackets are read as markup, or title or note are missing."""
        cell = "[bold]as wide as the title, which is wrapped else"
        shown = printed(Section(HOSTILE, [{"[red]a": cell}], note="read [this]"))
        assert all(text in shown for text in (HOSTILE, "[red]a", cell, "read [this]"))

    def test_rates(self) -> None:
        """Breaks if a rate is rounded otherwise, or another interval is shown."""
        assert percent(0.1234) == "12.3%"
        row = {"low": 0.091, "high": 0.152, "other_low": 0.0, "other_high": 1.0}
        assert (percent_interval(row), percent_interval(row, "other_")) == ("9.1% - 15.2%", "0.0% - 100.0%")
