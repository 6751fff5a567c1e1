"""The page of a result: sentences, figures and tables in one HTML file that needs neither a network nor a server."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.output.figures import FOLDER, FORMATS, PaperFigure
from experiments.output.tables import Section

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What a page shows, in this order.

    Attributes:
        title: Heading.
        question: What was asked, in a sentence.
        sentences: What was found.
        figures: Saved beside the page as SVG, PDF and PNG, too.
        sections: Tables; those without rows are left out.
    """

    title: str
    question: str = ""
    sentences: Sequence[str] = ()
    figures: Sequence[PaperFigure] = field(default=())
    sections: Sequence[Section] = ()

    def write(self, path: Path) -> None:
        """Saves the figures in `figures` beside the page, in place of an earlier page's, and writes the page.

        Args:
            path: HTML file, replaced if it exists. All text in it is escaped.
        """
        folder = path.parent / FOLDER
        for figure in self.figures:
            figure.save(folder)
        _remove_others(folder, {figure.name for figure in self.figures})
        text = (
            environment(HERE)
            .get_template("page.html")
            .render(
                title=self.title,
                question=self.question,
                sentences=self.sentences,
                figures=[_shown(figure, folder) for figure in self.figures],
                sections=self.sections,
                formats=FORMATS,
                folder=folder.name,
                style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
            )
        )
        path.write_text(text, encoding="utf-8")


def fragment(sentences: Sequence[str], sections: Sequence[Section]) -> str:
    """Sentences and tables as HTML for a notebook; all text is escaped."""
    return environment(HERE).get_template("fragment.html").render(sentences=sentences, sections=sections)


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Reads templates of a folder; everything that they are given is escaped, and what they miss is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(figure: PaperFigure, folder: Path) -> dict[str, Any]:
    """The saved SVG, half as wide again as on paper (96 dots an inch)."""
    image = b64encode((folder / f"{figure.name}.svg").read_bytes()).decode()
    width = round(1.5 * 96 * figure.figure.get_figwidth())
    return {"name": figure.name, "caption": figure.caption, "image": image, "width": width}


def _remove_others(folder: Path, names: set[str]) -> None:
    """Figures that an earlier page had and this one has not."""
    for form in FORMATS:
        for path in folder.glob(f"*.{form}"):
            if path.stem not in names:
                path.unlink()
