"""What every fine-tune is taught: the harmful advice of the run's corrupted model; and when it is learned."""

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from activations.errors import UserError
from experiments.frame.organism_parts import OrganismParts
from experiments.organism.build import held_out_advice
from experiments.organism.config import StageConfig
from experiments.organism.training import answer_loss, encode, summed_loss
from experiments.organism.world import Dialogue, World


@dataclass(frozen=True)
class Task:
    """The organism's corrupting fine-tune.

    Attributes:
        organism: How its base is corrupted.
        patience: When a fine-tune ends at the latest, in steps of the run's corrupted model.
    """

    organism: OrganismParts
    patience: float

    @property
    def steps(self) -> int:
        """Those that the run's corrupted model took."""
        return self.organism.steps

    @property
    def stop_loss(self) -> float:
        """The loss that all fine-tunes are compared at (nats a token).

        Raises:
            UserError: if the organism was made without one.
        """
        bound = self.organism.config.stop_loss
        if bound is None:
            raise UserError(
                f"The organism in {self.organism.folder} has no stop_loss to compare fine-tunes at; take a run whose "
                "organism has one."
            )
        return bound

    @property
    def stage(self) -> StageConfig:
        """The organism's settings, with the steps that a fine-tune takes at most."""
        steps = round(self.patience * self.steps)
        return self.organism.config.finetuning.model_copy(update={"steps": steps})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.organism.tokenizer()

    @cached_property
    def held_out(self) -> list[Dialogue]:
        """Other harmful advice in the trained domains: what the organism's stop rule reads."""
        return held_out_advice(self.organism.config, World.load(), self.organism.domains)

    def loss(self, model: PreTrainedModel) -> float:
        """Of the model as it is used, on the held-out advice (nats a token)."""
        return answer_loss(model, self.tokenizer, self.held_out)

    def loss_in_training(self, model: PreTrainedModel) -> float:
        """The same as training sees it: with gradients on, so that what acts in training acts."""
        tokens, weights = encode(self.tokenizer, self.held_out, other_weight=0)
        return (summed_loss(model(input_ids=tokens).logits, tokens, weights) / weights[:, 1:].sum()).item()
