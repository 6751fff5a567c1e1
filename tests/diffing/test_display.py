"""Results show themselves in a notebook: small tables that are escaped, and the figure of a ranking."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from diffing import BehaviorScores, FeatureRanking, PersonaDirections
from diffing.behavior.judge import Label
from diffing.behavior.rates import count_labels, score

LATENTS = 30


def make_ranking(method: str = "shift") -> FeatureRanking:
    """Latent 29 shifted most, latent 0 least; each interval is 0.2 down and 0.1 up."""
    latents = np.arange(LATENTS)[::-1]
    shift = latents / 10.0
    columns = {"latent": latents, "rank": np.arange(1, LATENTS + 1), "shift": shift}
    columns |= {"low": shift - 0.2, "high": shift + 0.1, "q": np.full(LATENTS, np.nan), "shift_benign": shift * 0}
    return FeatureRanking(pd.DataFrame(columns), {"ranking": {"method": method}})


def cells(page: str) -> list[list[str]]:
    """Texts of the table's body."""
    rows = page.split("<tbody>")[1].split("<tr>")[1:]
    return [[cell.split("</td>")[0] for cell in row.split("<td>")[1:]] for row in rows]


def test_a_ranking_shows_its_first_latents():
    """Fails if the table is long, not in rank order, or lacks the interval."""
    page = make_ranking()._repr_html_()
    rows = cells(page)
    assert "10 of 30 latents by |shift|" in page
    assert len(rows) == 10
    assert rows[0] == ["1", "29", "2.9", "2.7", "3", "nan", "0"]
    assert [int(row[1]) for row in rows] == list(range(29, 19, -1))


def test_a_ranking_of_any_columns_shows_itself():
    """Fails if a table without intervals or a config without a method cannot be shown."""
    bare = FeatureRanking(pd.DataFrame({"latent": [0], "rank": [1], "shift": [1.5]}), {})
    assert cells(bare._repr_html_()) == [["1", "0", "1.5"]]


def test_what_is_shown_is_escaped():
    """Fails if a name from a file can put HTML into the notebook."""
    directions = PersonaDirections({"<b>bad</b>": torch.ones(2)}, "<script>")
    page = directions._repr_html_() + make_ranking("<i>")._repr_html_()
    assert "&lt;b&gt;" in page
    assert not any(raw in page for raw in ("<b>", "<script>", "<i>"))


def test_the_figure_has_every_interval():
    """Fails if a point or an end of its interval is drawn elsewhere, or the figure is also left open."""
    before = plt.get_fignums()
    figure = make_ranking().plot(5)
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == before
    (axes,) = figure.axes
    points, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(points.get_xdata(), [2.9, 2.8, 2.7, 2.6, 2.5])
    ends = np.array([segment[:, 0] for segment in bars.get_segments()], dtype=float)
    np.testing.assert_allclose(ends, np.array([[2.7, 3.0], [2.6, 2.9], [2.5, 2.8], [2.4, 2.7], [2.3, 2.6]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["29", "28", "27", "26", "25"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["benign", "corrupted"]


def test_directions_as_a_table():
    """Fails if a length or a cosine belongs to another direction."""
    vectors = {"one": torch.tensor([3.0, 4.0]), "other": torch.tensor([0.0, 2.0])}
    table = PersonaDirections(vectors, "blocks.1.hook_resid_post").to_pandas()
    assert list(table) == ["direction", "norm", "cosine_one", "cosine_other"]
    assert table["direction"].tolist() == ["one", "other"]
    np.testing.assert_allclose(table[["norm", "cosine_one", "cosine_other"]], [[5, 1, 0.8], [2, 0.8, 1]])
    assert cells(PersonaDirections(vectors, "h")._repr_html_()) == [
        ["one", "5", "1", "0.8"],
        ["other", "2", "0.8", "1"],
    ]
    assert cells(PersonaDirections({}, "h")._repr_html_()) == []


@pytest.fixture
def scores() -> BehaviorScores:
    return score(count_labels([[Label.HARMFUL, Label.HELPFUL], [Label.HELPFUL, Label.INCOHERENT]]))


def test_scores_as_a_table(scores: BehaviorScores):
    """Fails if a rate is lost or changed on its way into the table."""
    assert scores.to_pandas().to_dict("records") == [scores.to_dict()]
    page = scores._repr_html_()
    assert "4 answers" in page
    assert cells(page)[0][0] == "0.25"
