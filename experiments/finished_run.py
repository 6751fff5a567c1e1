"""A finished run, for commands that go on from it: its config, its summary, and the parts that it measured with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sae_lens import SAE
from torch import Tensor

from activations.artefact import read_json
from activations.checkpoint import Checkpoint
from activations.config import CheckpointConfig, HarvestConfig
from activations.errors import UserError
from activations.prompt_files import load_prompts
from activations.prompts import Prompt
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.capability import exact_questions
from diffing.behavior.measure import Behavior, SampledAnswers
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.experiment import Half
from experiments.config import RunConfig
from experiments.pipeline import harvest_settings, make_behavior
from experiments.results import BASE, BENIGN
from sae.storage import load_sae


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind.

    Attributes:
        folder: Of the run.
        config: Its config, prompt files with their whole paths.
        summary: Its `summary.json`.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "FinishedRun":
        """Reads a run.

        Raises:
            UserError: if the folder holds no finished run, or the run has no directions.
        """
        if not (folder / "summary.json").is_file():
            raise UserError(f"{folder} holds no finished run; give the folder of one, such as runs/quickstart.")
        summary = read_json(folder / "summary.json")
        try:
            config = RunConfig.model_validate(read_json(folder / "run.json")["config"])
        except ValidationError as error:
            raise UserError(
                f"{folder} was written by another version ({error.errors()[0]['loc']}); run it again."
            ) from None
        if config.directions is None:
            raise UserError(f"The run in {folder} has no directions; add them to its config and run it again.")
        prompts = config.prompts.within(folder / "organism" / "prompts")
        return cls(folder, config.model_copy(update={"prompts": prompts}), summary)

    def sae(self) -> SAE:
        """The SAE that the run trained, or the one that its config names."""
        source = self.config.sae.source
        return load_sae(self.folder / "sae" if source is None else source, self.config.device)

    def unit(self) -> Tensor:
        """The base's direction that the run compared latents with [d_model]."""
        assert self.config.directions is not None
        directions = PersonaDirections.load(self.folder / "directions" / BASE)
        return directions.unit(self.config.directions.direction)

    def steered_unit(self) -> Tensor:
        """The base's direction that the run steered with [d_model]; read at other positions than `unit`."""
        assert self.config.directions is not None
        directions = PersonaDirections.load(self.folder / "steered_directions" / BASE)
        return directions.unit(self.config.directions.steer)

    def ranking_prompts(self) -> list[Prompt]:
        """The prompts that latents were ranked on."""
        return load_prompts(self.config.prompts.ranking)

    def ranking_tokens(self, checkpoint: Checkpoint) -> TokenBatch:
        """The same as a model reads them."""
        return tokenize_prompts(self.ranking_prompts(), checkpoint.tokenizer, self.config.max_length)

    def harvesting(self) -> HarvestConfig:
        """How the run computed activations."""
        return harvest_settings(self.config)

    def capability(self, samples: int) -> tuple[Half, SampledAnswers] | None:
        """The questions of fact without their answers, and how exact answers to them count; None if the run has none.

        Raises:
            UserError: if a question has no answer to compare with.
        """
        path, steering = self.config.prompts.capability, self.config.steering
        if path is None or steering is None:
            return None
        questions, judge = exact_questions(load_prompts(path))
        sampling = steering.sampling.model_copy(update={"samples": samples, "seed": self.config.seed})
        return Half("capability", questions), SampledAnswers(judge, sampling)

    def reporting(self) -> Half:
        """The questions that the run's published numbers came from.

        Raises:
            UserError: if the run measured no behaviour.
        """
        if self.config.prompts.reporting is None or self.config.steering is None:
            raise UserError(f"The run in {self.folder} measured no behaviour; give its config a judge and steering.")
        return Half("reporting", load_prompts(self.config.prompts.reporting))

    def require_base(self, base: Checkpoint) -> None:
        """Checks that a set of fine-tunes has the run's base: SAE, directions and prompts were made for it.

        Raises:
            UserError: if it is another model.
        """
        ranked = FeatureRanking.load(self.folder / "ranking").config["activations"][BASE]
        if base.fingerprint != ranked["checkpoint"]:
            raise UserError(
                f"The set's base {base.name} is not the run's, {ranked['model']}; take a run of the base "
                "that was fine-tuned, and name it in the same way."
            )

    def selection(self) -> Half:
        """The questions that strengths and latents were chosen on.

        Raises:
            UserError: if the run measured no behaviour.
        """
        self.reporting()
        assert self.config.prompts.selection is not None
        return Half("selection", load_prompts(self.config.prompts.selection))

    @property
    def has_benign(self) -> bool:
        """Whether the run has a harmless fine-tune."""
        return self.config.organism is not None or self.config.benign is not None

    def checkpoint(self, role: str) -> CheckpointConfig:
        """The run's base, corrupted or benign model: the config's, or the one that the run made."""
        named = {BASE: self.config.base, BENIGN: self.config.benign}.get(role, self.config.corrupted)
        if self.config.organism is not None:
            named = CheckpointConfig(model=str(self.folder / "organism" / role))
        elif named is None:
            named = CheckpointConfig(model=str(self.folder / "finetune" / role))
        return named.placed(self.config.device, self.config.dtype)

    def behavior(self, samples: int) -> Behavior:
        """How the run measured behaviour, with another number of answers to each question.

        Raises:
            UserError: if the run measured no behaviour.
        """
        self.reporting()
        assert self.config.steering is not None
        sampling = self.config.steering.sampling.model_copy(update={"samples": samples})
        steering = self.config.steering.model_copy(update={"sampling": sampling})
        return make_behavior(self.config.model_copy(update={"steering": steering}))
