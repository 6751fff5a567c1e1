"""Trains the checkpoints and measures each: toxic latent and direction on the ranking prompts, and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from activations.checkpoint import Checkpoint
from activations.config import CheckpointConfig
from activations.harvesting import LiveActivations
from diffing.directions.random_directions import covariance_directions
from diffing.ranking.prompt_blocks import prompt_blocks
from diffing.steering.arms import Arm, Cell, latent_arms, untouched
from diffing.steering.config import Operation
from diffing.steering.experiment import run_cells
from diffing.tables import where
from experiments.frame.experiment import Measured
from experiments.frame.lab import Lab
from experiments.trajectory.checkpoints import train_checkpoints
from experiments.trajectory.config import Moment, TrajectoryConfig, moments
from experiments.trajectory.outcomes import masking, trajectory_table
from experiments.trajectory.reading import CheckpointReading


def measure(lab: Lab[TrajectoryConfig]) -> Measured:
    """The table "trajectory", and as facts what `masking` returns.

    The table has one row a measurement: `phase`, `step`, `shift` of the latent and `projection` of the direction
    against the base with `_low`/`_high` over prompts, and the rates of sampled answers with `harmful_low`/
    `harmful_high` over questions (all 95%).
    """
    wanted, folder = moments(lab.organism.steps, lab.config), lab.out.folder / "checkpoints"
    train = partial(train_checkpoints, lab.organism, lab.config, wanted, folder, lab.progress)
    lab.out.stage("training", train, folder, lambda: None)
    readings = _Checkpoints(lab, folder).read_all(wanted)
    first, *_, last = readings.values()
    table = trajectory_table(readings, [prompt.id for prompt in lab.ranking_prompts], lab.seed)
    toxic, strength = _toxic(lab), lab.run.inducing_strength
    facts = masking(first, last, toxic, strength)
    return Measured({"trajectory": table}, facts, {"latent": toxic, "strength": strength})


@dataclass(frozen=True)
class _Checkpoints:
    """The saved checkpoints, each loaded once.

    Attributes:
        lab: What they are measured with.
        folder: Holds one folder a checkpoint.
    """

    lab: Lab[TrajectoryConfig]
    folder: Path

    def read_all(self, wanted: Sequence[Moment]) -> dict[Moment, CheckpointReading]:
        """Every checkpoint; the first and the last one are also steered."""
        readings = {}
        for moment in tqdm(wanted, desc="trajectory: measuring", unit="model", disable=not self.lab.progress):
            place = self.lab.out.folder / "measurements" / moment.name
            build = partial(self.read, moment, moment in (wanted[0], wanted[-1]), place)
            readings[moment] = self.lab.out.stage(moment.name, build, place, partial(CheckpointReading.load, place))
        return readings

    def read(self, moment: Moment, steered: bool, out: Path) -> CheckpointReading:
        """A checkpoint as it is and, if `steered`, also with the latent and random directions added; kept in `out`."""
        lab = self.lab
        model = lab.load(CheckpointConfig(model=str(self.folder / moment.name)), moment.name)
        cells = [untouched(model.d_model), *(self.added if steered else [])]
        transcripts = lab.out.folder / "transcripts" / f"{moment.name}.jsonl"
        transcripts.parent.mkdir(exist_ok=True)
        bench = lab.bench(lab.behavior(lab.config.samples))
        results = run_cells(bench, model, cells, lab.reporting, transcripts, progress=False)
        counts = {result.cell.arm.name: result.counts for result in results}
        reading = CheckpointReading(self.quantities(model), counts)
        reading.save(out)
        return reading

    def quantities(self, model: Checkpoint) -> Float64[Tensor, "prompt 2"]:
        """See `CheckpointReading.quantities`."""
        lab, toxic = self.lab, _toxic(self.lab)
        live = LiveActivations(model, lab.ranking_tokens, lab.harvesting())
        direction = lab.direction.double().to(lab.sae.device)
        rows: dict[str, Tensor] = {}
        for block in prompt_blocks(lab.sae, {"model": live}, lab.hook, "prompt"):
            means = block.means["model"]
            pairs = torch.stack([means.activity[:, toxic], means.activation @ direction], 1)
            rows |= dict(zip(block.ids, pairs.cpu(), strict=True))
        return torch.stack([rows[prompt.id] for prompt in lab.ranking_prompts])

    @cached_property
    def added(self) -> Sequence[Cell]:
        """The latent as strongly as the run reports it for its base, and random directions as strongly."""
        lab, ranking = self.lab, self.lab.ranking.table
        toxic = latent_arms(lab.sae, where(ranking, ranking["latent"] == _toxic(lab)), top=1)
        units = covariance_directions(lab.prompt_rows, lab.config.controls, lab.seed).float()
        random = [Arm(f"random direction {place}", "covariance", unit) for place, unit in enumerate(units)]
        return [Cell(arm, Operation.ADD, lab.run.inducing_strength) for arm in (*toxic, *random)]


def _toxic(lab: Lab[TrajectoryConfig]) -> int:
    assert lab.toxic is not None  # the experiment needs one
    return lab.toxic
