"""Steers the top latents of a run, and adds the verdicts to a copy of its ranking."""

from activations.errors import UserError
from diffing.ranking.feature_ranking import FeatureRanking
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.names import BASE, CORRUPTED
from experiments.run.config import RunConfig
from experiments.run.steering import Steering
from experiments.steer.config import SteerConfig

RANKING = "ranking"


def measure(lab: Lab[SteerConfig]) -> Measured:
    """The rates of every arm (see `results_table`), and the ranking with verdict columns, saved in `ranking`.

    Raises:
        UserError: if the corrupted model does not misbehave.
    """
    steered = {role: lab.directions("steered_directions", role) for role in (BASE, CORRUPTED)}
    config = _settings(lab.run.config, lab.config)
    steering = Steering(config, lab.sae, lab.base, lab.prompt_rows, lab.run.residual_norm, steered)
    proof = steering.prove(lab.model(CORRUPTED), lab.ranking, lab.out.folder / "transcripts", lab.progress)
    if proof.verdicts.empty:
        raise UserError(
            f"The corrupted model of {lab.run.folder} is hardly more harmful than its base: nothing to explain."
        )
    ranking: FeatureRanking = lab.ranking.joined(proof.verdicts)
    ranking.save(lab.out.folder / RANKING, {"ranking": lab.run.folder / RANKING}, overwrite=True)
    return Measured({"steering": proof.table}, ranking)


def _settings(run: RunConfig, config: SteerConfig) -> RunConfig:
    """The run's, with another number of latents and of answers; every latent is a claim."""
    assert run.steering is not None
    sampling = run.steering.sampling.model_copy(update={"samples": config.samples})
    changed = {"top": config.top, "claims": config.top, "sampling": sampling}
    return run.model_copy(update={"steering": run.steering.model_copy(update=changed)})
