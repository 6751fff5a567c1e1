"""The causal proof of a ranking, as a run's config asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.prompt_files import load_prompts
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.arms import control_arms, direction_arm, latent_arms
from diffing.steering.config import ControlsConfig, ProofConfig
from diffing.steering.experiment import Bench, QuestionSet
from diffing.steering.proof import Candidates, Pair, Proof, prove
from experiments.names import REPORTING, SELECTION
from experiments.run.config import RunConfig
from experiments.run.judges import make_behavior

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Steering:
    """What every proof of a run shares.

    Attributes:
        config: Whose `steering` says how; it needs a judge.
        sae: Dictionary of the latents.
        base: Model that latents are added to.
        activations: The base's, on prompt tokens.
        residual_norm: Their mean norm: the unit of strengths.
        steered: Directions to steer with, by the model that they were found in.
    """

    config: RunConfig
    sae: "SAE"
    base: Checkpoint
    activations: Float[Tensor, "rows d_model"]
    residual_norm: float
    steered: Mapping[str, PersonaDirections]

    def prove(self, corrupted: Checkpoint, ranking: FeatureRanking, folder: Path, progress: bool = True) -> Proof:
        """The causal proof of one ranking: its top latents, the dense directions and the controls.

        Args:
            corrupted: Model that latents are subtracted from and ablated in.
            ranking: Of its latents.
            folder: Transcripts go here.
            progress: Whether to show progress bars.
        """
        settings, config, table = self.config.steering, self.config, ranking.to_pandas()
        assert settings is not None
        named = config.directions.steer if config.directions else ""
        mean = self.activations.mean(0)
        controls = ControlsConfig(top=settings.top, each=settings.controls, seed=config.seed)
        candidates = Candidates(
            latent_arms(self.sae, table, settings.top),
            [direction_arm(f"{named} ({role})", made.unit(named), mean) for role, made in self.steered.items()],
            lambda latent: control_arms(self.sae, table, self.activations, latent, controls),
        )
        bench = Bench(config.hook, self.residual_norm, self.sae, make_behavior(config))
        strengths = ProofConfig(
            settings.strongest, settings.halvings, settings.induce_budget, settings.repair_budget, settings.claims
        )
        return prove(
            Pair(bench, self.base, corrupted, folder, progress),
            candidates,
            _half(SELECTION, config.prompts.selection),
            _half(REPORTING, config.prompts.reporting),
            strengths,
        )


def _half(name: str, path: Path | None) -> QuestionSet:
    assert path is not None  # RunConfig checks that steering has both halves
    return QuestionSet(name, load_prompts(path))
