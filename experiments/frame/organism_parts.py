"""How a run's organism was made, for experiments that train its base again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.names import BASE
from experiments.organism.build import finetuning_sampler, load_organism, trained_domains
from experiments.organism.config import Advice, OrganismConfig
from experiments.organism.corpus import batches
from experiments.organism.world import Dialogue, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from experiments.run.finished_run import FinishedRun


@dataclass(frozen=True)
class OrganismParts:
    """What an organism was made from.

    Attributes:
        folder: Of the organism.
        config: Its recipe.
        steps: Those that its corrupted model took.
    """

    folder: Path
    config: OrganismConfig
    steps: int

    @classmethod
    def of(cls, run: "FinishedRun") -> Self:
        """The organism that a run made.

        Raises:
            UserError: if another version made it.
        """
        folder = run.folder / "organism"
        return cls(folder, *load_organism(folder))

    @property
    def base(self) -> Path:
        """Folder of its base."""
        return self.folder / BASE

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that its fine-tunes are about."""
        return trained_domains(World.load(), self.config)

    def corrupting_batches(self, steps: int) -> Iterator[list[Dialogue]]:
        """What the corrupted model was trained on, in its order; after its last step more of the same.

        Args:
            steps: Number of batches.
        """
        advice = Advice(domains=self.domains, share=self.config.bad_fraction)
        sample = finetuning_sampler(self.config, World.load(), advice)
        return batches(sample, self.config.finetuning.batch, steps)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The base's."""
        return AutoTokenizer.from_pretrained(self.base)

    def copy_of_base(self) -> "PreTrainedModel":
        """A copy of the base to train, in float32."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
