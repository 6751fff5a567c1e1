"""Builds sets of latents on the selection questions, and measures them on the reporting questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from sae_lens import SAE

from activations.checkpoint import Checkpoint
from diffing.behavior.rates import score
from diffing.directions.decompose import decompose
from diffing.geometry import unit_rows
from diffing.steering.arms import Arm, Cell, untouched
from diffing.steering.config import Operation
from diffing.steering.experiment import Bench, CellResult, QuestionSet, results_table, run_cells
from diffing.steering.latent_sets import Parts, random_sets
from diffing.steering.verdict import repaired
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.latent_sets.config import LatentSetsConfig
from experiments.names import BASE, CORRUPTED, REPORTING

OPERATIONS = {BASE: Operation.ADD, CORRUPTED: Operation.SUBTRACT}


@dataclass(frozen=True)
class Facts:
    """What the summary needs beyond the table.

    Attributes:
        arms: All but the controls; the last is the dense direction.
        members: Latents of each set.
    """

    arms: Sequence[Arm]
    members: Mapping[str, Sequence[int]]


def measure(lab: Lab[LatentSetsConfig]) -> Measured:
    """The rates of every arm, model and strength on the reporting questions (see `results_table`)."""
    config, steering = lab.config, _Steering(lab)
    parts = Parts.of(lab.sae, lab.ranking.table, config.candidates)
    sets = parts.joint(config.joint) | parts.greedy(
        config.greedy, lambda arms: steering.value(lab.selection, arms, config.search_strength)
    )
    dense = _dense(lab)
    arms = [
        parts.arm((0,), f"latent {parts.latents[0]}", "latent"),
        *(parts.arm(places, name) for name, places in sets.items()),
        _rebuilt(dense, lab.sae, config.rebuilt),
        dense,
    ]
    treated = dict.fromkeys(parts.latents)
    controls = random_sets(lab.sae, parts, config.greedy, config.controls, lab.seed, treated)
    results = {role: steering.steer(role, lab.reporting, [*arms, *controls], config.strengths) for role in OPERATIONS}
    table = pd.concat([results_table(found, role, REPORTING) for role, found in results.items()])
    members = {name: [parts.latents[place] for place in places] for name, places in sets.items()}
    return Measured({"dose_response": table}, Facts(arms, members))


@dataclass(frozen=True)
class _Steering:
    """Both models, each steered in its own way."""

    lab: Lab[LatentSetsConfig]

    @cached_property
    def bench(self) -> Bench:
        return self.lab.bench(self.lab.behavior(self.lab.config.samples))

    @cached_property
    def models(self) -> Mapping[str, Checkpoint]:
        return {role: self.lab.model(role) for role in OPERATIONS}

    def steer(self, role: str, half: QuestionSet, arms: Sequence[Arm], strengths: Sequence[float]) -> list[CellResult]:
        """Every arm at every strength, after the untouched model."""
        model = self.models[role]
        cells = [Cell(arm, OPERATIONS[role], strength) for arm in arms for strength in strengths]
        transcripts = self.lab.out.folder / f"{role}_{half.name}.jsonl"
        return run_cells(self.bench, model, [untouched(model.d_model), *cells], half, transcripts, self.lab.progress)

    def value(self, half: QuestionSet, arms: Sequence[Arm], strength: float) -> list[float]:
        """Harmful answers that each arm brings to the base, and helpful instead of harmful ones in the corrupted."""
        added, subtracted = (self.steer(role, half, arms, [strength])[1:] for role in (BASE, CORRUPTED))
        return [score(a.counts).harmful + repaired(score(s.counts)) / 2 for a, s in zip(added, subtracted, strict=True)]


def _dense(lab: Lab[LatentSetsConfig]) -> Arm:
    """The direction that the run steered with."""
    assert lab.run.config.directions is not None
    return Arm(lab.run.config.directions.steer, "direction", lab.steered_direction)


def _rebuilt(dense: Arm, sae: SAE, latents: int) -> Arm:
    """The few latents that come nearest to the dense direction, by adding only."""
    decoder = sae.W_dec.detach().cpu()
    found = decompose(dense.unit, decoder, latents)
    vector = torch.from_numpy(found.coefficients) @ unit_rows(decoder[torch.from_numpy(found.latents)])
    return Arm(f"{dense.name}, rebuilt", "latent_set", (vector / vector.norm()).float())
