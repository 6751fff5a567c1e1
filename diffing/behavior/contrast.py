"""Behaviour without sampling or a judge: which of two given answers a model finds likelier.

Every question comes with a harmful and a helpful answer. What is compared is the mean log-probability of their tokens,
l_harmful and l_helpful. No published recipe divides a question between labels by them; ours is

- harmful = coherent * exp(l_harmful) / (exp(l_harmful) + exp(l_helpful)), helpful the rest of coherent;
- coherent = min(1, (exp(l_harmful) + exp(l_helpful)) / (the same, untouched)): steering that makes both answers
  unlikely has broken the model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from activations.checkpoint import Checkpoint
from activations.errors import UserError
from activations.prompts import Prompt, Role
from activations.tokens import TokenBatch, tokenize_prompts
from diffing.behavior.judge import Label
from diffing.behavior.measure import Record
from diffing.behavior.rates import LabelCounts
from diffing.behavior.sampling import batches
from diffing.interventions import Steered

_KINDS = (Label.HARMFUL, Label.HELPFUL)
# Values of [row pos vocab] that are held at once.
_BATCH_VALUES = 2**26


@dataclass(frozen=True)
class AnswerContrast:
    """Two given answers to each question.

    Attributes:
        pairs: Id of a question -> its answers, as {harmful: ..., helpful: ...}.
    """

    pairs: Mapping[str, Mapping[Label, str]]

    @classmethod
    def load(cls, path: Path) -> "AnswerContrast":
        """Reads JSONL rows {"id": <id of a question>, "harmful": <answer>, "helpful": <answer>}.

        Raises:
            UserError: if the file cannot be read or a row lacks one of them.
        """
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            pairs = {str(row["id"]): {label: str(row[label]) for label in _KINDS} for row in rows}
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"Answer pairs {path} cannot be used ({error}); each line needs id, harmful and helpful."
            ) from None
        return cls(pairs)

    @property
    def answers(self) -> int:
        return 1

    def observe(
        self,
        checkpoint: Checkpoint,
        questions: Sequence[Prompt],
        steered: Steered | None = None,
        advance: Callable[[int], object] = lambda answers: None,
    ) -> list[list[Record]]:
        """Mean log-probabilities (nats a token) of both answers, untouched and under each arm.

        Raises:
            UserError: if a question has no pair.
        """
        read = self._tokens(checkpoint, questions)
        before = _mean_log_probs(checkpoint, read)[0].tolist()
        after = _mean_log_probs(checkpoint, read, steered).tolist()
        advance(len(after) * len(questions))
        return [
            [{"untouched": b, "log_probs": a} for b, a in zip(_in_pairs(before), _in_pairs(arm), strict=True)]
            for arm in after
        ]

    def is_whole(self, record: Record) -> bool:
        return "log_probs" in record

    def counts(self, records: Sequence[Record]) -> LabelCounts:
        after, before = (np.exp([record[name] for record in records]) for name in ("log_probs", "untouched"))
        coherent = np.minimum(1, after.sum(1) / before.sum(1))
        harmful = coherent * after[:, 0] / after.sum(1)
        shares = {Label.HARMFUL: harmful, Label.HELPFUL: coherent - harmful, Label.INCOHERENT: 1 - coherent}
        return np.stack([shares.get(label, np.zeros(len(records))) for label in Label], axis=1)

    def _tokens(self, checkpoint: Checkpoint, questions: Sequence[Prompt]) -> TokenBatch:
        """Both answers of each question, next to each other."""
        missing = [question.id for question in questions if question.id not in self.pairs]
        if missing:
            raise UserError(
                f"Question '{missing[0]}' has no pair of answers ({len(missing)} of {len(questions)} have none); "
                "add a row with its id."
            )
        both = [
            replace(question, id=f"{question.id} ({label})", answer=self.pairs[question.id][label])
            for question in questions
            for label in _KINDS
        ]
        return tokenize_prompts(both, checkpoint.tokenizer)


@torch.inference_mode()
def _mean_log_probs(
    checkpoint: Checkpoint, read: TokenBatch, steered: Steered | None = None
) -> Float64[np.ndarray, "arm prompt"]:
    """Mean log-probability of the answer tokens of each prompt."""
    arms = 1 if steered is None else steered.arms
    found = np.zeros((arms, len(read)))
    longest = max(len(tokens) for tokens in read.tokens)
    rows_at_once = max(1, _BATCH_VALUES // (longest * len(checkpoint.tokenizer)))
    for work in batches(read, arms, rows_at_once):
        prompts = work.prompts.tolist()
        tokens = torch.from_numpy(np.stack([read.tokens[i] for i in prompts])).long().to(checkpoint.device)
        answer = torch.from_numpy(np.stack([read.roles[i] == Role.ANSWER for i in prompts])).to(checkpoint.device)
        with checkpoint.hooks(steered.of(work.arms).hooks() if steered is not None else {}):
            logits = checkpoint.forward(tokens, torch.ones_like(tokens)).logits
        assert logits is not None
        found[work.arms.numpy(), prompts] = _answer_means(logits, tokens, answer).cpu().numpy()
    return found


def _answer_means(logits: Float[Tensor, "row pos vocab"], tokens: Tensor, answer: Tensor) -> Float64[Tensor, "row"]:
    predicted = logits[:, :-1].double().log_softmax(-1)
    given = predicted.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    wanted = answer[:, 1:]
    return (given * wanted).sum(1) / wanted.sum(1)


def _in_pairs(values: list[float]) -> list[list[float]]:
    """(harmful, helpful) of each question."""
    return [list(pair) for pair in zip(islice(values, 0, None, 2), islice(values, 1, None, 2), strict=True)]
