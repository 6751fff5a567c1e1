"""Figures for papers: names from the data, and what is drawn."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from figure_files import require_figures
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from diffing.personality.model_geometry import Geometry
from diffing.personality.spaces import trait_matrix
from diffing.personality.valence import semantic_valence, trait_map, trait_tree
from experiments.geometry import figures as of_space
from experiments.guardrails import figures as of_guardrails
from experiments.monitor import figures as of_monitor
from experiments.output.colours import BLUE
from experiments.output.figures import canvas, style
from experiments.output.labels import name_points

# The third would be a formula in matplotlib, the fourth an element in HTML.
HOSTILE = "$x_1$ <b>&"
TRAITS = {"evil": "antisocial", "calm": "prosocial", HOSTILE: "neutral", "a trait of many words": None}


class TestLabels:
    def test_names_do_not_overlap(self) -> None:
        """Fifteen points in a heap: breaks if names keep their first place, or leave the axes."""
        figure, ((axes,),) = canvas(3.3, 3.3)
        axes.set(xlim=(-8, 8), ylim=(-8, 8))
        places = np.random.default_rng(0).normal(size=(15, 2))
        name_points(axes, places, [f"trait {i}" for i in range(15)], ["k"] * 15, np.zeros((0, 2)))
        figure.draw_without_rendering()
        # Of the text alone: an annotation's own extent has its line in it.
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) == 15
        assert not [1 for one, two in combinations(boxes, 2) if Bbox.intersection(one, two) is not None]
        frame = axes.get_window_extent()
        assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes)


def random_space(seed: int) -> Geometry:
    """Of directions that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    directions = {trait: torch.randn(8, generator=generator) for trait in TRAITS}
    svv = semantic_valence(directions, ["calm"], ["evil"])
    matrix = trait_matrix(directions, list(TRAITS))
    return Geometry(list(TRAITS), matrix, trait_tree(directions), trait_map(directions, svv.vector), svv)


def words(figure: Figure) -> set[str]:
    """Everything that is written in a figure."""
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


def interval(value: float, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}low": value - 0.1, f"{prefix}high": value + 0.1}


class TestSpace:
    @pytest.fixture
    def found(self) -> dict[str, Geometry]:
        return {"base": random_space(0), "corrupted": random_space(2)}

    @pytest.fixture
    def traits(self, found: Mapping[str, Geometry]) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for model, one in found.items():
            assert one.svv is not None
            for i, trait in enumerate(one.traits):
                x, y = one.map.coordinates[i, :2]
                values = {"pc1": one.map.loadings[i], "svv": one.svv.cosines[trait]}
                ends = {f"{name}_{end}": v for name in values for end, v in interval(values[name]).items()}
                rows.append({"model": model, "trait": trait, "valence": TRAITS[trait], "x": x, "y": y} | values | ends)
        return pd.DataFrame(rows)

    def test_the_arrow_is_the_svv(self, found: Mapping[str, Geometry], traits: pd.DataFrame) -> None:
        """With one trait a pole the SVV goes from one point to the other; breaks if it is turned or moved."""
        explained = {model: one.map.explained for model, one in found.items()}
        with style():
            figure = of_space.trait_maps(traits, explained, "corrupted").figure
        [arrow] = [t for t in figure.axes[0].texts if isinstance(t, Annotation) and not t.get_text()]
        base = traits[traits["model"] == "base"].set_index("trait")
        assert arrow.xy == pytest.approx(base.loc["calm", ["x", "y"]].tolist())
        assert arrow.xyann == pytest.approx(base.loc["evil", ["x", "y"]].tolist())

    def test_every_name_is_written(self, found: Mapping[str, Geometry], traits: pd.DataFrame) -> None:
        """Breaks if a name is lost, or a trait without valence has no colour."""
        with style():
            made = [
                of_space.cosine_matrices(found, "corrupted"),
                of_space.trees(found, "corrupted", TRAITS),
                of_space.valence_loadings(traits, "corrupted"),
            ]
        assert all(set(TRAITS) <= words(one.figure) for one in made)

    def test_both_matrices_have_the_order_of_the_bases_tree(self, found: Mapping[str, Geometry]) -> None:
        """Breaks if a model's own order is taken, or names stand at other cells."""
        with style():
            figure = of_space.cosine_matrices(found, "corrupted").figure
        assert found["base"].tree.order != found["corrupted"].tree.order
        order = [list(TRAITS).index(trait) for trait in found["base"].tree.order]
        for axes, model in zip(figure.axes[1:3], ("base", "corrupted"), strict=True):
            [image] = axes.images
            assert np.asarray(image.get_array()) == pytest.approx(found[model].cosines[np.ix_(order, order)])


class TestMonitor:
    @pytest.fixture
    def tables(self) -> dict[str, pd.DataFrame]:
        places, generator = [("base", "own"), ("corrupted", "base's")], np.random.default_rng(0)
        before = [
            {
                "model": model,
                "direction": whose,
                "trait": trait,
                "pole": pole,
                "r": 0.5,
                "random_high": 0.4,
                **interval(0.5),
            }
            for model, whose in places
            for trait in TRAITS
            for pole in ("both", "high", "low")
        ]
        prompts = [
            {**{name: row[name] for name in ("model", "direction", "trait")}, "pole": pole, "projection": x, "score": y}
            for row in before[::3]
            for pole, (x, y) in zip(("high", "low") * 3, generator.normal(size=(6, 2)), strict=True)
        ]
        shifts = [
            {"positions": "prompt", "trait": t, "r": np.nan, "random_high": 0.4, **interval(np.nan)} for t in TRAITS
        ]
        members = [
            {"positions": "prompt", "trait": trait, "model": f"m-{i}", "shift": float(i), "change": float(i)}
            for trait in TRAITS
            for i in range(3)
        ]
        screening = [
            {
                "mixture": f"{HOSTILE} {i}",
                "score": score,
                "auc": 0.7,
                "samples": 9,
                **interval(0.7),
                **interval(0.7, "score_"),
            }
            | ({} if score == "random" else {"recall_0.1": 0.5, **interval(0.5, "recall_0.1_")})
            for i in range(2)
            for score in ("evil", "loss", "random")
        ]
        rows = {"before": before, "prompts": prompts, "shifts": shifts, "members": members, "screening": screening}
        return {name: pd.DataFrame(some) for name, some in rows.items()}

    def test_all_figures(self, tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
        """Breaks if a figure is missing, a trait without r stops it, or the same tables give other bytes."""
        with style():
            for figure in of_monitor.figures(tables):
                figure.save(tmp_path / "figures")
        names = {"before", "prompts-base-own", "prompts-corrupted-base", "shifts", "fine-tunes-prompt", "screening"}
        require_figures(tmp_path / "figures", names | {"recall"})
        with style():
            of_monitor.correlations_before(tables["before"]).save(tmp_path / "again")
        for path in (tmp_path / "again").iterdir():
            assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes(), path.name

    def test_points_are_the_prompts(self, tables: dict[str, pd.DataFrame]) -> None:
        """Breaks if a trait has another's points, or the correlation above it is another's."""
        with style():
            first, _ = of_monitor.before_points(tables["prompts"], tables["before"])
        rows = tables["prompts"].query("model == 'base'")
        for axes, trait in zip(first.figure.axes, TRAITS, strict=True):
            assert axes.get_title() == f"{trait}\n0.50 [0.40, 0.60]"
            here = rows[rows["trait"] == trait]
            [points] = axes.collections
            assert np.asarray(points.get_offsets()) == pytest.approx(
                np.column_stack([here["projection"], here["score"]])
            )


class TestGuardrails:
    def test_doses_go_through_the_untouched_model(self) -> None:
        """Left of 0 is subtracted; breaks if signs are lost, or the untouched rate is not at 0."""
        row = {"model": "base", "arm": HOSTILE, "kind": "trait", "cosine_svv": -0.5, "untouched_harmful": 0.1}
        row |= {"untouched_helpful": 0.9, **interval(0.1, "untouched_")}
        rows = [
            row
            | {
                "operation": operation,
                "strength": strength,
                "harmful": harmful,
                "helpful": 1 - harmful,
                **interval(harmful),
            }
            for operation, strength, harmful in (("add", 0.5, 0.7), ("add", 0.2, 0.4), ("subtract", 0.5, 0.0))
        ]
        with style():
            made = of_guardrails.trait_doses(pd.DataFrame(rows + [row | {"model": "corrupted"} for row in rows]))
        assert made is not None
        [axes] = made.figure.axes
        drawn = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 4]
        harmful = next(line for line in drawn if np.asarray(line.get_ydata())[0] == 0)
        assert np.asarray(harmful.get_xdata()) == pytest.approx([-0.5, 0, 0.2, 0.5])
        assert np.asarray(harmful.get_ydata()) == pytest.approx([0, 0.1, 0.4, 0.7])
        assert axes.get_title() == f"{HOSTILE} (−0.50)"

    def test_no_traits(self) -> None:
        """Breaks if an empty figure is made."""
        assert (
            of_guardrails.trait_doses(pd.DataFrame({"kind": ["valence"], "arm": ["SVV"], "cosine_svv": [1.0]})) is None
        )

    def test_fine_tunes_stand_under_their_kind(self) -> None:
        """Many fine-tunes get a higher figure; breaks if a row has another's point."""
        heights = []
        for count in (4, 40):
            with style():
                figure = of_guardrails.before_and_after(fine_tunes(count)).figure
            heights.append(figure.get_figheight())
            labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
            assert labels[:3] == ["kind 0", f"{HOSTILE} 0", f"{HOSTILE} 2"]
            svv = next(line for line in figure.axes[0].lines if line.get_color() == BLUE)
            x, y = (np.asarray(values) for values in (svv.get_xdata(), svv.get_ydata()))
            found = {labels[int(place)]: value for place, value in zip(y, x, strict=True)}
            assert found == pytest.approx({f"{HOSTILE} {i}": i / 100 for i in range(count)})
        assert heights[1] > heights[0] + 36 * 0.15


def fine_tunes(count: int) -> pd.DataFrame:
    """Fine-tune i has i percent harmful answers with the SVV; kinds take turns."""
    rows = []
    arms = {"SVV": "valence"} | {f"{kind} 0": kind for kind in ("isotropic", "covariance", "combination")}
    for i in range(count):
        for arm, kind in arms.items():
            rate = i / 100 if arm == "SVV" else 0.5
            about = {
                "model": f"{HOSTILE} {i}",
                "tune": f"kind {i % 2}",
                "arm": arm,
                "kind": kind,
                "hook": "h",
                "strength": 1.0,
            }
            untouched = {"untouched_harmful": 0.9, "untouched_helpful": 0.1, **interval(0.9, "untouched_")}
            rows.append({**about, **untouched, "harmful": rate, "helpful": 1 - rate, **interval(rate)})
    return pd.DataFrame(rows)
