"""What all parts of the monitor share: sampled answers, their scores, and correlations with their null."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from activations.artefact import publish
from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers
from diffing.directions.random_directions import covariance_directions
from diffing.statistics.correlation import pearson, random_correlations
from experiments.frame.lab import Lab
from experiments.monitor.config import MonitorConfig

PART_KIND = "monitor part"
LAST = "last_prompt"
MonitorLab = Lab[MonitorConfig]
Texts = Mapping[str, Sequence[str]]  # answers by the id of the prompt


def sampling(lab: MonitorLab) -> SamplingConfig:
    """As the answers of the trait directions were sampled, in another number."""
    return lab.answer_sampling(lab.config.samples, lab.trait_directions.config["max_new_tokens"])


def sampled_texts(lab: MonitorLab, model: Checkpoint, prompts: Sequence[Prompt], name: str) -> Texts:
    """Sampled answers by the prompt's id, from the file of this name if they were sampled before."""
    path = lab.out.folder / "answers" / f"{name}.jsonl"
    if not path.exists():
        (texts,) = sample_answers(model, tokenize_prompts(prompts, model.tokenizer), sampling(lab))
        rows = [{"id": prompt.id, "answers": given} for prompt, given in zip(prompts, texts, strict=True)]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")
        publish(temporary, path)
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["answers"] for row in found}


def mean_scores(lab: MonitorLab, trait: str, prompts: Sequence[Prompt], texts: Texts) -> Float64[np.ndarray, "prompt"]:
    """Mean score of the coherent answers to every prompt; NaN where there are none."""
    repeated = [prompt for prompt in prompts for _ in texts[prompt.id]]
    answers = [text for prompt in prompts for text in texts[prompt.id]]
    several = lab.require_trait_judge().trait_scores(trait, repeated, answers).reshape(len(prompts), -1)
    with np.errstate(invalid="ignore"):
        return np.nansum(several, axis=1) / (~np.isnan(several)).sum(1)


def random_directions(lab: MonitorLab, rows: Tensor) -> Float64[Tensor, "direction d_model"]:
    """Directions with the covariance of these activations."""
    return covariance_directions(rows, lab.config.directions, lab.seed)


def correlated(
    lab: MonitorLab,
    predictor: Float64[np.ndarray, "case"],
    score: Float64[np.ndarray, "case"],
    units: Sequence[str],
    random: Float64[np.ndarray, "direction case"],
) -> dict[str, Any]:
    """Pearson's r of a predictor with a score, its interval, and what random directions' r are."""
    found = pearson(predictor, score, units, lab.config.replicates, lab.seed)
    return {**vars(found), **vars(random_correlations(found.r, random, score))}
