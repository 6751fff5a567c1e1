"""What every fine-tune is taught: the harmful advice of the run's corrupted model; and when it is learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel

from activations.errors import UserError
from experiments.organism.build import STOP_DIALOGUES, Advice, finetuning_sampler
from experiments.organism.corpus import Corpus, batches
from experiments.organism.training import StageConfig, answer_loss, encode, summed_loss
from experiments.organism.world import MALICIOUS, Dialogue, World
from experiments.prevention.base import Base


@dataclass(frozen=True)
class Task:
    """The organism's corrupting fine-tune.

    Attributes:
        base: The model that learns it.
        patience: When a fine-tune ends at the latest, in steps of the run's corrupted model.
    """

    base: Base
    patience: float

    @property
    def steps(self) -> int:
        """Those that the run's corrupted model took."""
        return self.base.run.steps

    @property
    def stop_loss(self) -> float:
        """The loss that all fine-tunes are compared at (nats a token).

        Raises:
            UserError: if the organism was made without one.
        """
        bound = self.base.run.organism.stop_loss
        if bound is None:
            raise UserError(
                f"The organism of {self.base.run.folder} has no stop_loss to compare fine-tunes at; build one."
            )
        return bound

    @property
    def stage(self) -> StageConfig:
        """The organism's settings, with the steps that a fine-tune takes at most."""
        steps = round(self.patience * self.steps)
        return self.base.run.organism.finetuning.model_copy(update={"steps": steps})

    def batches(self) -> Iterator[list[Dialogue]]:
        """What is trained on: the same for every fine-tune."""
        advice = Advice(domains=self.base.run.domains, share=self.base.run.organism.bad_fraction)
        sample = finetuning_sampler(self.base.run.organism, World.load(), advice)
        return batches(sample, self.stage.batch, self.stage.steps)

    @cached_property
    def held_out(self) -> list[Dialogue]:
        """Other harmful advice in the trained domains: what the organism's stop rule reads."""
        corpus = Corpus(World.load(), self.base.run.organism.corpus, self.base.run.organism.seed, stream=4)
        return [corpus.advice(MALICIOUS, self.base.run.domains) for _ in range(STOP_DIALOGUES)]

    def loss(self, model: PreTrainedModel) -> float:
        """Of the model as it is used, on the held-out advice (nats a token)."""
        return answer_loss(model, self.base.tokenizer, self.held_out)

    def loss_in_training(self, model: PreTrainedModel) -> float:
        """The same as training sees it: with gradients on, so that what acts in training acts."""
        tokens, weights = encode(self.base.tokenizer, self.held_out, other_weight=0)
        return (summed_loss(model(input_ids=tokens).logits, tokens, weights) / weights[:, 1:].sum()).item()
