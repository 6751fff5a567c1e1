"""How much of the behaviour do few latents make together? Dose-response of sets of latents and of the dense direction.

    sae-diff latent-sets --run runs/quickstart

Sets are built on the selection questions of a finished run and measured on its reporting questions: every set, the
toxic latent, the dense direction and random sets at the same strengths, added to the base and subtracted from the
corrupted model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens import SAE

from activations.artefact import finish_artefact, open_folder, write_json
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.harvesting import LiveActivations
from diffing.behavior.rates import score
from diffing.directions.decompose import decompose
from diffing.directions.geometry import unit_rows
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.arms import Arm, Cell, untouched
from diffing.steering.experiment import Bench, CellResult, Half, results_table, run_cells
from diffing.steering.latent_sets import Parts, random_sets
from diffing.steering.verdict import repaired
from experiments.latent_sets.config import OPERATIONS, LatentSetsConfig
from experiments.latent_sets.page import write_page
from experiments.latent_sets.summary import summarise
from experiments.names import BASE, CORRUPTED
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun

KIND = "latent_sets"
TABLE, PAGE, SUMMARY = "dose_response.parquet", "latent_sets.html", "summary.json"


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
        summary = summarise(finished, table, arms, members)
        table.to_parquet(out / TABLE, index=False)
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, table, summary)
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
