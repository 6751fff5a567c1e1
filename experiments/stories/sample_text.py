"""Text that the checkpoints write themselves, for SAEs of models whose training text is not at hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from activations.artefact import finish_artefact
from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import Role
from activations.tokens import TokenBatch
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers
from experiments.stories.config import TextSamplingConfig

KIND = "sampled_text"


def sample_text(checkpoints: Sequence[Checkpoint], config: TextSamplingConfig, folder: Path) -> Path:
    """Writes `sae_text.jsonl` and `sae_held_out.jsonl`: what each checkpoint says after its beginning-of-text token.

    Text of the fine-tuned model belongs to it: an SAE can show only what its text contains.

    Args:
        checkpoints: Who writes.
        config: How much.
        folder: Where the files go.

    Raises:
        UserError: for a tokenizer without a beginning-of-text token.
    """
    rows: dict[str, list[str]] = {"sae_held_out": [], "sae_text": []}
    for checkpoint in checkpoints:
        for number, text in enumerate(_texts(checkpoint, config)):
            row = json.dumps({"id": f"{checkpoint.role}:{number}", "text": text}, ensure_ascii=False)
            rows["sae_held_out" if number < config.held_out else "sae_text"].append(row)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    writers = {checkpoint.role: checkpoint.fingerprint for checkpoint in checkpoints}
    finish_artefact(folder, {"kind": KIND, "checkpoints": writers, **config.model_dump(mode="json")})
    return folder


def _texts(checkpoint: Checkpoint, config: TextSamplingConfig) -> list[str]:
    start = checkpoint.tokenizer.bos_token_id
    if start is None:
        raise UserError(
            f"The tokenizer of the {checkpoint.role} model {checkpoint.name} has no beginning-of-text token to sample "
            "from; give text files as prompts.sae_text and prompts.sae_held_out instead of sample_text."
        )
    opening = TokenBatch(("start",), (np.array([start], np.int32),), (np.array([Role.SPECIAL], np.uint8),))
    sampling = SamplingConfig(
        samples=config.texts + config.held_out,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    ((texts,),) = sample_answers(checkpoint, opening, sampling)
    return [text for text in texts if text]
