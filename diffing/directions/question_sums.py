"""What a fine-tune's directions are made of, question by question, so that questions can be resampled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import einsum
from jaxtyping import Float64, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.source import ActivationSource
from diffing.behavior.judge import Label
from diffing.directions.misalignment import MisalignmentMeans
from diffing.geometry import unit_rows
from diffing.ranking.activation_means import activation_means
from diffing.statistics.bootstrap import draw_units

_LABELS = (Label.HELPFUL, Label.HARMFUL)


@dataclass(frozen=True)
class QuestionSums:
    """Sums over the answers to each question, at one hook, of the mean residual over an answer's tokens.

    Attributes:
        base, corrupted: Of both models, over helpful and over harmful answers.
        answers: How many they are.
    """

    base: Float64[Tensor, "label question d_model"]
    corrupted: Float64[Tensor, "label question d_model"]
    answers: Int64[Tensor, "label question"]

    @classmethod
    def of(
        cls,
        base: ActivationSource,
        corrupted: ActivationSource,
        hook: str,
        labels: Mapping[str, Label],
        asked: Sequence[int],
        questions: int,
    ) -> "QuestionSums":
        """Sums what `misalignment_means` averages.

        Args:
            base, corrupted, hook, labels: As `misalignment_means` takes them; every prompt has one of both labels.
            asked: Number of the question that each prompt answers.
            questions: How many there are.
        """
        given = [labels[name] for name in base.prompt_ids]
        is_label = torch.tensor([[one == label for one in given] for label in _LABELS])
        is_asked = torch.nn.functional.one_hot(torch.tensor(asked), questions).bool()
        chosen = einsum(is_label.double(), is_asked.double(), "label answer, answer question -> label question answer")
        sums = (chosen @ torch.from_numpy(activation_means(store, hook, "answer")) for store in (base, corrupted))
        return cls(*sums, answers=chosen.sum(-1).long())

    def resampled(
        self, direction: Callable[[MisalignmentMeans], Tensor], seed: int
    ) -> Float64[Tensor, "replicate d_model"]:
        """Unit directions on resampled questions: a bootstrap whose unit is the question.

        One seed draws the same questions for all fine-tunes, whose directions therefore belong together.

        Args:
            direction: Linear in the four means.
            seed: Of the draws.

        Returns:
            NaN where no drawn question has a harmful, or a helpful, answer.
        """
        draws = torch.tensor(draw_units(self.answers.shape[1], seed), dtype=torch.float64)
        answers = (draws @ self.answers.T.double()).T[..., None]
        means = [
            mean
            for sums in (self.base, self.corrupted)
            for mean in einsum(draws, sums, "replicate question, label question d -> label replicate d") / answers
        ]
        # Linear, so all replicates can be one long vector.
        found = direction(MisalignmentMeans(*(mean.reshape(-1) for mean in means), answers=int(self.answers[0].sum())))
        return unit_rows(found.reshape(means[0].shape))

    def save(self, file: Path) -> None:
        """Writes safetensors, in float32: the sums are many."""
        file.parent.mkdir(parents=True, exist_ok=True)
        sums = {name: getattr(self, name).float().contiguous() for name in ("base", "corrupted")}
        save_file({**sums, "answers": self.answers.contiguous()}, file)

    @classmethod
    def load(cls, file: Path) -> "QuestionSums":
        """Reads what `save` wrote."""
        kept = load_file(file)
        return cls(kept["base"].double(), kept["corrupted"].double(), kept["answers"])
