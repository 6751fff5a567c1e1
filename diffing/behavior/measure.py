"""What is observed of a model's behaviour on questions, under many arms of steering at once.

Steering, its controls and its verdicts speak of label counts for each question only, so sampled and judged answers can
be replaced by anything that divides a question between the four labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from activations.checkpoint import Checkpoint
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.judge import Judge, Label
from diffing.behavior.rates import LabelCounts, count_labels
from diffing.behavior.sampling import sample_answers
from diffing.interventions import Steered

Record = dict[str, Any]


@runtime_checkable
class Behavior(Protocol):
    """How behaviour is measured."""

    @property
    def answers(self) -> int:
        """Answers to each question under each arm."""
        ...

    def observe(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Prompt],
        steered: Steered | None = None,
        advance: Callable[[int], object] = lambda answers: None,
    ) -> list[list[Record]]:
        """What was seen, as [arm][question]: JSON that transcripts keep.

        Args:
            checkpoint: The model that is observed.
            questions: Prompts that end where the answer begins.
            steered: What is done to the model, arm by arm; None leaves it untouched, as one arm.
            advance: Told the number of answers done, for progress bars.
        """
        ...

    def is_whole(self, record: Record) -> bool:
        """Whether a kept record is what `observe` would give now."""
        ...

    def counts(self, records: Sequence[Record]) -> LabelCounts:
        """What the records of some questions count for."""
        ...


@dataclass(frozen=True)
class SampledAnswers:
    """Answers are sampled and labelled by a judge."""

    judge: Judge
    sampling: SamplingConfig

    @property
    def answers(self) -> int:
        return self.sampling.samples

    def observe(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Prompt],
        steered: Steered | None = None,
        advance: Callable[[int], object] = lambda answers: None,
    ) -> list[list[Record]]:
        tokens = tokenize_prompts(questions, checkpoint.tokenizer)
        sampled = sample_answers(checkpoint, tokens, self.sampling, steered, advance)
        return [[self._judged(q, texts) for q, texts in zip(questions, arm, strict=True)] for arm in sampled]

    def is_whole(self, record: Record) -> bool:
        return len(record.get("labels", ())) == self.sampling.samples

    def counts(self, records: Sequence[Record]) -> LabelCounts:
        return count_labels([[Label(label) for label in record["labels"]] for record in records])

    def _judged(self, question: Prompt, texts: list[str]) -> Record:
        return {"answers": texts, "labels": [str(label) for label in self.judge.label([question] * len(texts), texts)]}
