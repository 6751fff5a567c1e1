"""What the stages of a run share, and what a stage is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from activations.checkpoint import Checkpoint
from activations.source import ActivationSource
from activations.tokens import TokenBatch
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.activation_means import residual_norm
from diffing.ranking.examples import LatentExample
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.interference_table import Interference
from diffing.steering.proof import Proof
from experiments.names import BASE, CORRUPTED
from experiments.output.run_folder import RunFolder
from experiments.output.tracking import Tracker
from experiments.run.config import RunConfig
from sae.evaluation import SAEEvaluation

if TYPE_CHECKING:
    from sae_lens import SAE

Stores = dict[tuple[str, str], ActivationSource]  # by (model, prompts)


@dataclass
class RunState:
    """A run as far as it is done: each stage reads what earlier ones made, and adds its own.

    Attributes:
        config: What is compared, and how; a stage that makes files or checkpoints replaces their wish by their names.
        out: The run's folder.
        tracker: The W&B run.
        progress: Shows bars.
        models: Base, corrupted and, if there is one, benign checkpoint.
        prompts: Tokens of every prompt file that activations are harvested on.
        stores: Activations, by model and prompt file.
        sae: The dictionary.
        evaluation: How well it explains both models.
        directions: Of base and corrupted model: those that latents are compared with.
        steered: The same at the positions from which the model is steered best.
        rankings: By the model that is compared with the base.
        examples: Top activating examples, by latent.
        proofs: What steering showed, by the model that is compared with the base.
        interference: Which latents the toxic one co-activates; None without one.
        capability: Share of exact answers, by model.
    """

    config: RunConfig
    out: RunFolder
    tracker: Tracker
    progress: bool = True
    models: dict[str, Checkpoint] = field(default_factory=dict)
    prompts: Mapping[str, TokenBatch] = field(default_factory=dict)
    stores: Stores = field(default_factory=dict)
    sae: "SAE" = field(init=False)
    evaluation: SAEEvaluation = field(init=False)
    directions: Mapping[str, PersonaDirections] = field(default_factory=dict)
    steered: Mapping[str, PersonaDirections] = field(default_factory=dict)
    rankings: dict[str, FeatureRanking] = field(default_factory=dict)
    examples: Mapping[int, list[LatentExample]] = field(default_factory=dict)
    proofs: Mapping[str, Proof] = field(default_factory=dict)
    interference: Interference | None = None
    capability: Mapping[str, float] = field(default_factory=dict)

    @property
    def base(self) -> Checkpoint:
        return self.models[BASE]

    @property
    def ranking(self) -> FeatureRanking:
        """That of the corrupted model."""
        return self.rankings[CORRUPTED]

    @property
    def direction(self) -> str | None:
        """Name of the direction that latents are compared with."""
        return self.config.directions.direction if self.config.directions else None

    @cached_property
    def residual_norm(self) -> float:
        """Mean residual norm of the base at the hook over prompt tokens: the unit of strengths."""
        return residual_norm(self.stores[BASE, "ranking"], self.config.hook)

    def replace(self, **changes: object) -> None:
        """Replaces fields of the config."""
        self.config = self.config.model_copy(update=changes)


@dataclass(frozen=True)
class Stage:
    """One step of the method.

    Attributes:
        plan: What it will do, in a sentence; None if the config does not ask for it.
        do: Does it.
    """

    plan: Callable[[RunConfig], str | None]
    do: Callable[[RunState], None]


def stage(plan: Callable[[RunConfig], str | None]) -> Callable[[Callable[[RunState], None]], Stage]:
    """Declares a function as a stage."""
    return lambda do: Stage(plan, do)


def parents(**sources: ActivationSource) -> dict[str, Path]:
    """The folders of those activations that are on disk."""
    return {name: source.origin for name, source in sources.items() if source.origin is not None}
