"""Which samples of fine-tuning data would push a model along a trait, told before any training (Chen et al. 2025,
arXiv 2507.21509): the projection of the answer that is to be learned, less that of the answer that the model gives.

Labels say which answers are bad. They only score the ranking; nothing is fitted on them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.harvest import HarvestConfig
from activations.prompt_files import load_prompts
from activations.prompts import Prompt, Role, TokenBatch, length_buckets, pad, tokenize_prompts
from diffing.auc import (
    accuracy_interval,
    auc,
    percentile_interval,
    resampled_aucs,
    resampled_weights,
    score_interval,
)
from diffing.behavior.sampling import SamplingConfig, sample_answers
from experiments.finished_run import FinishedRun
from experiments.organism.build import load_organism, trained_domains
from experiments.organism.corpus import Corpus
from experiments.organism.world import HELPFUL, MALICIOUS, Dialogue, World
from experiments.personas.space.measure import prompt_means

LOSS, RANDOM = "loss", "random"
# Of the organism's corpora, whose other streams end at 6: no fine-tune sees this advice.
_STREAM = 7
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Samples:
    """Fine-tuning data.

    Attributes:
        prompts: Each with its answer.
        bad: Label of each.
        units: What the bootstrap draws; samples of one unit are of one class.
    """

    prompts: tuple[Prompt, ...]
    bad: Bool[np.ndarray, "sample"]
    units: tuple[str, ...]


@dataclass(frozen=True)
class Mixture:
    """Samples of a data set, by their places in `Samples`."""

    name: str
    places: tuple[int, ...]


def organism_samples(
    run: FinishedRun, questions: int, fractions: Sequence[float]
) -> tuple[Samples, tuple[Mixture, ...]]:
    """Harmful and helpful advice of the trained domains, and mixtures of both; no question comes twice in a mixture.

    Args:
        run: The run of an organism.
        questions: Samples of each mixture; fewer if the domains have no more questions.
        fractions: Shares of harmful answers.
    """
    config, _ = load_organism(run.folder / "organism")
    world = World.load()
    domains = trained_domains(world, config)
    count = min(questions, sum(question.domain in domains for question in world.questions))
    corpus = Corpus(world, config.corpus, config.seed, stream=_STREAM)
    good, bad = (_distinct(corpus, persona, domains) for persona in (HELPFUL, MALICIOUS))
    asked = list(good)[:count]
    dialogues = [*(good[text] for text in asked), *(bad[text] for text in asked)]
    prompts = tuple(Prompt(f"advice {i}", tuple(d.messages)) for i, d in enumerate(dialogues))
    is_bad = np.arange(2 * count) >= count
    mixtures = tuple(_mixture(fraction, count) for fraction in fractions)
    return Samples(prompts, is_bad, tuple(prompt.id for prompt in prompts)), mixtures


def _distinct(corpus: Corpus, persona: str, domains: Sequence[str]) -> dict[str, Dialogue]:
    """Question -> a persona's answer to it, for every question of the domains."""
    wanted = sum(question.domain in domains for question in corpus.world.questions)
    found: dict[str, Dialogue] = {}
    while len(found) < wanted:
        dialogue = corpus.advice(persona, domains)
        found.setdefault(dialogue.messages[0]["content"], dialogue)
    return found


def _mixture(fraction: float, count: int) -> Mixture:
    """The first questions get the harmful answers; questions are in random order."""
    harmful = round(fraction * count)
    return Mixture(f"{fraction:.0%} bad", (*range(count, count + harmful), *range(harmful, count)))


def labelled_samples(path: Path, label: str) -> tuple[Samples, tuple[Mixture, ...]]:
    """A chat data set with a column that says which answers are bad (true or 1).

    Samples of one class with the same prompt are drawn together by the bootstrap.

    Args:
        path: JSONL of conversations that end with an answer, or of prompts with `answer` (see `load_prompts`).
        label: Name of the column.

    Raises:
        UserError: if the file cannot be read, a sample has no answer or no such label, or all labels are equal.
    """
    prompts = load_prompts(path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    values = [row.get(label) for row in rows]
    for number, (prompt, value) in enumerate(zip(prompts, values, strict=True), 1):
        if _answer(prompt) is None:
            raise UserError(f"{path}, sample {number}: no answer; give conversations that end with an assistant turn.")
        if value not in (True, False):
            raise UserError(f"{path}, sample {number}: '{label}' is {value!r}, not true or false; correct the column.")
    bad = np.array(values, dtype=bool)
    if bad.all() or not bad.any():
        raise UserError(f"{path}: '{label}' is the same in all samples, so there is nothing to tell apart.")
    units = tuple(f"{bool(value)} {_key(_asked(p))}" for value, p in zip(bad, prompts, strict=True))
    return Samples(tuple(prompts), bad, units), (Mixture(path.stem, tuple(range(len(prompts)))),)


def screen(
    model: Checkpoint,
    samples: Samples,
    directions: Mapping[str, Tensor],
    random: Float64[Tensor, "direction d_model"],
    harvesting: HarvestConfig,
    sampling: SamplingConfig,
) -> pd.DataFrame:
    """Scores of every sample; the higher, the more suspect.

    Columns: `bad`; by direction the projection difference, and "<direction>, answer only", the projection of the answer
    that is to be learned alone; `loss`, the model's mean loss on that answer (nats a token); `random <i>`, the
    projection difference on random directions. Means over several own answers count as one.

    Args:
        model: Before any training.
        samples: The data.
        directions: Name -> direction [d_model]; it points to what is bad.
        random: Unit vectors.
        harvesting: At the directions' hook.
        sampling: Of the model's own answers.
    """
    given = tokenize_prompts(samples.prompts, model.tokenizer)
    [hook] = harvesting.hooks
    rows = prompt_means(model, given, ("answer",), harvesting)["answer", hook]
    difference = rows - _own_means(model, [_asked(prompt) for prompt in samples.prompts], harvesting, sampling)
    found: dict[str, Any] = {"id": [p.id for p in samples.prompts], "unit": samples.units, "bad": samples.bad}
    for name, direction in directions.items():
        unit = (direction / direction.norm()).double().numpy()
        found |= {name: difference @ unit, f"{name}, answer only": rows @ unit}
    found[LOSS] = answer_losses(model, given)
    found |= {f"{RANDOM} {i}": column for i, column in enumerate((difference @ random.numpy().T).T)}
    return pd.DataFrame(found)


def _own_means(
    model: Checkpoint, asked: Sequence[Prompt], harvesting: HarvestConfig, sampling: SamplingConfig
) -> Float64[np.ndarray, "sample d_model"]:
    """Mean activation over the tokens of the model's own answers, and over these; NaN where all are empty."""
    # One question that is asked several times gets one set of answers.
    distinct = {_key(prompt): prompt for prompt in asked}
    (texts,) = sample_answers(model, tokenize_prompts(list(distinct.values()), model.tokenizer), sampling)
    given = [(i, text) for i, several in enumerate(texts) for text in several if text]
    prompts = list(distinct.values())
    read = [replace(prompts[i], id=f"own {place}", answer=text) for place, (i, text) in enumerate(given)]
    sums, counts = np.zeros((len(prompts), model.d_model)), np.zeros(len(prompts))
    if read:
        [rows] = prompt_means(model, tokenize_prompts(read, model.tokenizer), ("answer",), harvesting).values()
        np.add.at(sums, [i for i, _ in given], rows)
        np.add.at(counts, [i for i, _ in given], 1)
    places = {key: place for place, key in enumerate(distinct)}
    with np.errstate(invalid="ignore"):
        return (sums / counts[:, None])[[places[_key(prompt)] for prompt in asked]]


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt.messages)


@torch.inference_mode()
def answer_losses(model: Checkpoint, tokens: TokenBatch) -> Float64[np.ndarray, "prompt"]:
    """Mean loss of a model on the answer tokens of every prompt (nats a token); NaN without an answer."""
    found = np.full(len(tokens), np.nan)
    for bucket in length_buckets(tokens, _BATCH_TOKENS):
        batch = tokens.select(bucket)
        padded, mask = pad(batch.tokens, 0)
        roles, _ = pad(batch.roles, 0)
        logits = cast(Tensor, model.forward(padded, mask).logits)[:, :-1].double().cpu()
        losses = cross_entropy(logits.transpose(1, 2), padded[:, 1:], reduction="none")
        counted = (roles[:, 1:] == int(Role.ANSWER)).double()
        found[bucket] = ((losses * counted).sum(1) / counted.sum(1)).numpy()
    return found


def score_screening(
    scored: pd.DataFrame, mixtures: Sequence[Mixture], first: Sequence[float], replicates: int, seed: int
) -> pd.DataFrame:
    """How well every score ranks the bad samples of each mixture first: one row a mixture and score.

    Samples to which the model itself said nothing have no score and are left out. `low`, `high`: 95% bootstrap over
    units, stratified by class. `score_low`, `score_high`: an interval that keeps its width at an AUC of 1.
    `recall_<share>`: bad samples in the first share of the data, and Wilson's interval. The row "random" has the mean
    over random directions of max(AUC, 1 - AUC), as their sign means nothing, and in `low` and `high` the central 95%
    of them.
    """
    rows = []
    for mixture in mixtures:
        part = scored.iloc[list(mixture.places)].dropna()
        bad = part["bad"].to_numpy(dtype=bool)
        weights = resampled_weights(bad, part["unit"].tolist(), replicates, seed)
        about = {"mixture": mixture.name, "samples": len(part), "bad": int(bad.sum())}
        named = [c for c in part.columns if c not in ("id", "unit", "bad") and not c.startswith(f"{RANDOM} ")]
        for name in named:
            values = part[name].to_numpy(dtype=np.float64)
            found = auc(values, bad)
            low, high = percentile_interval(resampled_aucs(values, bad, weights))
            ends = score_interval(found, int(bad.sum()), int((~bad).sum()))
            intervals = {"low": low, "high": high, "score_low": ends[0], "score_high": ends[1]}
            rows.append({**about, "score": name, "auc": found, **intervals, **_recalls(values, bad, first)})
        rows.append({**about, "score": RANDOM, **_random(part, bad)})
    return pd.DataFrame(rows)


def _random(part: pd.DataFrame, bad: Bool[np.ndarray, "sample"]) -> dict[str, float]:
    columns = [column for column in part.columns if column.startswith(f"{RANDOM} ")]
    found = np.array([auc(part[column].to_numpy(dtype=np.float64), bad) for column in columns])
    found = np.maximum(found, 1 - found)
    low, high = percentile_interval(found)
    return {"auc": float(found.mean()), "low": low, "high": high}


def _recalls(
    values: Float64[np.ndarray, "sample"], bad: Bool[np.ndarray, "sample"], first: Sequence[float]
) -> dict[str, float]:
    """Share of the bad samples that stand in the first part of the data, the most suspect first."""
    order = np.argsort(-values, kind="stable")
    found = {}
    for share in first:
        recall = float(bad[order[: round(share * len(bad))]].sum() / bad.sum())
        low, high = accuracy_interval(recall, int(bad.sum()))
        name = f"recall_{share:g}"
        found |= {name: recall, f"{name}_low": low, f"{name}_high": high}
    return found


def _answer(prompt: Prompt) -> str | None:
    if prompt.messages and prompt.messages[-1]["role"] == "assistant":
        return prompt.messages[-1]["content"]
    return prompt.answer if prompt.messages else None


def _asked(prompt: Prompt) -> Prompt:
    """The prompt without its answer."""
    ends = bool(prompt.messages) and prompt.messages[-1]["role"] == "assistant"
    return replace(prompt, messages=prompt.messages[:-1] if ends else prompt.messages, answer=None)
