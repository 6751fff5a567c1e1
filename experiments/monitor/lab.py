"""What every part of the monitor is measured with: run, extraction, base, judge, and random directions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from activations.artefact import publish, read_config
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.sampling import sample_answers
from diffing.behavior.trait_judge import TraitJudge
from diffing.directions.random_directions import covariance_directions
from diffing.personality.model_space import KIND as EXTRACT_KIND
from diffing.personality.model_space import ModelSpace
from diffing.statistics.correlation import pearson, random_correlations
from diffing.traits.prompts import TraitPrompts
from experiments.monitor.config import Asked, MonitorConfig
from experiments.names import BASE
from experiments.run.finished_run import FinishedRun

PART_KIND = "persona monitor part"
LAST = "last_prompt"
Texts = Mapping[str, Sequence[str]]  # answers by the id of the prompt


@dataclass(frozen=True)
class MonitorLab:
    """What every part is measured with."""

    run: FinishedRun
    asked: Asked
    config: MonitorConfig
    traits: Sequence[TraitPrompts]
    judge: TraitJudge
    valence: Mapping[str, str | None]
    out: Path
    progress: bool

    @classmethod
    def of(cls, asked: Asked, config: MonitorConfig, out: Path, progress: bool) -> "MonitorLab":
        """Reads run and extraction.

        Raises:
            UserError: if they do not fit together, or nobody scores the answers.
        """
        run, made = FinishedRun.load(asked.run), read_config(asked.extracted, EXTRACT_KIND)
        traits, judge = traits_of(run, asked.traits, asked.judge, out, progress)
        if judge is None:
            raise UserError(f"Nobody scores traits in answers of the run in {asked.run}; give a judge.")
        if [trait.name for trait in traits] != made["traits"]:
            raise UserError(f"{asked.extracted} holds other traits ({', '.join(made['traits'])}); name their sets.")
        if missing := [at for at in {LAST, *config.positions} if at not in made["positions"]]:
            raise UserError(f"{asked.extracted} has no directions at {missing[0]}; extract them.")
        return cls(run, asked, config, traits, judge, made["valence"], out, progress)

    @property
    def seed(self) -> int:
        return self.run.config.seed

    @property
    def sampling(self) -> SamplingConfig:
        """As `extract` samples."""
        tokens = read_config(self.asked.extracted, EXTRACT_KIND)["max_new_tokens"]
        return answer_sampling(self.run, self.config.samples, tokens)

    @cached_property
    def space(self) -> ModelSpace:
        """The base's directions."""
        return ModelSpace.load(self.asked.extracted, BASE)

    @cached_property
    def base(self) -> Checkpoint:
        """The base.

        Raises:
            UserError: if it is not the one whose directions were extracted.
        """
        model = self.load(self.run.checkpoint(BASE), BASE)
        self.require_extracted(self.space, model)
        return model

    def load(self, checkpoint: CheckpointConfig, name: str) -> Checkpoint:
        return load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)

    def require_extracted(self, space: ModelSpace, model: Checkpoint) -> None:
        """Checks that directions are those of a model.

        Raises:
            UserError: if they are another one's.
        """
        if space.config["fingerprint"] != model.fingerprint:
            raise UserError(
                f"{model.name} is not the {space.name} model whose directions {space.folder} holds; extract them again."
            )

    def harvesting(self, hooks: Sequence[str]) -> HarvestConfig:
        return self.run.harvesting().model_copy(update={"hooks": tuple(dict.fromkeys(hooks))})

    def texts(self, model: Checkpoint, prompts: Sequence[Prompt], name: str) -> Texts:
        """Sampled answers by the prompt's id, from a file if they were sampled before."""
        path = self.out / "answers" / f"{name.replace(' ', '-')}.jsonl"
        if not path.exists():
            (texts,) = sample_answers(model, tokenize_prompts(prompts, model.tokenizer), self.sampling)
            rows = [{"id": prompt.id, "answers": given} for prompt, given in zip(prompts, texts, strict=True)]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
            publish(temporary, path)
        found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return {row["id"]: row["answers"] for row in found}

    def scored(self, trait: str, prompts: Sequence[Prompt], texts: Texts) -> Float64[np.ndarray, "prompt"]:
        """Mean score of the coherent answers to every prompt; NaN where there are none."""
        repeated = [prompt for prompt in prompts for _ in texts[prompt.id]]
        scores = self.judge.trait_scores(trait, repeated, [text for prompt in prompts for text in texts[prompt.id]])
        several = scores.reshape(len(prompts), -1)
        with np.errstate(invalid="ignore"):
            return np.nansum(several, axis=1) / (~np.isnan(several)).sum(1)

    def random(self, rows: Tensor) -> Float64[Tensor, "direction d_model"]:
        """Directions with the covariance of these activations."""
        return covariance_directions(rows, self.config.directions, self.seed)

    def correlated(
        self,
        predictor: Float64[np.ndarray, "case"],
        score: Float64[np.ndarray, "case"],
        units: Sequence[str],
        random: Float64[np.ndarray, "direction case"],
    ) -> dict[str, Any]:
        """Pearson's r of a predictor with a score, its interval, and random directions' r beside it."""
        found = pearson(predictor, score, units, self.config.replicates, self.seed)
        return {**vars(found), **vars(random_correlations(found.r, random, score))}
