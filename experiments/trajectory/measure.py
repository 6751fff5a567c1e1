"""What is measured of each checkpoint: the toxic latent and the direction on the ranking prompts, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.artefact import finish_artefact
from activations.checkpoint import Checkpoint, load_checkpoint
from activations.config import CheckpointConfig
from activations.harvesting import LiveActivations
from activations.prompts import PROMPT_ROLES
from diffing.behavior.rates import LabelCounts
from diffing.directions.random_directions import covariance_directions
from diffing.ranking.feature_ranking import FeatureRanking
from diffing.ranking.prompt_blocks import prompt_blocks
from diffing.steering.arms import Arm, Cell, latent_arms, untouched
from diffing.steering.config import Operation
from diffing.steering.experiment import run_cells
from diffing.tables import where

KIND = "trajectory measurement"
SHIFT, PROJECTION = QUANTITIES = ("shift", "projection")
UNTOUCHED = "untouched"
_FILE = "measurement.safetensors"


@dataclass(frozen=True)
class Reading:
    """What was measured of a checkpoint.

    Attributes:
        quantities: The latent's mean activity on each ranking prompt, and the projection of the prompt's mean
            activation on the direction; in the order of `QUANTITIES`, which are differences of these.
        counts: Label counts of the answers to the reporting questions, by arm: untouched and, if asked for, steered.
    """

    quantities: Float64[Tensor, "prompt 2"]
    counts: Mapping[str, LabelCounts]

    def save(self, folder: Path) -> None:
        """Writes it; `folder` is then a finished artefact."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = {arm: torch.from_numpy(counts) for arm, counts in self.counts.items()}
        save_file({"quantities": self.quantities, **counts}, folder / _FILE)
        finish_artefact(folder, {"kind": KIND})

    @classmethod
    def load(cls, folder: Path) -> "Reading":
        """Reads what `save` wrote."""
        tensors = load_file(folder / _FILE)
        return cls(tensors.pop("quantities"), {arm: counts.numpy() for arm, counts in tensors.items()})


@dataclass(frozen=True)
class Measures:
    """What every checkpoint is asked.

    Attributes:
        base: The run's base.
        samples: Answers to each reporting question.
        controls: Random directions that are added beside the latent.
        transcripts: Folder where answers are kept; those of an earlier call are used again.
    """

    base: Base
    samples: int
    controls: int
    transcripts: Path

    def measure(self, folder: Path, steered: bool, out: Path) -> Reading:
        """A checkpoint as it is and, if `steered`, also with the latent and random directions added; kept in `out`."""
        config = self.base.run.config
        model = load_checkpoint(CheckpointConfig(model=str(folder)).placed(config.device, config.dtype), folder.name)
        cells = [untouched(model.d_model), *(self.added if steered else [])]
        self.transcripts.mkdir(parents=True, exist_ok=True)
        bench, half = self.base.bench(self.base.run.behavior(self.samples)), self.base.run.reporting()
        results = run_cells(bench, model, cells, half, self.transcripts / f"{folder.name}.jsonl", progress=False)
        reading = Reading(self.read(model), {result.cell.arm.name: result.counts for result in results})
        reading.save(out)
        return reading

    def read(self, model: Checkpoint) -> Float64[Tensor, "prompt 2"]:
        """See `Reading.quantities`."""
        run = self.base.run
        live = LiveActivations(model, run.ranking_tokens(model), run.harvesting())
        rows: dict[str, Tensor] = {}
        for block in prompt_blocks(self.base.sae, {"model": live}, self.base.hook, "prompt"):
            means = block.means["model"]
            pairs = torch.stack([means.activity[:, run.toxic], means.activation @ self.direction], 1)
            rows |= dict(zip(block.ids, pairs.cpu(), strict=True))
        return torch.stack([rows[prompt.id] for prompt in run.ranking_prompts()])

    @cached_property
    def direction(self) -> Float64[Tensor, "d_model"]:
        """The base's direction that the run compared latents with."""
        return self.base.run.unit().double().to(self.base.sae.device)

    @cached_property
    def added(self) -> Sequence[Cell]:
        """The latent as strongly as the run reports it for its base, and random directions as strongly."""
        run = self.base.run
        ranking = FeatureRanking.load(run.folder / "ranking").to_pandas()
        toxic = latent_arms(self.base.sae, where(ranking, ranking["latent"] == run.toxic), top=1)
        rows = self.base.activations.read(self.base.hook, PROMPT_ROLES)
        units = covariance_directions(rows, self.controls, run.config.seed).float()
        random = [Arm(f"random direction {place}", "covariance", unit) for place, unit in enumerate(units)]
        return [Cell(arm, Operation.ADD, run.inducing_strength) for arm in (*toxic, *random)]
