"""Which samples of fine-tuning data would push a model along a trait, told before any training (Chen et al. 2025,
arXiv 2507.21509): the projection of the answer that is to be learned, less that of the answer that the model gives.

Read at two hooks: where the base's traits separate best, and that of the run's SAE.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import cross_entropy

from activations.artefact import finish_artefact, open_folder, read_config
from activations.checkpoint import Checkpoint
from activations.config import HarvestConfig
from activations.errors import UserError
from activations.prompts import Prompt, Role
from activations.tokens import TokenBatch, length_buckets, pad, tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers
from diffing.personality.config import ANSWERS
from diffing.personality.trait_means import prompt_means
from diffing.personality.valence import SVV, semantic_valence
from experiments.monitor.answers import PART_KIND, MonitorLab, random_directions, sampling
from experiments.monitor.screening_scores import (
    ANSWER_ONLY,
    LOSS,
    RANDOM,
    TRAIT,
    score_screening,
    score_traits,
)
from experiments.monitor.training_data import (
    Samples,
    conversation,
    labelled_samples,
    organism_samples,
    question,
)
from experiments.names import EVIL

_BATCH_TOKENS = 2048
ByHook = dict[str, Float64[np.ndarray, "sample d_model"]]


@dataclass(frozen=True)
class Suspects:
    """Directions at one hook.

    Attributes:
        hook: Where they are read.
        directions: Name -> direction [d_model] that points to what is bad.
        traits: Trait -> direction.
        random: Unit vectors.
    """

    hook: str
    directions: Mapping[str, Tensor]
    traits: Mapping[str, Tensor]
    random: Float64[Tensor, "direction d_model"]


def screening(lab: MonitorLab) -> dict[str, pd.DataFrame]:
    """The tables of the screening; empty without data, and without directions of answers.

    "samples": scores of every sample at both hooks; "screening": how well scores rank the bad samples first, where the
    base's traits separate best; "screening_sae_hook": the same at the run's hook, where that is another;
    "screening_traits": the same of every trait, at both.
    """
    config, known = lab.config, lab.trait_directions.base.config
    read = [at for at in ANSWERS if at in known["positions"]]
    if not read or (config.data is None and lab.run.config.organism is None):
        return {}
    if config.data is None:
        samples, mixtures = organism_samples(lab.organism, config.questions, config.fractions, config.good)
    else:
        samples, mixtures = labelled_samples(config.data, config.label)
    best = known["best_hook"][read[0]]
    hooks, place = tuple(dict.fromkeys((best, lab.hook))), lab.out.folder / "screening"
    lab.out.stage("screening", lambda: _measure(lab, samples, read[0], hooks, place), place, lambda: None)
    read_config(place, PART_KIND)
    scored = pd.read_parquet(place / "samples.parquet")
    found, traits = {"samples": scored}, []
    for hook in hooks:
        rows = scored.loc[scored["hook"] == hook]
        name = "screening" if hook == best else "screening_sae_hook"
        found[name] = score_screening(rows, mixtures, config.first, config.replicates, lab.seed)
        traits.append(score_traits(rows, mixtures, config.replicates, lab.seed))
    return found | {"screening_traits": pd.concat(traits, ignore_index=True)}


def _measure(lab: MonitorLab, samples: Samples, at: str, hooks: Sequence[str], place: Path) -> None:
    suspects = [_suspects(lab, at, hook) for hook in hooks]
    found = screen(lab.base, samples, suspects, lab.harvesting(hooks), sampling(lab))
    open_folder(place, overwrite=True)
    found.to_parquet(place / "samples.parquet", index=False)
    made = {"hooks": list(hooks), "positions": at, "directions": list(suspects[0].directions)}
    finish_artefact(place, {"kind": PART_KIND, **made})


def _suspects(lab: MonitorLab, at: str, hook: str) -> Suspects:
    """Directions towards what is bad: evil, and away from the semantic valence's prosocial end."""
    vectors = lab.trait_directions.base.directions(at, hook).vectors
    found = {EVIL: vectors[EVIL]} if EVIL in vectors else {}
    good, bad = lab.trait_directions.pole("prosocial", vectors), lab.trait_directions.pole("antisocial", vectors)
    if good and bad:
        found[SVV] = -semantic_valence(vectors, good, bad).vector
    if not found:
        raise UserError(f"{lab.trait_directions.folder} has neither {EVIL} nor traits of both valences to screen with.")
    return Suspects(hook, found, vectors, random_directions(lab, lab.trait_directions.base.rows(at, hook)))


def screen(
    model: Checkpoint,
    samples: Samples,
    suspects: Sequence[Suspects],
    harvesting: HarvestConfig,
    sampling: SamplingConfig,
) -> pd.DataFrame:
    """Scores of every sample at every hook; the higher, the more suspect.

    Columns: `hook`; `bad`; by direction the projection difference, and "<direction>, answer only", the projection of
    the answer that is to be learned alone; `loss`, the model's mean loss on that answer (nats a token); `trait <name>`
    and `random <i>`, the projection difference on directions that need not point to what is bad. Means over several own
    answers count as one.

    Args:
        model: Before any training.
        samples: The data.
        suspects: The directions of each hook.
        harvesting: At these hooks.
        sampling: Of the model's own answers.
    """
    given = tokenize_prompts(samples.prompts, model.tokenizer)
    rows = {hook: means for (_, hook), means in prompt_means(model, given, ("answer",), harvesting).items()}
    own = _own_means(model, [question(prompt) for prompt in samples.prompts], harvesting, sampling)
    about = {"id": [p.id for p in samples.prompts], "unit": samples.units, "bad": samples.bad}
    about[LOSS] = answer_losses(model, given)
    found = [about | {"hook": s.hook} | _projections(s, rows[s.hook], rows[s.hook] - own[s.hook]) for s in suspects]
    return pd.concat([pd.DataFrame(columns) for columns in found], ignore_index=True)


def _projections(
    suspects: Suspects,
    rows: Float64[np.ndarray, "sample d_model"],
    difference: Float64[np.ndarray, "sample d_model"],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, direction in suspects.directions.items():
        unit = (direction / direction.norm()).double().numpy()
        found |= {name: difference @ unit, f"{name}{ANSWER_ONLY}": rows @ unit}
    for name, direction in suspects.traits.items():
        found[f"{TRAIT} {name}"] = difference @ (direction / direction.norm()).double().numpy()
    return found | {f"{RANDOM} {i}": column for i, column in enumerate((difference @ suspects.random.numpy().T).T)}


def _own_means(
    model: Checkpoint, asked: Sequence[Prompt], harvesting: HarvestConfig, sampling: SamplingConfig
) -> ByHook:
    """Mean activation over the tokens of the model's own answers, and over these; NaN where all are empty."""
    # One question that is asked several times gets one set of answers.
    distinct = {conversation(prompt): prompt for prompt in asked}
    prompts = list(distinct.values())
    (texts,) = sample_answers(model, tokenize_prompts(prompts, model.tokenizer), sampling)
    given = [(i, text) for i, several in enumerate(texts) for text in several if text]
    read = [replace(prompts[i], id=f"own {place}", answer=text) for place, (i, text) in enumerate(given)]
    counts = np.bincount([i for i, _ in given], minlength=len(prompts))
    sums = {hook: np.zeros((len(prompts), model.d_model)) for hook in harvesting.hooks}
    if read:
        means = prompt_means(model, tokenize_prompts(read, model.tokenizer), ("answer",), harvesting)
        for (_, hook), rows in means.items():
            np.add.at(sums[hook], [i for i, _ in given], rows)
    places = {key: place for place, key in enumerate(distinct)}
    of = [places[conversation(prompt)] for prompt in asked]
    with np.errstate(invalid="ignore"):
        return {hook: (total / counts[:, None])[of] for hook, total in sums.items()}


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
