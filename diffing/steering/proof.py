"""The causal proof of a ranking: every top latent, the dense directions and the controls, steered and judged.

Strengths and the toxic latent are chosen on the selection half of the questions; the published rates come from the
reporting half, with controls at the treated strengths (METHODS: "Steering").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from activations.checkpoint import Checkpoint
from diffing.behavior.rates import BehaviorScores, score
from diffing.steering.arms import Arm, Cell, untouched
from diffing.steering.config import Operation, ProofConfig
from diffing.steering.experiment import Bench, CellResult, QuestionSet, results_table, run_cells
from diffing.steering.verdict import (
    Evidence,
    find,
    helped,
    induced,
    misbehaves,
    toxic_latent,
    verdict_table,
    weigh,
    worst_control,
)

# The wanted effect may be largest below the largest coherent strength; so these shares of that one are tried as well.
INSIDE = (0.6, 0.8)


@dataclass(frozen=True)
class Proof:
    """What steering showed.

    Attributes:
        toxic: Evidence for the toxic latent, None if no latent is causal.
        evidence: Evidence for every latent and direction that was steered (selection half).
        table: All rates, both halves (see `results_table`).
        verdicts: One row a latent, from the reporting half (see `verdict_table`).
        headline: Rates on the reporting half: `latent_induce`, `latent_repair`, `direction_*`, and in `random_*` and
            `random_direction_*` the worst control at the latent's and at the direction's strength.
    """

    toxic: Evidence | None
    evidence: Sequence[Evidence]
    table: pd.DataFrame
    verdicts: pd.DataFrame
    headline: dict[str, tuple[float, BehaviorScores]]


@dataclass(frozen=True)
class Candidates:
    """What is steered with.

    Attributes:
        latents: Latents, largest absolute shift first.
        directions: Dense directions, the one that headlines first.
        controls: Makes the controls for a treated latent (None: no latent is causal).
    """

    latents: Sequence[Arm]
    directions: Sequence[Arm]
    controls: Callable[[int | None], Sequence[Arm]]

    @property
    def arms(self) -> list[Arm]:
        """Latents and directions."""
        return [*self.latents, *self.directions]


@dataclass(frozen=True)
class Pair:
    """The two models under one experiment; `run` samples and judges cells.

    Attributes:
        bench: Hook, judge, dictionary, sampling.
        base: Model that the latents are added to.
        corrupted: Model that they are subtracted from and ablated in.
        folder: Transcripts go here; cells that it holds already are not sampled again.
        progress: Whether to show progress bars.
    """

    bench: Bench
    base: Checkpoint
    corrupted: Checkpoint
    folder: Path
    progress: bool = True

    def run(self, checkpoint: Checkpoint, half: QuestionSet, cells: Sequence[Cell]) -> list[CellResult]:
        transcripts = self.folder / f"{checkpoint.role}_{half.name}.jsonl"
        return run_cells(self.bench, checkpoint, cells, half, transcripts, self.progress)

    def search(
        self,
        checkpoint: Checkpoint,
        half: QuestionSet,
        arms: Sequence[Arm],
        operation: Operation,
        budget: float,
        config: ProofConfig,
    ) -> list[CellResult]:
        """Every arm at strengths that close in on the largest one within the budget, then at shares of that (`INSIDE`).

        All arms take a step together, so that each step is one batched generation.
        """
        [plain] = self.run(checkpoint, half, [untouched(checkpoint.d_model)])
        limit = score(plain.counts).incoherent + budget

        def step(strengths: Sequence[float]) -> list[CellResult]:
            cells = [Cell(arm, operation, strength) for arm, strength in zip(arms, strengths, strict=True)]
            return self.run(checkpoint, half, cells)

        strengths, largest = [config.strongest / 2] * len(arms), [0.0] * len(arms)
        found: list[CellResult] = []
        for halving in range(config.halvings):
            results = step(strengths)
            found += results
            held = [score(r.counts).incoherent <= limit for r in results]
            largest = [s if ok else most for s, ok, most in zip(strengths, held, largest, strict=True)]
            width = config.strongest / 2 ** (halving + 2)
            strengths = [s + width if ok else s - width for s, ok in zip(strengths, held, strict=True)]
        # Where nothing held, the smallest strength that bisection came to stands for the largest coherent one.
        ends = [most or s for most, s in zip(largest, strengths, strict=True)]
        for share in INSIDE:
            found += step([share * end for end in ends])
        return sorted(found, key=lambda r: r.cell.strength)


def prove(
    pair: Pair, candidates: Candidates, selection: QuestionSet, reporting: QuestionSet, config: ProofConfig
) -> Proof:
    """Runs the experiment.

    Args:
        pair: The two models, how behaviour is measured, and where transcripts go.
        candidates: Latents and directions to steer with, and their controls.
        selection: Questions that strengths are chosen on.
        reporting: Questions that the headline comes from.
        config: How strengths are found, and budgets.
    """
    pair.folder.mkdir(parents=True, exist_ok=True)
    base, corrupted, arms = pair.base, pair.corrupted, candidates.arms
    still = [untouched(base.d_model)]
    plain_base, plain_corrupted = (pair.run(model, selection, still) for model in (base, corrupted))
    if not misbehaves(plain_corrupted[0], plain_base[0]):
        plain = [(pair.run(m, h, still), m, h) for m in (base, corrupted) for h in (selection, reporting)]
        return Proof(None, (), _joined(plain), pd.DataFrame(), {})

    ablated = pair.run(corrupted, selection, [Cell(arm, Operation.ABLATE) for arm in arms])
    in_base = plain_base + pair.search(base, selection, arms, Operation.ADD, config.induce_budget, config)
    in_corrupted = [
        *plain_corrupted,
        *ablated,
        *pair.search(corrupted, selection, arms, Operation.SUBTRACT, config.repair_budget, config),
    ]
    evidence = weigh(arms, in_base, in_corrupted, config.induce_budget, config.repair_budget)
    toxic = toxic_latent([e for e in evidence if e.arm.kind == "latent"])

    controls = candidates.controls(toxic.latent if toxic else None)
    reported_base, reported_corrupted = _report(pair, reporting, evidence, toxic, controls, config)
    directions = candidates.directions
    treated = ({"latent": toxic.arm} if toxic else {}) | ({"direction": directions[0]} if directions else {})
    headline = _headline(treated, reported_base, Operation.ADD, "induce")
    headline |= _headline(treated, reported_corrupted, Operation.SUBTRACT, "repair")
    table = _joined(
        [
            (in_base, base, selection),
            (in_corrupted, corrupted, selection),
            (reported_base, base, reporting),
            (reported_corrupted, corrupted, reporting),
        ]
    )
    return Proof(toxic, evidence, table, verdict_table(evidence, reported_base, reported_corrupted), headline)


def _report(
    pair: Pair,
    half: QuestionSet,
    evidence: Sequence[Evidence],
    toxic: Evidence | None,
    controls: Sequence[Arm],
    config: ProofConfig,
) -> tuple[list[CellResult], list[CellResult]]:
    """Every arm at its chosen strengths, in the base and in the corrupted model, on questions that chose nothing."""
    still, dense = untouched(pair.base.d_model), [e for e in evidence if e.arm.kind == "direction"]
    # What is claimed, of the first direction too, must beat controls at the same strengths.
    causal = [e for e in evidence if e.arm.kind == "latent" and e.causal]
    claims = sorted(causal, key=lambda e: (e is not toxic, -e.repaired))[: config.claims] + dense[:1]
    in_base = [still, *(e.induce.cell for e in evidence), *_controls(controls, [e.induce.cell for e in claims])]
    in_corrupted = [
        still,
        *(e.repair.cell for e in evidence),
        *(Cell(e.arm, Operation.ABLATE) for e in evidence),
        *_controls(controls, [e.repair.cell for e in claims]),
        *(Cell(e.arm, Operation.ABLATE_TO_MEAN) for e in dense),
    ]
    return pair.run(pair.base, half, in_base), pair.run(pair.corrupted, half, in_corrupted)


def _joined(parts: Sequence[tuple[Sequence[CellResult], Checkpoint, QuestionSet]]) -> pd.DataFrame:
    tables = [results_table(results, model.role, half.name) for results, model, half in parts]
    return pd.concat(tables, ignore_index=True)


def _controls(controls: Sequence[Arm], claims: Sequence[Cell]) -> list[Cell]:
    """Every control at the strengths of the claims."""
    levels = dict.fromkeys((cell.operation, cell.strength) for cell in claims)
    return [Cell(arm, operation, strength) for operation, strength in levels for arm in controls]


def _headline(
    treated: dict[str, Arm], results: Sequence[CellResult], operation: Operation, effect: str
) -> dict[str, tuple[float, BehaviorScores]]:
    rows: dict[str, tuple[float, BehaviorScores]] = {}
    for name, arm in treated.items():
        result = find(results, arm, operation)[0]
        strength = result.cell.strength
        control = "random" if name == "latent" else "random_direction"
        rows[f"{name}_{effect}"] = (strength, score(result.counts))
        wanted = induced if operation == Operation.ADD else helped
        rows[f"{control}_{effect}"] = (strength, score(worst_control(results, operation, strength, wanted).counts))
    return rows
