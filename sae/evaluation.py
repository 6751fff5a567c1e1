"""An SAE's metrics on the base and on the corrupted model, side by side.

An SAE that explains the corrupted model much worse than the base hides what changed: the change is then in what its
latents leave over, and no ranking of latents shows it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from activations.artefact import finish_artefact, read_config, read_json, write_json
from sae.evaluate import DENSE, DecoderCosines, SAEMetrics

KIND = "sae_metrics"
METRICS = "metrics.json"
# The corrupted model's FVU, as a multiple of the base's, from which the SAE explains it worse or much worse.
WORSE, MUCH_WORSE = 1.25, 2.0
# What is shown of `SAEMetrics`: label, attribute, format.
SHOWN = (
    ("FVU (unexplained variance)", "fvu", ".4f"),
    ("explained variance", "explained_variance", ".4f"),
    ("cosine", "cosine", ".4f"),
    ("L2 ratio", "l2_ratio", ".4f"),
    ("L0", "l0", ".1f"),
    ("L1", "l1", ".2f"),
    ("dead latents", "dead_fraction", ".1%"),
    (f"dense latents (> {DENSE:.0%} of tokens)", "dense_fraction", ".1%"),
    ("cross-entropy", "ce_clean", ".4f"),
    ("cross-entropy, SAE spliced in", "ce_spliced", ".4f"),
    ("CE recovered, against zero ablation", "ce_recovered", ".4f"),
    ("CE recovered, against mean ablation", "ce_recovered_mean", ".4f"),
    ("KL(clean || SAE spliced in)", "kl_spliced", ".4f"),
    ("KL recovered, against zero ablation", "kl_recovered", ".4f"),
    ("KL recovered, against mean ablation", "kl_recovered_mean", ".4f"),
    ("tokens", "rows", ",d"),
)


@dataclass(frozen=True)
class SAEEvaluation:
    """What an evaluation finds.

    Attributes:
        base: Metrics on the base's activations and inside the base.
        corrupted: The same of the corrupted model, which reads the same tokens; None without one.
        decoder: How alike the SAE's own decoder rows are.
        difference_residual: Share of the models' mean difference in the latents' residual (`unexplained_difference`).
    """

    base: SAEMetrics
    corrupted: SAEMetrics | None
    decoder: DecoderCosines
    difference_residual: float | None

    def save(self, folder: Path, config: Mapping[str, Any], parents: Mapping[str, Path] | None = None) -> None:
        """Writes `metrics.json` as an artefact; `config` says what was evaluated."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / METRICS, asdict(self))
        finish_artefact(folder, {**config, "kind": KIND}, parents)

    @classmethod
    def load(cls, folder: Path) -> "SAEEvaluation":
        """Reads the artefact.

        Raises:
            UserError: if the folder is missing, unfinished, or of another kind.
        """
        read_config(folder, KIND)
        found = read_json(folder / METRICS)
        corrupted = SAEMetrics(**found["corrupted"]) if found["corrupted"] is not None else None
        decoder = DecoderCosines(**found["decoder"])
        return cls(SAEMetrics(**found["base"]), corrupted, decoder, found["difference_residual"])


def side_by_side(base: Mapping[str, Any], corrupted: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """Label, the base's number and the corrupted model's of everything in `SHOWN`; "–" for what is missing."""
    return [
        (label, *(f"{m[name]:{spec}}" if m is not None and name in m else "–" for m in (base, corrupted)))
        for label, name, spec in SHOWN
    ]


def verdicts(fvu: float, corrupted_fvu: float, residual: float) -> list[str]:
    """What the comparison means for a ranking of latents, in sentences.

    Args:
        fvu: Of the base.
        corrupted_fvu: Of the corrupted model.
        residual: `SAEEvaluation.difference_residual`.
    """
    ratio = corrupted_fvu / max(fvu, 1e-12)
    how = "about as well as" if ratio < WORSE else "worse than" if ratio < MUCH_WORSE else "much worse than"
    numbers = f"FVU {corrupted_fvu:.4f} against {fvu:.4f}, {ratio:.2f} times as much"
    found = [f"The SAE explains the corrupted model {how} the base ({numbers})."]
    if not math.isnan(residual):
        found.append(
            f"Of the squared norm of the models' mean difference, {residual:.1%} is not in what the reconstructions "
            "differ by: it stays in the latents' residual, which no ranking of latents shows."
        )
    return found
