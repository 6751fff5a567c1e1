"""Whether the files of figures are what they should be."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from experiments.output.figures import FORMATS

SVG = "{http://www.w3.org/2000/svg}"


def require_figures(folder: Path, names: set[str]) -> None:
    """All three forms of each figure are there and can be opened; nothing else is."""
    assert {path.name for path in folder.iterdir()} == {f"{name}.{form}" for name in names for form in FORMATS}
    for name in names:
        height, width, _ = imread(folder / f"{name}.png").shape
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == f"{SVG}svg"
        points = float(root.attrib["width"].removesuffix("pt"))
        assert width == pytest.approx(points / 72 * 300, abs=2)
        assert height > 100
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
