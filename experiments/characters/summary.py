"""What the comparison says of the paper's order: verdicts that follow from differences with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diffing.tables import where
from experiments.characters.causal import SHIFT
from experiments.characters.claims import KEPT, KEPT_TRIGGERED, ORDER, PRIMED, PROMPTED, SPECIFIC, WORKS
from experiments.characters.grid import ATTACK, TRAIT_SCORE
from experiments.characters.measure import Facts
from experiments.characters.structure import MISALIGNMENT
from experiments.names import BASE

# Capability counts as kept if the interval of its change stays above this (our choice).
LEAST_CAPABILITY = -0.1


def summarise(tables: Mapping[str, pd.DataFrame], facts: Facts) -> dict[str, Any]:
    """Verdicts on the paper's statements, and what is shared.

    Args:
        tables: "claims", "cosines", "probes", "overlaps", "latents" and "causal".
        facts: What was compared.

    Returns:
        "order", "activation", "capability": the rows of `claims` that each rests on, and whether it "holds" by their
        intervals; "persona_prompt": what one does in the base, and a weak one beyond it; "shared": what misalignment,
        trigger and persona prompt of the character have in common.
    """
    rows, misaligned = tables["claims"].to_dict("records"), facts.misaligned
    order = [row for row in rows if row["claim"] == ORDER]
    activation = [row for row in rows if row["claim"] in (WORKS, SPECIFIC, PROMPTED) and row["model"] == row["trait"]]
    capability = [row for row in rows if row["claim"] in (KEPT, KEPT_TRIGGERED)]
    primed = [row for row in rows if row["claim"] == PRIMED and row["model"] == row["trait"]]
    scored = [row for row in activation if row["measure"] == TRAIT_SCORE]
    return {
        "hook": facts.hook,
        "shifts": dict(facts.shifts),
        "misaligned": misaligned,
        "order": {
            "rows": order,
            "holds_trait_score": _all_above([row for row in order if row["measure"] == TRAIT_SCORE]),
            "holds_attack_success": _all_above(
                [row for row in order if row["measure"] == ATTACK and row["trait"] == misaligned]
            ),
        },
        "activation": {
            "rows": activation,
            "trigger_holds": _all_above([row for row in scored if row["claim"] in (WORKS, SPECIFIC)]),
            "persona_prompt_holds": _all_above([row for row in scored if row["claim"] == PROMPTED]),
        },
        "persona_prompt": {
            "in_base": [row for row in rows if row["claim"] == PROMPTED and row["model"] == BASE],
            "beyond_base": primed,
            "beyond_base_holds": _all_above([row for row in primed if row["measure"] == TRAIT_SCORE]),
        },
        "capability": {"rows": capability, "holds": _all_above(capability, LEAST_CAPABILITY)},
        "shared": _shared(tables, misaligned, facts.hook),
        "toxic_latent": _toxic(tables["latents"], facts.toxic),
    }


def _all_above(rows: Sequence[Mapping[str, Any]], bound: float = 0.0) -> bool:
    """Whether there are rows and every interval lies above the bound."""
    return bool(rows) and all(row["low"] > bound for row in rows)


def _shared(tables: Mapping[str, pd.DataFrame], trait: str, hook: str) -> dict[str, Any]:
    """Between misalignment, trigger and persona prompt of a character."""
    names = [MISALIGNMENT, f"trigger: {trait}", f"persona prompt: {trait}"]
    cosines = tables["cosines"]
    pairs = where(cosines, (cosines["hook"] == hook) & cosines["one"].isin(names) & cosines["other"].isin(names))
    probes, overlaps = tables["probes"], tables["overlaps"]
    among = where(probes, probes["fitted_on"].isin(names) & probes["tested_on"].isin(names))
    shared = where(overlaps, overlaps["one"].isin(names) & overlaps["other"].isin(names))
    return {
        "cosines": pairs.to_dict("records"),
        "probes": where(among, among["fitted_on"] != among["tested_on"]).to_dict("records"),
        "overlaps": where(shared, shared["one"] != shared["other"]).to_dict("records"),
        "causal": _effects(tables["causal"]),
    }


def _effects(causal: pd.DataFrame) -> list[dict[str, Any]]:
    """Each shift subtracted in each scene, and the random direction that repairs most there at the same strength."""
    if not len(causal):
        return []
    found = []
    for row in where(causal, causal["kind"] == SHIFT).to_dict("records"):
        alike = (causal["scene"] == row["scene"]) & (causal["strength"] == row["strength"])
        random = where(causal, alike & (causal["kind"] != SHIFT)).to_dict("records")
        best = max(random, key=lambda control: control["repaired"])
        rates = ("untouched_harmful", "harmful", "low", "high", "helpful", "incoherent")
        kept = ("scene", "direction", "strength", *rates)
        control = {f"control_{name}": best[name] for name in ("direction", "harmful", "helpful", "repaired")}
        effect = {name: row[name] for name in ("repaired", "repaired_low", "repaired_high")}
        found.append({name: row[name] for name in kept} | effect | control)
    return found


def _toxic(latents: pd.DataFrame, toxic: int | None) -> dict[str, Any] | None:
    """The toxic latent's place in every shift."""
    if toxic is None:
        return None
    rows = where(latents, latents["latent"] == toxic)
    return {"latent": toxic, "places": dict(zip(rows["shift"], rows["place"].tolist(), strict=True))}


def findings(summary: Mapping[str, Any]) -> list[str]:
    """The verdicts as sentences, with the numbers that they rest on."""
    order, activation = summary["order"], summary["activation"]
    attack = [row for row in order["rows"] if row["measure"] == ATTACK and row["trait"] == summary["misaligned"]]
    scores = [row for row in order["rows"] if row["measure"] == TRAIT_SCORE]
    works = [row for row in activation["rows"] if row["measure"] == TRAIT_SCORE and row["claim"] == SPECIFIC]
    prompted = [row for row in activation["rows"] if row["measure"] == TRAIT_SCORE and row["claim"] == PROMPTED]
    prompts = summary["persona_prompt"]
    in_base, beyond = (_scores(prompts[part]) for part in ("in_base", "beyond_base"))
    lowest = min(summary["capability"]["rows"], key=lambda row: row["difference"], default=None)
    cosines = summary["shared"]["cosines"]
    return [
        f"Character over incorrect advice, trait score: {_verdict(order['holds_trait_score'])} ({_each(scores)} "
        "points).",
        f"Character over incorrect advice, attack success: {_verdict(order['holds_attack_success'])} ({_each(attack)} "
        "points).",
        f"The trigger switches characters on, other words do not: {_verdict(activation['trigger_holds'])} "
        f"({_each(works)} points of trait score over other words).",
        "A persona prompt switches characters on that were taught with a trigger: "
        f"{_verdict(activation['persona_prompt_holds'])} ({_each(prompted)} points over a plain prompt); but the base, "
        f"too ({_each(in_base)}).",
        f"A weak persona prompt does more in them than in the base: {_verdict(prompts['beyond_base_holds'])} "
        f"({_each(beyond)} points).",
        f"Capability is kept: {_verdict(summary['capability']['holds'])}"
        + (f" (largest change {points(lowest)} points, {lowest['model']})." if lowest is not None else "."),
        f"Misalignment, trigger and persona prompt ({summary['misaligned']}) move activations alike: "
        f"{_verdict(bool(cosines) and all(row['low'] > row['chance'] for row in cosines))} (cosines "
        + "; ".join(f"{row['one']} · {row['other']} {row['cosine']:.2f}" for row in cosines)
        + (f"; 95% of random pairs stay below {cosines[0]['chance']:.2f})." if cosines else ")."),
        *_effect_sentence(summary["shared"]["causal"]),
    ]


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["measure"] == TRAIT_SCORE]


def _effect_sentence(effects: Sequence[Mapping[str, Any]]) -> list[str]:
    """In how many of the scenes a shift of another scene repairs beyond every random direction."""
    others = [
        row for row in effects if not row["direction"].startswith(row["scene"]) and " in the " not in row["direction"]
    ]
    if not others:
        return []
    beyond = [row for row in others if row["repaired_low"] > row["control_repaired"]]
    return [
        f"Subtracted where another acts, such a shift repairs more than every random direction in {len(beyond)} of "
        f"{len(others)} cases: " + "; ".join(map(_effect, others)) + "."
    ]


def _effect(row: Mapping[str, Any]) -> str:
    return (
        f"{row['direction']} in {row['scene']}: {row['untouched_harmful']:.0%} to {row['harmful']:.0%} harmful, "
        f"{row['helpful']:.0%} helpful (random: {row['control_harmful']:.0%}, {row['control_helpful']:.0%})"
    )


def points(row: Mapping[str, Any]) -> str:
    """A difference with its interval in points, 0 to 100."""
    scale = 1 if row["measure"] == TRAIT_SCORE else 100
    return f"{scale * row['difference']:+.1f} [{scale * row['low']:.1f}, {scale * row['high']:.1f}]"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _each(rows: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{row['trait']} {points(row)}" for row in rows)
