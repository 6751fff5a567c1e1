"""Capability: how often a model still gives the exact answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import Prompt
from activations.tokens import tokenize_prompts
from diffing.behavior.config import SamplingConfig
from diffing.behavior.judge import Label
from diffing.behavior.sampling import sample_answers


@dataclass(frozen=True)
class ExactMatch:
    """Judge of capability: an answer that equals the question's, word for word, counts as helpful, others as other."""

    expected: Mapping[str, str]
    name: str = "exact match"

    def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
        """One label for each (prompt, answer) pair, in order."""
        pairs = zip(prompts, answers, strict=True)
        return [Label.HELPFUL if text == self.expected[prompt.id] else Label.OTHER for prompt, text in pairs]


def exact_match(checkpoint: Checkpoint, questions: Sequence[Prompt], config: SamplingConfig) -> float:
    """Share (0-1) of sampled answers that equal the question's `answer` word for word.

    Raises:
        UserError: if a question has no answer to compare with.
    """
    asked, judge = exact_questions(questions)
    answers = sample_answers(checkpoint, tokenize_prompts(asked, checkpoint.tokenizer), config)[0]
    labels = [label for q, texts in zip(asked, answers, strict=True) for label in judge.label([q] * len(texts), texts)]
    return labels.count(Label.HELPFUL) / len(labels)


def exact_questions(questions: Sequence[Prompt]) -> tuple[list[Prompt], ExactMatch]:
    """Questions without their answers, and the judge that knows these.

    Raises:
        UserError: if a question has no answer to compare with.
    """
    if unanswered := [q.id for q in questions if q.answer is None]:
        raise UserError(f"Capability question '{unanswered[0]}' has no answer; add one to its file.")
    judge = ExactMatch({q.id: q.answer for q in questions if q.answer is not None})
    return [replace(q, answer=None) for q in questions], judge
