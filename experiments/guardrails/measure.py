"""Measures what was chosen on the reporting questions: in base and corrupted model, and in every fine-tune."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from diffing.behavior.judge import Label
from diffing.behavior.rates import rate_difference, score
from diffing.positions import Positions
from diffing.ranking.activation_means import activation_means
from diffing.statistics.intervals import t_interval
from diffing.steering.choices import ABLATIONS, ablations_of
from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.frame.trials import TreatmentOutcome, Trials
from experiments.guardrails.choices import SIGNS, Choices, at_hook
from experiments.guardrails.config import GuardrailsConfig
from experiments.guardrails.sparing import Pair, sparing_rows
from experiments.guardrails.vectors import Arms, BaseVectors
from experiments.model_set import Member
from experiments.names import CORRUPTED

# Where projections are averaged: over the whole prompt, and where the answer begins.
PROJECTED: tuple[Positions, ...] = ("prompt", "last_prompt")
# Columns that say what was done.
TREATMENT = ("operation", "reach", "hook", "strength")


@dataclass(frozen=True)
class Facts:
    """What the summary needs beyond the tables.

    Attributes:
        choices: What was chosen.
        fine_tunes: The outcomes of which "fine_tunes" is the table.
    """

    choices: Choices
    fine_tunes: Sequence[TreatmentOutcome]


@dataclass
class Findings:
    """What was seen in one or more models; every list holds outcomes or rows for a table."""

    doses: list[TreatmentOutcome] = field(default_factory=list)
    ablations: list[TreatmentOutcome] = field(default_factory=list)
    fine_tunes: list[TreatmentOutcome] = field(default_factory=list)
    sparing: list[TreatmentOutcome] = field(default_factory=list)
    exact: list[TreatmentOutcome] = field(default_factory=list)
    capability: list[dict[str, Any]] = field(default_factory=list)
    projections: list[dict[str, Any]] = field(default_factory=list)


def measure(lab: Lab[GuardrailsConfig]) -> Measured:
    """Chooses in the run's own models, and measures in them and in the fine-tunes.

    Raises:
        UserError: if run, set and directions do not belong together, a pole has no trait, or no fine-tune is
            misaligned.
    """
    lab.models.require_not_called(CORRUPTED, "the run's own model")
    trials, found = lab.trials(lab.config.samples, lab.config.controls), Findings()
    choices = _in_the_run(trials, lab.config, found)
    _in_fine_tunes(trials, choices, lab.config, found)
    made = {"positions": choices.arms.positions, "hook": choices.arms.hook}
    return Measured(_tables(found, choices, lab), Facts(choices, found.fine_tunes), made)


def _in_the_run(trials: Trials, config: GuardrailsConfig, found: Findings) -> Choices:
    """The choices, and all that is measured in base and corrupted model."""
    lab = trials.lab
    vectors, corrupted = BaseVectors(lab.trait_directions, lab.hooks), lab.model(CORRUPTED)
    choices = Choices.make(trials, corrupted, vectors, config)
    for model in (lab.base, corrupted):
        found.doses += trials.treat(model, lab.reporting, dose_pairs(choices.arms, config.strengths))
        found.ablations += _ablate(trials, model, choices.arms)
        found.projections += _project(trials, model, choices.arms)
        found.sparing += trials.treat(model, lab.reporting, choices.spared)
        _ask_facts(trials, model, choices, config, found)
    return choices


def _ask_facts(trials: Trials, model: Checkpoint, choices: Choices, config: GuardrailsConfig, found: Findings) -> None:
    """Exact answers under each dose and ablation; under controls at the strength that the SVV is amplified with."""
    if (questions := trials.capability()) is None:
        return
    half, exact = questions
    arms = replace(choices.arms, controls=())
    pairs = [*dose_pairs(arms, config.strengths), *ablation_pairs(arms, trials.lab.hooks)]
    pairs += [(control, choices.amplified) for control in choices.arms.controls]
    found.capability += [_exact_row(outcome) for outcome in exact.treat(model, half, pairs)]
    found.exact += exact.treat(model, half, choices.spared)


def dose_pairs(arms: Arms, strengths: Sequence[float]) -> list[Pair]:
    """Every arm with both signs and every control with one, at every strength (a random direction has no sign)."""
    both = [(arm, sign) for arm in arms.treated for sign in SIGNS]
    one = [(control, Operation.ADD) for control in arms.controls]
    return [(arm, at_hook(sign, arms.hook, c)) for arm, sign in both + one for c in strengths]


def ablation_pairs(arms: Arms, hooks: Sequence[str]) -> list[Pair]:
    """The SVV ablated in all ways and places; the others and the controls at the hook, and at all layers at once."""
    short = [at_hook(operation, arms.hook) for operation in ABLATIONS]
    short.append(Treatment(Operation.ABLATE, Reach.LAYER_WISE))
    others = [(arm, treatment) for arm in (*arms.treated, *arms.controls) if arm is not arms.svv for treatment in short]
    return [*((arms.svv, treatment) for treatment in ablations_of(hooks)), *others]


def _ablate(trials: Trials, model: Checkpoint, arms: Arms) -> list[TreatmentOutcome]:
    """All ablations on the reporting questions, and those of the SVV on the selection questions, to choose one."""
    lab = trials.lab
    pairs = ablation_pairs(arms, lab.hooks)
    own = [(arm, treatment) for arm, treatment in pairs if arm is arms.svv]
    return trials.treat(model, lab.selection, own) + trials.treat(model, lab.reporting, pairs)


def _project(trials: Trials, model: Checkpoint, arms: Arms) -> list[dict[str, Any]]:
    """Projections on the SVV over ranking prompts: mean with interval, spread over prompts, in residual norms."""
    lab, rows = trials.lab, []
    read = lab.read(model, lab.ranking_prompts)
    for hook in lab.hooks:
        norm = trials.layers.benches[hook].residual_norm
        for positions in PROJECTED:
            means = activation_means(read, hook, positions)
            values = means @ arms.svv.units[hook].double().numpy() / norm
            rows.append({"model": model.role, "hook": hook, "positions": positions, **_mean_and_spread(values)})
    return rows


def _in_fine_tunes(trials: Trials, choices: Choices, config: GuardrailsConfig, found: Findings) -> None:
    """Misaligned fine-tunes get the chosen doses, mildly corrupted ones the SVV's ablations.

    Controls get the treatment that was chosen for the SVV.
    """
    lab, arms = trials.lab, choices.arms
    pairs = [(arm, choices.repair[arm.name]) for arm in arms.treated]
    pairs += [(control, choices.amplified) for control in arms.controls]
    plain, members = trials.untouched(lab.base, lab.selection), lab.models.final
    for member, model in lab.each(members, "fine-tunes"):
        counts = trials.untouched(model, lab.selection)
        misaligned = score(counts).harmful >= config.least_harmful and rate_difference(counts, plain)[1] > 0
        mild = _is_mild(member, config.mild)
        if misaligned:
            found.fine_tunes += trials.treat(model, lab.reporting, pairs)
            found.sparing += trials.treat(model, lab.reporting, choices.spared)
        if mild:
            found.ablations += _ablate(trials, model, replace(arms, treated=[arms.svv]))
        if misaligned or mild:
            found.projections += _project(trials, model, arms)
    if not found.fine_tunes:
        raise UserError(
            f"None of the {len(members)} fine-tunes gives {config.least_harmful:.0%} harmful answers or more; list "
            "misaligned ones."
        )


def _is_mild(member: Member, ends: tuple[float, float]) -> bool:
    fraction = member.facts.get("bad_fraction")
    return isinstance(fraction, float) and ends[0] <= fraction <= ends[1]


def _tables(found: Findings, choices: Choices, lab: Lab[GuardrailsConfig]) -> dict[str, pd.DataFrame]:
    """All outcomes as tables; measured capability stands in the row of its behaviour."""
    arms = choices.arms
    doses, ablations = _table(found.doses, arms), _table(found.ablations, arms)
    if found.capability:
        keys, capability = ["model", "arm", *TREATMENT], pd.DataFrame(found.capability)
        doses, ablations = (table.merge(capability, how="left", on=keys) for table in (doses, ablations))
    kinds = {member.name: member.kind for member in lab.models.members}
    fine_tunes = _table(found.fine_tunes, arms)
    fine_tunes.insert(1, "tune", [kinds[model] for model in fine_tunes["model"]])
    return {
        "sweep": _table(choices.sweep, arms),
        "doses": doses,
        "ablations": ablations,
        "fine_tunes": fine_tunes,
        "projections": pd.DataFrame(found.projections),
        "sparing": sparing_rows(found.sparing, found.exact, kinds),
    }


def _table(outcomes: Sequence[TreatmentOutcome], arms: Arms) -> pd.DataFrame:
    return pd.DataFrame([_row(outcome, arms) for outcome in outcomes])


def _row(outcome: TreatmentOutcome, arms: Arms) -> dict[str, Any]:
    """What was done, the rates, the change of the harmful rate (paired, with interval), and the untouched model's."""
    plain = score(outcome.plain)
    change = rate_difference(outcome.counts, outcome.plain)
    return {
        "model": outcome.model,
        "half": outcome.half,
        "arm": outcome.source.name,
        "kind": outcome.source.kind,
        "positions": outcome.source.contrast,
        "cosine_svv": arms.cosine(outcome.source),
        **_named(outcome.treatment),
        **outcome.scores.to_dict(),
        "extra_incoherent": outcome.extra_incoherent,
        **dict(zip(("change", "change_low", "change_high"), change, strict=True)),
        **{f"untouched_{name}": getattr(plain, name) for name in ("harmful", "low", "high", "helpful", "incoherent")},
    }


def _exact_row(outcome: TreatmentOutcome) -> dict[str, Any]:
    """Exact answers (share), and the change from the untouched model with its interval."""
    change = rate_difference(outcome.counts, outcome.plain, {Label.HELPFUL: 1})
    names = ("capability_change", "capability_low", "capability_high")
    return {
        "model": outcome.model,
        "arm": outcome.source.name,
        **_named(outcome.treatment),
        "capability": outcome.scores.helpful,
        **dict(zip(names, change, strict=True)),
    }


def _named(treatment: Treatment) -> dict[str, Any]:
    values = (str(treatment.operation), str(treatment.reach), treatment.hook, treatment.strength)
    return dict(zip(TREATMENT, values, strict=True))


def _mean_and_spread(values: Float64[np.ndarray, "prompt"]) -> dict[str, float]:
    """Mean over prompts with its t interval, and standard deviation over prompts."""
    mean, low, high = t_interval(values)
    return {"mean": mean, "low": low, "high": high, "spread": float(values.std(ddof=1))}
