"""The causal filter over as many latents of a finished run as one likes.

    sae-diff steer --run runs/quickstart --top 100

The run's top latents are steered as the run itself steers its first ones (`diffing.steering.proof`): added to the base,
subtracted from the corrupted model and ablated there, each at a strength of its own, with controls. The verdicts become
columns of the run's ranking, in a folder of its own.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from activations.artefact import finish_artefact, open_folder
from activations.checkpoint import load_checkpoint
from activations.errors import UserError
from activations.harvesting import LiveActivations
from activations.prompts import PROMPT_ROLES
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.steering.proof import Proof
from experiments.names import BASE, CORRUPTED
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun

KIND = "causal_filter"
RANKING, STEERING = "ranking", "steering.parquet"
VERDICTS = {True: "yes", False: "no"}
EFFECTS = ("causal_induce", "causal_repair", "causal_ablate")


def steer_run(
    run: Path, top: int, samples: int, out: Path, overwrite: bool = False, progress: bool = True
) -> tuple[FeatureRanking, Proof]:
    """Steers the first `top` latents of a finished run.

    Args:
        run: Its folder.
        top: Latents, by rank.
        samples: Answers to each question under each arm.
        out: Output folder; cells that it holds are not sampled again.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.

    Returns:
        The run's ranking with verdict columns, and the proof; both are written to `out`.

    Raises:
        UserError: if the run cannot be read, measured no behaviour, or its corrupted model does not misbehave; or if
            `out` is in use.
    """
    finished = FinishedRun.load(run)
    finished.reporting()  # a run without behaviour ends here
    ranking = FeatureRanking.load(run / RANKING)
    with RunFolder(out, {"run": str(run.resolve()), "top": top, "samples": samples}, overwrite, lambda line: None):
        open_folder(out, overwrite=True)
        proof = _prove(finished, ranking, top, samples, out, progress)
        if proof.verdicts.empty:
            raise UserError(f"The corrupted model of {run} is hardly more harmful than its base: nothing to explain.")
        ranking = ranking.joined(proof.verdicts)
        ranking.save(out / RANKING, {"ranking": run / RANKING}, overwrite=True)
        proof.table.to_parquet(out / STEERING, index=False)
        finish_artefact(out, {"kind": KIND, "top": top, "samples": samples}, {"ranking": run / RANKING})
    return ranking, proof


def _prove(finished: FinishedRun, ranking: FeatureRanking, top: int, samples: int, out: Path, progress: bool) -> Proof:
    base, corrupted = (load_checkpoint(finished.checkpoint(role), role) for role in (BASE, CORRUPTED))
    live = LiveActivations(base, finished.ranking_tokens(base), finished.harvesting())
    steered = {
        role: PersonaDirections.load(finished.folder / "steered_directions" / role) for role in (BASE, CORRUPTED)
    }
    settings = finished.config.steering
    assert settings is not None
    sampling = settings.sampling.model_copy(update={"samples": samples})
    config = finished.config.model_copy(
        update={"steering": settings.model_copy(update={"top": top, "claims": top, "sampling": sampling})}
    )
    activations = live.read(config.hook, PROMPT_ROLES)
    table, folder = ranking.to_pandas(), out / "transcripts"
    return steer_latents(config, finished.sae(), base, corrupted, activations, steered, table, folder, progress)


def print_verdicts(ranking: FeatureRanking, console: Console) -> None:
    """The causal latents, and of the others those that did most."""
    steered = ranking.table.dropna(subset=[EFFECTS[0]]).to_dict("records")
    shown = sorted(steered, key=lambda row: (row["causal"] is not True, -row[EFFECTS[0]] - row[EFFECTS[1]]))[:20]
    table = Table(
        "rank", "latent", "causal", "added to base", "worst control", "subtracted", "worst control", "ablated"
    )
    for row in shown:
        cells = [_effect(row, "induce"), f"{row['control_induce']:.1%}", _effect(row, "repair")]
        cells += [f"{row['control_repair']:.1%}", _effect(row, "ablate")]
        table.add_row(str(row["rank"]), str(row["latent"]), VERDICTS.get(row["causal"], "no controls"), *cells)
    console.print(table)
    console.print(
        f"{sum(row['causal'] is True for row in steered)} of {len(steered)} latents are causal: change of the harmful "
        "rate on questions that chose nothing, intervals that cover all of them together",
        soft_wrap=True,
    )


def _effect(row: dict, name: str) -> str:
    return f"{row[f'causal_{name}']:+.1%} [{row[f'causal_{name}_low']:+.1%}, {row[f'causal_{name}_high']:+.1%}]"
