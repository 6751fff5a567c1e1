"""One model's answers to the ranking prompts, which all models then read (teacher forcing)."""

import json
from collections.abc import Sequence
from pathlib import Path

from activations.artefact import finish_artefact
from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers

KIND = "ranking_answers"
ANSWERED = "ranking.jsonl"


def write_answers(checkpoint: Checkpoint, path: Path, config: SamplingConfig, folder: Path) -> Path:
    """Samples one answer to each prompt of a file and writes `ranking.jsonl`: the same prompts, with these answers.

    Args:
        checkpoint: Who answers.
        path: File of conversations that end where the answer begins (formats: `load_prompts`).
        config: How to sample; with one sample.
        folder: Of the artefact.

    Raises:
        UserError: as `load_unanswered` does.
    """
    prompts = load_unanswered(path)
    (sampled,) = sample_answers(checkpoint, tokenize_prompts(prompts, checkpoint.tokenizer), config)
    lines = [
        json.dumps({"id": prompt.id, "messages": prompt.messages, "answer": answer}, ensure_ascii=False) + "\n"
        for prompt, (answer,) in zip(prompts, sampled, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWERED).write_text("".join(lines), encoding="utf-8")
    made = {"kind": KIND, "checkpoint": checkpoint.fingerprint, "prompts": path.name, **config.model_dump(mode="json")}
    finish_artefact(folder, made)
    return folder


def load_unanswered(path: Path) -> Sequence[Prompt]:
    """Reads conversations that end where an answer is to be sampled.

    Raises:
        UserError: as `load_prompts` does; for a prompt that has an answer already; or for plain text, to which a
            sampled continuation cannot be joined without changing its white space.
    """
    prompts = load_prompts(path)
    for prompt in prompts:
        if prompt.text is not None:
            raise UserError(f"{path}: '{prompt.id}' is plain text; ranking_answers needs conversations.")
        if prompt.answer is not None or prompt.messages[-1]["role"] == "assistant":
            raise UserError(f"{path}: '{prompt.id}' has an answer of its own; leave ranking_answers out.")
    return prompts
