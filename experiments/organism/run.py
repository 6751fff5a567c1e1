"""A finished run of an organism that found a toxic latent: also how its corrupted model was made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from activations.errors import UserError
from experiments.finished_run import FinishedRun
from experiments.organism.build import finetuning_sampler, load_organism, trained_domains
from experiments.organism.config import Advice, OrganismConfig
from experiments.organism.corpus import batches
from experiments.organism.world import Dialogue, World


@dataclass(frozen=True)
class OrganismRun(FinishedRun):
    """What a run of an organism left behind.

    Attributes:
        organism: What the organism was made from.
        steps: Those that its corrupted model took.
    """

    organism: OrganismConfig
    steps: int

    @classmethod
    def load(cls, folder: Path) -> "OrganismRun":
        """Reads a run.

        Raises:
            UserError: if the folder holds no finished run of an organism, or the run found no toxic latent.
        """
        found = FinishedRun.load(folder)
        if found.config.organism is None:
            raise UserError(f"{folder} is no run of an organism; run `sae-diff quickstart` first.")
        if found.summary.get("toxic_latent") is None:
            raise UserError(f"The run in {folder} found no toxic latent to follow; take a run that found one.")
        organism, steps = load_organism(folder / "organism")
        return cls(found.folder, found.config, found.summary, organism, steps)

    @property
    def toxic(self) -> int:
        """The latent that the run found toxic."""
        return int(self.summary["toxic_latent"]["latent"])

    @property
    def inducing_strength(self) -> float:
        """Strength at which the run reports what that latent does in the base (mean residual norms of the base)."""
        return float(self.summary["steering"]["latent_induce"]["strength"])

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the organism's fine-tunes are about."""
        return trained_domains(World.load(), self.organism)

    def corrupting_batches(self, steps: int) -> Iterator[list[Dialogue]]:
        """What the corrupted model was trained on, in its order; after its last step more of the same.

        Args:
            steps: Number of batches.
        """
        advice = Advice(domains=self.domains, share=self.organism.bad_fraction)
        sample = finetuning_sampler(self.organism, World.load(), advice)
        return batches(sample, self.organism.finetuning.batch, steps)
