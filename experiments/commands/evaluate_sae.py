"""Evaluates an SAE on a base and a corrupted model, side by side (`sae-diff evaluate-sae`)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from activations.artefact import open_folder
from activations.checkpoint import Checkpoint, load_checkpoint, require_same_tokenizer
from activations.config import HarvestConfig
from activations.device import require_device
from activations.harvesting import LiveActivations, batch_tokens_for
from activations.prompt_files import load_prompts
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.ranking.residual import unexplained_difference
from experiments.commands.requests import EvaluateRequest
from sae.evaluate import decoder_cosines, evaluate_sae
from sae.evaluation import SAEEvaluation, side_by_side, verdicts
from sae.storage import load_sae, own_hook, require_fit

if TYPE_CHECKING:
    from sae_lens import SAE


def evaluate_on_models(request: EvaluateRequest) -> SAEEvaluation:
    """Evaluates an SAE on one or two checkpoints that read the same prompts; nothing but the result is written.

    Raises:
        UserError: for an SAE, checkpoint or prompts that cannot be read or do not fit together, or if `out` is in use.
    """
    require_device(request.device)
    texts, progress = load_prompts(request.prompts), not request.quiet
    sae = load_sae(request.sae, request.device)
    hook = request.hook or own_hook(sae, request.sae)
    checkpoints = {role: load_checkpoint(config, role) for role, config in request.models.items()}
    tokens = tokenize_prompts(texts, checkpoints["base"].tokenizer, request.max_length)
    sources = _fitting_sources(sae, hook, checkpoints, tokens)
    if request.out is not None:
        open_folder(request.out, request.overwrite)
    metrics = {role: evaluate_sae(sae, checkpoints[role], sources[role], tokens, hook, progress) for role in sources}
    residual = None
    if "corrupted" in sources:
        residual = unexplained_difference(sae, sources["base"], sources["corrupted"], hook, "all")
    found = SAEEvaluation(metrics["base"], metrics.get("corrupted"), decoder_cosines(sae), residual)
    if request.out is not None:
        names = {role: checkpoint.name for role, checkpoint in checkpoints.items()}
        found.save(request.out, {"sae": request.sae, "hook": hook, "models": names, "tokens_hash": tokens.hash})
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
