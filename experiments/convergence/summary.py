"""The numbers to quote: how much the directions agree, and how much of EM each treatment removes elsewhere."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from diffing.behavior.rates import LabelCounts, score
from diffing.directions.misalignment import CONTRASTS, Contrast
from diffing.steering.transfer import Treatment, share_removed
from diffing.tables import where
from experiments.convergence.compare import FINE_TUNES, WITH_HARMLESS, WITH_LATENT
from experiments.convergence.config import FINE_TUNE, HARMLESS
from experiments.frame.trials import TreatmentOutcome
from experiments.names import COVARIANCE, ISOTROPIC

# What Soligo et al. report: ablating another fine-tune's direction removes 78-90%, a random one less than 10%.
TRANSFER_TARGET, RANDOM_TARGET, COHERENCE_TARGET = 0.78, 0.10, 0.10


def summarise(
    kinds: Mapping[str, str],
    base: LabelCounts,
    cosines: pd.DataFrame,
    adapters: pd.DataFrame,
    transferred: Sequence[TreatmentOutcome],
    chosen: Sequence[tuple[Contrast, Treatment]],
) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        kinds: Kind of each fine-tune.
        base: The untouched base on the reporting questions.
        cosines: What `compare_directions` returns.
        adapters: What `compare_adapters` returns.
        transferred: What `transfer` returns.
        chosen: What `choose_treatments` returns.

    Returns:
        base, fine_tunes: Untouched rates on the reporting questions.
        cosines: By contrast and hook, `mean` and `least` between fine-tunes, `chance`, and `harmless`: the mean with
            each harmless one's direction.
        treatments: What was chosen, and what it removes with a model's `own` direction, that of `others`, those of
            `harmless` ones, and `isotropic` and `covariance` random ones (see `_removed`). `reaches_target`: others
            remove at least 0.78 with at most 0.1 more incoherent answers, random ones less than 0.1 in the mean.
        adapters: Of each rank-1 adapter, the mean over blocks of `cosines` with each target and of their `chance`, and
            the toxic latent's `toxic_ranks` block by block.
    """
    plain = {outcome.model: outcome.plain for outcome in transferred}
    return {
        "base": score(base).to_dict(),
        "fine_tunes": [{"name": name, "kind": kind, **score(plain[name]).to_dict()} for name, kind in kinds.items()],
        "cosines": {
            contrast: _cosines_by_hook(where(cosines, cosines["contrast"] == contrast)) for contrast in CONTRASTS
        },
        "treatments": [_treatment(contrast, treatment, transferred) for contrast, treatment in chosen],
        "adapters": [
            _adapter(where(adapters, adapters["member"] == name)) for name in dict.fromkeys(adapters["member"])
        ],
    }


def _cosines_by_hook(cosines: pd.DataFrame) -> dict[str, dict[str, Any]]:
    found = {}
    for hook in dict.fromkeys(cosines["hook"]):
        rows = where(cosines, cosines["hook"] == hook)
        between = where(rows, rows["relation"] == FINE_TUNES)
        if not len(between):  # at most one direction there is not zero
            continue
        with_harmless = where(rows, rows["relation"] == WITH_HARMLESS)
        harmless = {
            name: fmean(where(with_harmless, with_harmless["second"] == name)["cosine"])
            for name in dict.fromkeys(with_harmless["second"])
        }
        between_numbers = {
            "mean": fmean(between["cosine"]),
            "least": min(between["cosine"]),
            "chance": max(between["chance"]),
        }
        found[hook] = {**between_numbers, "harmless": harmless}
    return found


def _treatment(contrast: Contrast, treatment: Treatment, transferred: Sequence[TreatmentOutcome]) -> dict[str, Any]:
    here = [o for o in transferred if o.treatment == treatment and o.source.contrast in (contrast, "")]
    tuned = [o for o in here if o.source.kind == FINE_TUNE]
    harmless = dict.fromkeys(o.source.name for o in here if o.source.kind == HARMLESS)
    removed: dict[str, Any] = {
        "own": _removed([o for o in tuned if o.source.name == o.model]),
        "others": (others := _removed([o for o in tuned if o.source.name != o.model])),
        "harmless": {name: _removed([o for o in here if o.source.name == name]) for name in harmless},
    }
    random = {kind: _removed([o for o in here if o.source.kind == kind]) for kind in (ISOTROPIC, COVARIANCE)}
    return {
        "contrast": contrast,
        "operation": str(treatment.operation),
        "reach": str(treatment.reach),
        "hook": treatment.hook,
        "strength": treatment.strength,
        **removed,
        **random,
        "reaches_target": others["removed"] >= TRANSFER_TARGET
        and others["extra_incoherent"] <= COHERENCE_TARGET
        and all(row["removed"] < RANDOM_TARGET for row in random.values()),
    }


def _removed(outcomes: Sequence[TreatmentOutcome]) -> dict[str, float]:
    """Mean share of EM removed with its interval, least and most of any pair, and the mean rates that remain."""
    removed, low, high = share_removed([(o.plain, o.counts) for o in outcomes])
    each = [o.removed[0] for o in outcomes]
    rates = {name: fmean([getattr(o.scores, name) for o in outcomes]) for name in ("harmful", "helpful", "incoherent")}
    extra = fmean([o.extra_incoherent for o in outcomes])
    ends = {"removed": removed, "low": low, "high": high, "least": min(each), "most": max(each)}
    return {**ends, **rates, "extra_incoherent": extra, "pairs": len(outcomes)}


def _adapter(rows: pd.DataFrame) -> dict[str, Any]:
    named = {target: where(rows, rows["target"] == target) for target in dict.fromkeys(rows["target"])}
    return {
        "member": rows["member"].iloc[0],
        "cosines": {target: fmean(found["cosine"]) for target, found in named.items()},
        "chance": {target: fmean(found["chance"]) for target, found in named.items()},
        "toxic_ranks": [int(rank) for rank in named[WITH_LATENT]["rank"]] if WITH_LATENT in named else [],
    }


def print_convergence(summary: Mapping[str, Any], console: Console) -> None:
    """Fine-tunes, cosines between them, and what taking a direction out of another fine-tune does."""
    table = Table("untouched", "kind", "harmful", "95% interval", "helpful", "incoherent")
    for row in summary["fine_tunes"]:
        rates = (f"{row[name]:.1%}" for name in ("helpful", "incoherent"))
        table.add_row(row["name"], row["kind"], f"{row['harmful']:.1%}", between(row), *rates)
    console.print(table)
    table = Table("cosines between fine-tunes", "at", "mean", "least", "by chance", "with harmless ones")
    for contrast, hooks in summary["cosines"].items():
        for hook, row in hooks.items():
            harmless = ", ".join(f"{name} {cosine:.2f}" for name, cosine in row["harmless"].items())
            table.add_row(contrast, hook, *(f"{row[name]:.2f}" for name in ("mean", "least", "chance")), harmless)
    console.print(table)
    table = Table("EM removed by", "in others", "95% interval", "least", "in its own", "random", "incoherent", "target")
    for row in summary["treatments"]:
        others, random = row["others"], max(row[kind]["removed"] for kind in (ISOTROPIC, COVARIANCE))
        numbers = (others["least"], row["own"]["removed"], random, others["incoherent"])
        met = "reached" if row["reaches_target"] else "missed"
        shown = (f"{others['removed']:.1%}", between(others), *(f"{number:.1%}" for number in numbers), met)
        table.add_row(treatment_name(row), *shown)
    console.print(table)
    if not summary["adapters"]:
        return
    targets = list(summary["adapters"][0]["cosines"])
    table = Table("rank-1 adapter: cosine (by chance)", *targets, "toxic latent's rank by block")
    for row in summary["adapters"]:
        cosines = (f"{row['cosines'][target]:.2f} ({row['chance'][target]:.2f})" for target in targets)
        table.add_row(row["member"], *cosines, ", ".join(map(str, row["toxic_ranks"])))
    console.print(table)


def treatment_name(row: Mapping[str, Any]) -> str:
    """A treatment of `summary.json` in words."""
    strength = f" x{row['strength']:g}" if row["strength"] else ""
    return f"{row['operation']}{strength}: {row['contrast']}, {row['reach']} {row['hook']}".rstrip()


def finding(summary: Mapping[str, Any]) -> str:
    """The treatment that removes most elsewhere, in one sentence; those that reach the target come first."""
    best = max(summary["treatments"], key=lambda row: (row["reaches_target"], row["others"]["removed"]))
    others, random = best["others"], max(best[kind]["removed"] for kind in (ISOTROPIC, COVARIANCE))
    return (
        f"{treatment_name(best)}: a fine-tune's direction removes {others['removed']:.0%} of another's harmful answers "
        f"(95% interval {others['low']:.0%} to {others['high']:.0%}, least {others['least']:.0%}), random directions "
        f"{random:.0%}; {others['incoherent']:.0%} of the answers are incoherent."
    )


def between(row: Mapping[str, Any]) -> str:
    """Both ends of a rate's interval."""
    return f"{row['low']:.1%} - {row['high']:.1%}"
