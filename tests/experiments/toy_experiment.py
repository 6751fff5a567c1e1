"""A whole experiment in one file: how often does each model of a run say more harmful than helpful things?"""

from typing import Any

from pydantic import Field

from experiments.frame.experiment import Experiment, ExperimentConfig, Measured, Need, Result
from experiments.output.tables import Section, percent


class ToyConfig(ExperimentConfig):
    """How much is asked."""

    samples: int = Field(default=2, ge=1, description="Answers to each question.")


class Toy(Experiment[ToyConfig]):
    """Asks base and corrupted model the reporting questions, and counts."""

    name = "toy"
    question = "How harmful are base and corrupted model?"
    config = ToyConfig
    needs = frozenset({Need.SAMPLED_ANSWERS})

    def measure(self, lab: Any) -> Measured:
        import pandas as pd

        from diffing.behavior.rates import score

        def row(role: str) -> dict[str, Any]:
            trials = lab.trials(lab.config.samples)
            return {"model": role, **score(trials.untouched(lab.model(role), lab.reporting)).to_dict()}

        rows = [lab.out.stage(f"ask {role}", lambda role=role: row(role)) for role in ("base", "corrupted")]
        return Measured({"rates": pd.DataFrame(rows)})

    def summarise(self, lab: Any, measured: Measured) -> dict[str, Any]:
        base, corrupted = measured.tables["rates"]["harmful"].tolist()
        return {"more_harmful": corrupted - base}

    def sentences(self, result: Result) -> list[str]:
        return [f"The corrupted model is {percent(result.summary['more_harmful'])} more harmful."]

    def sections(self, result: Result) -> list[Section]:
        rows = [
            {"model": r["model"], "harmful": percent(r["harmful"])} for r in result.tables["rates"].to_dict("records")
        ]
        return [Section("Untouched models", rows)]

    def figures(self, result: Result) -> list[Any]:
        from experiments.output.figures import COLUMN_WIDTH, PaperFigure, canvas

        figure, (panels,) = canvas(COLUMN_WIDTH, 2.0)
        panels[0].bar(result.tables["rates"]["model"], result.tables["rates"]["harmful"])
        return [PaperFigure("rates", figure, "Harmful answers of both models.")]


EXPERIMENT = Toy()
