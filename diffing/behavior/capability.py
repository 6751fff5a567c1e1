"""Capability: how often a model still gives the exact answer."""

from collections.abc import Sequence
from dataclasses import replace

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import Prompt, tokenize_prompts
from diffing.behavior.sampling import SamplingConfig, sample_answers


def exact_match(checkpoint: Checkpoint, questions: Sequence[Prompt], config: SamplingConfig) -> float:
    """Share (0-1) of sampled answers that equal the question's `answer` word for word.

    Raises:
        UserError: if a question has no answer to compare with.
    """
    for question in questions:
        if question.answer is None:
            raise UserError(f"Capability question '{question.id}' has no answer; add one to its file.")
    asked = tokenize_prompts([replace(q, answer=None) for q in questions], checkpoint.tokenizer)
    answers = sample_answers(checkpoint, asked, config)[0]
    hits = [text == q.answer for q, texts in zip(questions, answers, strict=True) for text in texts]
    return sum(hits) / len(hits)
