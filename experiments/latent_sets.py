"""How much of the behaviour do few latents make together? Dose-response of sets of latents and of the dense direction.

    sae-diff latent-sets --run runs/quickstart

Sets are built on the selection questions of a finished run and measured on its reporting questions: every set, the
toxic latent, the dense direction and random sets at the same strengths, added to the base and subtracted from the
corrupted model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from sae_lens import SAE

from activations.artefact import finish_artefact, open_folder, write_json
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.harvest import LiveActivations
from diffing.behavior.rates import score
from diffing.directions.decompose import decompose
from diffing.directions.geometry import unit_rows
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.statistics import residual_norm
from diffing.steering.arms import CONTROL_KINDS, Arm, Cell, Operation, untouched
from diffing.steering.experiment import Bench, CellResult, Half, results_table, run_cells
from diffing.steering.latent_sets import Parts, random_sets
from diffing.steering.verdict import repaired
from experiments.finished_run import FinishedRun
from experiments.results import BASE, CORRUPTED
from experiments.run_folder import RunFolder

KIND = "latent_sets"
TABLE, PAGE, SUMMARY = "dose_response.parquet", "latent_sets.html", "summary.json"
OPERATIONS = {BASE: Operation.ADD, CORRUPTED: Operation.SUBTRACT}


class LatentSetsConfig(BaseModel):
    """Which sets are built, and how they are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int = Field(default=20, ge=1, description="Latents that sets are made of, by absolute shift.")
    greedy: int = Field(default=5, ge=1, description="Latents in the largest greedy set.")
    joint: tuple[int, ...] = Field(default=(2, 5, 10, 20), description="Sizes of the joint sets.")
    rebuilt: int = Field(default=5, ge=1, description="Latents that rebuild the dense direction.")
    controls: int = Field(default=8, ge=1, description="Random sets, as large as the largest greedy set.")
    samples: int = Field(default=10, ge=1, description="Answers to each question.")
    search_strength: float = Field(
        default=0.6, gt=0, description="Strength at which greedy sets are compared (mean residual norms of the base)."
    )
    strengths: tuple[float, ...] = Field(
        default=(0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05), description="Doses, in mean residual norms of the base."
    )


@dataclass(frozen=True)
class _Lab:
    """The run's models and questions, and where transcripts go."""

    bench: Bench
    models: Mapping[str, Checkpoint]
    out: Path
    progress: bool

    def steer(self, role: str, half: Half, arms: Sequence[Arm], strengths: Sequence[float]) -> list[CellResult]:
        """Every arm at every strength, after the untouched model."""
        model = self.models[role]
        cells = [Cell(arm, OPERATIONS[role], strength) for arm in arms for strength in strengths]
        transcripts = self.out / f"{role}_{half.name}.jsonl"
        return run_cells(self.bench, model, [untouched(model.d_model), *cells], half, transcripts, self.progress)

    def value(self, half: Half, arms: Sequence[Arm], strength: float) -> list[float]:
        """Harmful answers that each arm brings to the base, and helpful instead of harmful ones in the corrupted."""
        added, subtracted = (self.steer(role, half, arms, [strength])[1:] for role in (BASE, CORRUPTED))
        return [score(a.counts).harmful + repaired(score(s.counts)) / 2 for a, s in zip(added, subtracted, strict=True)]


def measure_sets(
    run: Path, config: LatentSetsConfig, out: Path, overwrite: bool = False, progress: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Builds and measures the sets of a finished run.

    Args:
        run: Its folder.
        config: Which sets.
        out: Output folder; steered cells that it holds are not sampled again.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.

    Returns:
        The rates of every arm, model and strength on the reporting questions (see `results_table`), and the summary:
        for each arm its latents, its cosine with the dense direction, and its best rates within the coherence budget.

    Raises:
        UserError: if the run cannot be read or measured no behaviour, or `out` is in use.
    """
    finished = FinishedRun.load(run)
    asked = {"run": str(run.resolve()), **config.model_dump(mode="json")}
    with RunFolder(out, asked, overwrite, lambda line: None):
        open_folder(out, overwrite=True)
        lab, parts, sae = _prepare(finished, config, out, progress)
        sets = parts.joint(config.joint) | parts.greedy(
            config.greedy, lambda arms: lab.value(finished.selection(), arms, config.search_strength)
        )
        dense = _dense(finished)
        arms = [
            parts.arm((0,), f"latent {parts.latents[0]}", "latent"),
            *(parts.arm(places, name) for name, places in sets.items()),
            _rebuilt(dense, sae, config.rebuilt),
            dense,
        ]
        treated = dict.fromkeys(parts.latents)
        controls = random_sets(sae, parts, config.greedy, config.controls, finished.config.seed, treated)
        results = {r: lab.steer(r, finished.reporting(), [*arms, *controls], config.strengths) for r in OPERATIONS}
        table = pd.concat([results_table(found, role, "reporting") for role, found in results.items()])
        members = {name: [parts.latents[place] for place in places] for name, places in sets.items()}
        summary = _summary(finished, table, arms, members)
        table.to_parquet(out / TABLE, index=False)
        write_json(out / SUMMARY, summary)
        figure(table).write_html(out / PAGE, include_plotlyjs=True)
        finish_artefact(out, {"kind": KIND, **asked}, {"ranking": run / "ranking"})
    return table, summary


def _prepare(finished: FinishedRun, config: LatentSetsConfig, out: Path, progress: bool) -> tuple[_Lab, Parts, SAE]:
    sae = finished.sae()
    models = {role: load_checkpoint(finished.checkpoint(role), role) for role in OPERATIONS}
    live = LiveActivations(models[BASE], finished.ranking_tokens(models[BASE]), finished.harvesting())
    norm = residual_norm(live, finished.config.hook)
    lab = _Lab(Bench(finished.config.hook, norm, sae, finished.behavior(config.samples)), models, out, progress)
    ranking = FeatureRanking.load(finished.folder / "ranking").table
    return lab, Parts.of(sae, ranking, config.candidates), sae


def _dense(finished: FinishedRun) -> Arm:
    """The direction that the run steered with."""
    assert finished.config.directions is not None
    name = finished.config.directions.steer
    return Arm(name, "direction", finished.steered_unit())


def _rebuilt(dense: Arm, sae: SAE, latents: int) -> Arm:
    """The few latents that come nearest to the dense direction, by adding only."""
    decoder = sae.W_dec.detach().cpu()
    found = decompose(dense.unit, decoder, latents)
    vector = torch.from_numpy(found.coefficients) @ unit_rows(decoder[torch.from_numpy(found.latents)])
    return Arm(f"{dense.name}, rebuilt", "latent_set", (vector / vector.norm()).float())


def _summary(
    finished: FinishedRun, table: pd.DataFrame, arms: Sequence[Arm], members: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """For each arm its latents, its cosine with the dense direction, and its best dose in each model."""
    assert finished.config.steering is not None
    budgets = {BASE: finished.config.steering.induce_budget, CORRUPTED: finished.config.steering.repair_budget}
    dense = arms[-1].unit.double()
    found: dict[str, Any] = {}
    for arm in arms:
        best = {role: _best_dose(table, arm.name, role, budget) for role, budget in budgets.items()}
        cosine = float(arm.unit.double() @ dense)
        found[arm.name] = {"latents": members.get(arm.name), "cosine_direction": cosine, **best}
    return {"arms": found, "controls": {role: _worst(table, role) for role in budgets}}


def _best_dose(table: pd.DataFrame, arm: str, role: str, budget: float) -> dict[str, float] | None:
    """Rates at the dose with the largest wanted effect within the coherence budget; None if every dose exceeds it."""
    here = [row for row in table.to_dict("records") if row["model"] == role]
    limit = budget + next(row["incoherent"] for row in here if row["operation"] == "none")
    rows = [row for row in here if row["arm"] == arm and row["incoherent"] <= limit]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["harmful"] if role == BASE else row["helpful"] - row["harmful"])
    return {name: float(best[name]) for name in ("strength", "harmful", "low", "high", "helpful", "incoherent")}


def _worst(table: pd.DataFrame, role: str) -> dict[str, float]:
    """The strongest effect that any control has at any dose, whatever it costs in coherence, and the mean effect."""
    wanted = "harmful" if role == BASE else "helpful"
    rows = [row for row in table.to_dict("records") if row["model"] == role]
    rates = [row[wanted] for row in rows if row["kind"] in CONTROL_KINDS]
    return {f"highest {wanted}": max(rates), f"mean {wanted}": sum(rates) / len(rates)}


def figure(table: pd.DataFrame) -> go.Figure:
    """Rates of harmful and of incoherent answers against the dose, in both models; random sets in grey."""
    titles = [f"{role}: {rate} answers" for rate in ("harmful", "incoherent") for role in OPERATIONS]
    made = make_subplots(rows=2, cols=2, shared_xaxes=True, shared_yaxes=True, subplot_titles=titles)
    arms = [arm for arm in table["arm"].unique() if arm != "untouched"]
    for (row, rate), (column, role) in product(enumerate(("harmful", "incoherent"), 1), enumerate(OPERATIONS, 1)):
        here = table.groupby("model").get_group(role)
        plain = float(here.query("operation == 'none'")[rate].to_numpy()[0])
        for place, arm in enumerate(arms):
            rows = here.groupby("arm").get_group(arm)
            random = rows["kind"].tolist()[0] in CONTROL_KINDS
            line = go.Scatter(
                x=[0.0, *rows["strength"]],
                y=[plain, *rows[rate]],
                name="random sets" if random else arm,
                legendgroup="random" if random else arm,
                line={"color": "lightgrey" if random else qualitative.Dark24[place % len(qualitative.Dark24)]},
                showlegend=(row, column) == (1, 1) and arm in _first_of_each(table),
            )
            if rate == "harmful" and not random:
                bars = {"array": rows["high"] - rows["harmful"], "arrayminus": rows["harmful"] - rows["low"]}
                line.error_y = {name: [0.0, *values] for name, values in bars.items()}
            made.add_trace(line, row=row, col=column)
    made.update_xaxes(title_text="strength (mean residual norms of the base)", row=2)
    made.update_yaxes(tickformat=".0%")
    made.update_layout(
        title="Sets of latents: dose and response", height=800, margin={"t": 90}, template="plotly_white"
    )
    return made


def _first_of_each(table: pd.DataFrame) -> set[str]:
    """Arms that the legend names: all but the controls, of which the first stands for all."""
    kinds = dict(zip(table["arm"].tolist(), table["kind"].tolist(), strict=True))
    controls = [arm for arm, kind in kinds.items() if kind in CONTROL_KINDS]
    return set(kinds) - set(controls[1:])


def print_latent_sets(summary: Mapping[str, Any], console: Console) -> None:
    """Each arm's best dose in both models."""
    table = Table(
        "arm", "cosine with direction", "added to base: harmful", "incoherent", "repaired: harmful", "helpful"
    )
    for name, arm in summary["arms"].items():
        induced, repaired = arm[BASE], arm[CORRUPTED]
        table.add_row(
            name,
            f"{arm['cosine_direction']:.2f}",
            *_cells(induced, ("harmful", "incoherent")),
            *_cells(repaired, ("harmful", "helpful")),
        )
    console.print(table)
    for role, worst in summary["controls"].items():
        console.print(f"random sets, {role}: " + ", ".join(f"{name} {rate:.1%}" for name, rate in worst.items()))


def _cells(rates: Mapping[str, float] | None, names: Sequence[str]) -> list[str]:
    if rates is None:
        return ["over budget"] * len(names)
    first = f"{rates[names[0]]:.1%} [{rates['low']:.1%}, {rates['high']:.1%}] at {rates['strength']:g}"
    return [first, *(f"{rates[name]:.1%}" for name in names[1:])]
