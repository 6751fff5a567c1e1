"""An SAE's metrics on the base and on the corrupted model, side by side (`sae-diff evaluate-sae`).

An SAE that explains the corrupted model much worse than the base hides what changed: the change is then in what its
latents leave over, and no ranking of latents shows it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from activations.artefact import finish_artefact, open_folder, read_config, read_json, write_json
from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.config import CheckpointConfig, HarvestConfig
from activations.device import require_device
from activations.harvesting import LiveActivations, batch_tokens_for
from activations.prompt_files import load_prompts
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.ranking.residual import unexplained_difference
from sae.evaluate import DENSE, DecoderCosines, SAEMetrics, decoder_cosines, evaluate_sae
from sae.storage import load_sae, own_hook, require_fit

if TYPE_CHECKING:
    from sae_lens import SAE

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


def evaluate_on_models(
    source: str,
    models: Mapping[str, CheckpointConfig],
    prompts: Path,
    hook: str | None = None,
    max_length: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> SAEEvaluation:
    """Evaluates an SAE on one or two checkpoints that read the same prompts; nothing but the result is written.

    Args:
        source: Folder of the SAE, or release:sae_id of sae-lens's registry.
        models: "base" and, if there is one, "corrupted".
        prompts: File of prompts (formats: `load_prompts`).
        hook: Hook point; None takes the one that the SAE was trained on.
        max_length: See `tokenize_prompts`.
        out: Folder for the result.
        overwrite: Whether to replace what `out` holds.
        progress: Shows bars.

    Raises:
        UserError: for an SAE, checkpoint or prompts that cannot be read or do not fit together, or if `out` is in use.
    """
    base = models["base"]
    require_device(base.device)
    texts = load_prompts(prompts)
    sae = load_sae(source, base.device)
    hook = hook or own_hook(sae, source)
    checkpoints = {role: load_checkpoint(config, role) for role, config in models.items()}
    tokens = tokenize_prompts(texts, checkpoints["base"].tokenizer, max_length)
    sources = _fitting_sources(sae, hook, checkpoints, tokens)
    if out is not None:
        open_folder(out, overwrite)
    metrics = {role: evaluate_sae(sae, checkpoints[role], sources[role], tokens, hook, progress) for role in sources}
    residual = None
    if "corrupted" in sources:
        residual = unexplained_difference(sae, sources["base"], sources["corrupted"], hook, "all")
    found = SAEEvaluation(metrics["base"], metrics.get("corrupted"), decoder_cosines(sae), residual)
    if out is not None:
        names = {role: checkpoint.name for role, checkpoint in checkpoints.items()}
        found.save(out, {"sae": source, "hook": hook, "models": names, "tokens_hash": tokens.hash})
    return found


def _fitting_sources(
    sae: "SAE", hook: str, checkpoints: Mapping[str, Checkpoint], tokens: TokenBatch
) -> dict[str, LiveActivations]:
    """Activations of every model on the tokens, once it is clear that they and the SAE belong together."""
    base = checkpoints["base"].config
    settings = HarvestConfig(hooks=(hook,), batch_tokens=batch_tokens_for(base.device))
    sources = {role: LiveActivations(checkpoint, tokens, settings) for role, checkpoint in checkpoints.items()}
    for role, checkpoint in checkpoints.items():
        require_same_tokenizer(checkpoints["base"], checkpoint)
        require_fit(sae, hook, sources[role].d_model(hook), base.model)
    return sources


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


def print_evaluation(found: SAEEvaluation, console: Console) -> None:
    """Both models side by side, the decoder, and the verdict."""
    base, corrupted = found.base.to_dict(), found.corrupted and found.corrupted.to_dict()
    table = Table("SAE", "base", *(["corrupted"] if corrupted else []), box=None)
    for row in side_by_side(base, corrupted):
        table.add_row(*row[: len(table.columns)])
    console.print(table)
    cosines = found.decoder
    console.print(f"largest cosine with another decoder row: mean {cosines.mean:.2f}, max {cosines.max:.2f}")
    if corrupted and found.difference_residual is not None:
        for sentence in verdicts(base["fvu"], corrupted["fvu"], found.difference_residual):
            console.print(sentence, soft_wrap=True)
