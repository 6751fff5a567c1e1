"""The numbers to quote: how much the directions agree, and how much of EM each treatment removes elsewhere."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from diffing.behavior.rates import score
from diffing.directions.misalignment import CONTRASTS, Contrast
from diffing.steering.transfer import Treatment, share_removed
from diffing.tables import where
from experiments.convergence.compare import FINE_TUNES, WITH_HARMLESS, WITH_LATENT
from experiments.convergence.config import FINE_TUNE, HARMLESS
from experiments.frame.experiment import Measured
from experiments.frame.trials import TreatmentOutcome
from experiments.names import BASE, COVARIANCE, ISOTROPIC
from experiments.output.tables import Section, percent, percent_interval

# What Soligo et al. report: ablating another fine-tune's direction removes 78-90%, a random one less than 10%.
TRANSFER_TARGET, RANDOM_TARGET, COHERENCE_TARGET = 0.78, 0.10, 0.10
# What a chosen treatment is known by in the table of transfers.
_KEYS = ("contrast", "operation", "reach", "hook", "strength")


def summarise(measured: Measured) -> dict[str, Any]:
    """What `summary.json` holds.

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
    facts, cosines, adapters = measured.facts, measured.tables["cosines"], measured.tables["adapters"]
    plain = {outcome.model: score(outcome.plain).to_dict() for outcome in facts.transferred}
    return {
        "base": score(facts.base).to_dict(),
        "fine_tunes": [{"name": name, "kind": kind, **plain[name]} for name, kind in facts.kinds.items()],
        "cosines": {
            contrast: _cosines_by_hook(where(cosines, cosines["contrast"] == contrast)) for contrast in CONTRASTS
        },
        "treatments": [_treatment(contrast, treatment, facts.transferred) for contrast, treatment in facts.chosen],
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


def finding(summary: Mapping[str, Any]) -> str:
    """The treatment that removes most elsewhere, in one sentence; those that reach the target come first."""
    best = max(summary["treatments"], key=lambda row: (row["reaches_target"], row["others"]["removed"]))
    others = best["others"]
    return (
        f"{treatment_name(best)}: a fine-tune's direction removes {others['removed']:.0%} of another's harmful answers "
        f"(95% interval {others['low']:.0%} to {others['high']:.0%}, least {others['least']:.0%}), random directions "
        f"{_random_removed(best):.0%}; {others['incoherent']:.0%} of the answers are incoherent."
    )


def treatment_name(row: Mapping[str, Any]) -> str:
    """A treatment of `summary.json` in words."""
    strength = f" {row['strength']:g}" if row["strength"] else ""
    where_to = f"{row['reach']} {row['hook']}".rstrip()
    return f"{row['operation'].replace('_', ' ')}{strength}: {row['contrast']}, {where_to}"


def arms(treatment: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Whose direction is taken out, and what that does; the first two are no controls."""
    return [
        ("its own", treatment["own"]),
        ("another fine-tune's", treatment["others"]),
        *treatment["harmless"].items(),
        *((f"random, {kind}", treatment[kind]) for kind in (ISOTROPIC, COVARIANCE)),
    ]


def sections(tables: Mapping[str, pd.DataFrame], summary: Mapping[str, Any], hook: str) -> list[Section]:
    """All tables.

    Args:
        tables: "cosines", "transfer" and "adapters".
        summary: What `summarise` returns.
        hook: Where single cosines are shown: the run's hook.
    """
    treatments = summary["treatments"]
    return [
        Section("Untouched models", _model_rows(summary)),
        Section("Cosines between fine-tunes", _cosine_rows(summary)),
        Section(f"Cosines at {hook} [95%] (by chance)", _pair_rows(tables["cosines"], hook), printed=False),
        Section("EM removed in other fine-tunes by the chosen treatments", [_target_row(row) for row in treatments]),
        Section("EM removed by the chosen treatments", _arm_rows(treatments), printed=False),
        Section(
            "EM removed in each model by each direction [95%]",
            _transfer_rows(tables["transfer"], treatments),
            printed=False,
        ),
        Section("What rank-1 adapters write: mean absolute cosines (by chance)", _adapter_rows(summary)),
        Section(
            "What rank-1 adapters write, block by block: absolute cosines (by chance)",
            _block_rows(tables["adapters"]),
            printed=False,
        ),
    ]


def _model_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    models = [{"name": BASE, "kind": "", **summary["base"]}, *summary["fine_tunes"]]
    return [
        {
            "model": row["name"],
            "kind": row["kind"],
            "harmful": percent(row["harmful"]),
            "95% interval": percent_interval(row),
            "helpful": percent(row["helpful"]),
            "incoherent": percent(row["incoherent"]),
        }
        for row in models
    ]


def _cosine_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a contrast and hook."""
    return [
        {
            "contrast": contrast,
            "hook": hook,
            "mean": f"{row['mean']:.2f}",
            "least": f"{row['least']:.2f}",
            "by chance": f"{row['chance']:.2f}",
            "with harmless ones": ", ".join(f"{name} {cosine:.2f}" for name, cosine in row["harmless"].items()),
        }
        for contrast, hooks in summary["cosines"].items()
        for hook, row in hooks.items()
    ]


def _pair_rows(cosines: pd.DataFrame, hook: str) -> list[dict[str, str]]:
    """One row a pair, one column a contrast."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in where(cosines, cosines["hook"] == hook).to_dict("records"):
        named = (row["relation"], row["first"], row["second"])
        shown = f"{row['cosine']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['chance']:.2f})"
        rows.setdefault(named, {})[row["contrast"]] = shown
    return [
        {"fine-tune": first, "with": relation, "of": second, **cells}
        for (relation, first, second), cells in rows.items()
    ]


def _target_row(treatment: Mapping[str, Any]) -> dict[str, str]:
    """A treatment, and whether it reaches what was published."""
    others = treatment["others"]
    return {
        "treatment": treatment_name(treatment),
        "in others": percent(others["removed"]),
        "95% interval": percent_interval(others),
        "least": percent(others["least"]),
        "in its own": percent(treatment["own"]["removed"]),
        "random": percent(_random_removed(treatment)),
        "incoherent": percent(others["incoherent"]),
        "target": "reached" if treatment["reaches_target"] else "missed",
    }


def _random_removed(treatment: Mapping[str, Any]) -> float:
    """What random directions of the stronger kind remove."""
    return max(treatment[kind]["removed"] for kind in (ISOTROPIC, COVARIANCE))


def _arm_rows(treatments: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a treatment and whose direction is taken out."""
    return [
        {"treatment": treatment_name(treatment), "direction": whose} | _removed_cells(found)
        for treatment in treatments
        for whose, found in arms(treatment)
    ]


def _removed_cells(found: Mapping[str, Any]) -> dict[str, str]:
    shares = ("least", "most", "harmful", "helpful", "incoherent", "extra_incoherent")
    cells = {name.replace("_", " "): percent(found[name]) for name in shares}
    interval = percent_interval(found)
    return {"removed": percent(found["removed"]), "95% interval": interval, **cells, "pairs": str(found["pairs"])}


def _transfer_rows(transfer: pd.DataFrame, treatments: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a direction and model, one column a treatment; the single random directions are left out."""
    shown = where(transfer, transfer["kind"].isin([FINE_TUNE, HARMLESS]))
    names = {tuple(row[key] for key in _KEYS): treatment_name(row) for row in treatments}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in shown.to_dict("records"):
        treatment = tuple(row[key] for key in _KEYS)
        cell = f"{row['removed']:.0%} [{row['removed_low']:.0%}, {row['removed_high']:.0%}]"
        rows.setdefault((row["direction"], row["model"]), {})[names[treatment]] = cell
    return [{"direction": direction, "model": model, **cells} for (direction, model), cells in rows.items()]


def _adapter_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row an adapter, one column a target."""
    rows = []
    for row in summary["adapters"]:
        cells = {name: f"{cosine:.2f} ({row['chance'][name]:.2f})" for name, cosine in row["cosines"].items()}
        ranks = ", ".join(map(str, row["toxic_ranks"]))
        rows.append({"member": row["member"], **cells, "toxic latent's rank by block": ranks})
    return rows


def _block_rows(adapters: pd.DataFrame) -> list[dict[str, str]]:
    """One row a block, one column a target."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in adapters.to_dict("records"):
        named = "" if pd.isna(row["latent"]) else f", latent {row['latent']}, rank {row['rank']}"
        cells = rows.setdefault((row["member"], row["hook"]), {})
        cells[row["target"]] = f"{row['cosine']:.2f} ({row['chance']:.2f}{named})"
    return [{"member": member, "hook": hook, **cells} for (member, hook), cells in rows.items()]
