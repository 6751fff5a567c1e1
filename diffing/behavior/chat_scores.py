"""Scores from 0 to 100 that a language model behind an OpenAI-compatible API gives (vLLM, llama.cpp, a hosted one).

A score is the expected value over the numbers among the first token's most probable ones (Betley et al. 2025, arXiv
2502.17424). That needs a model whose tokenizer has a token for every number up to 100. Others write a number digit by
digit, and the API does not tell how likely the digits after an improbable first one are. With `samples` the score is
the mean of that many sampled numbers instead: the same expected value, with noise, from any tokenizer and from servers
without log-probabilities. Neither replaces the other silently: a model that needs `samples` is refused until they are
set, so that all scores of a run are of one kind.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openai
import xxhash
from jaxtyping import Float64
from openai.types.chat import ChatCompletion
from tqdm import tqdm

from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig

_PROBE = "Reply with the number 100 alone."
_MOST_LOGPROBS = 20  # the API gives no more
_SAMPLED_TOKENS = 8  # enough for a number that is written digit by digit
_NUMBER = re.compile(r"\s*([0-9]+)(?![.,]?[0-9])")


@dataclass(frozen=True)
class Reply:
    """What is kept of the judge's answer to one question.

    Attributes:
        score: Expected number, 0-100; None if no number is among the answers.
        probability: Of all numbers together (of samples: their share).
        text: Start of the most probable answer, or the first sample.
    """

    score: float | None
    probability: float
    text: str

    @classmethod
    def expected(cls, text: str, weights: Sequence[tuple[str, float]]) -> "Reply":
        """From answers and their probabilities; the number that an answer starts with counts."""
        numbers = [(number, weight) for answer, weight in weights if (number := _number(answer)) is not None]
        total = math.fsum(weight for _, weight in numbers)
        score = min(100.0, math.fsum(number * weight for number, weight in numbers) / total) if total else None
        return cls(score, total, text)


class ChatScores:
    """Asks a language model for numbers, and keeps its replies.

    Args:
        config: Whom and how to ask. Nothing is sent anywhere but to its URL, and nothing before the first question.
        cache: JSONL of all replies, by a hash of model and question. It grows line by line, so a killed run asks
            nothing twice; one process at a time may use it.
        progress: Shows bars.
    """

    def __init__(self, config: ModelJudgeConfig, cache: Path, progress: bool = True):
        self.config, self._cache, self._progress = config, cache, progress
        key = os.environ.get(config.key_variable) or "none"
        self._client = openai.OpenAI(
            base_url=config.url, api_key=key, max_retries=config.retries, timeout=config.timeout
        )

    def check(self) -> None:
        """Asks for a number, so that a model that cannot score is known before anything else is done.

        Raises:
            UserError: if the server cannot be reached, or its answer gives no score.
        """
        key = self._key(_PROBE)
        if key in self._replies:
            return
        reply = self._ask(_PROBE)
        if reply.probability < self.config.least_probability:
            raise UserError(
                f"The judge {self.config.model} was asked for a number and gives one with probability "
                f"{reply.probability:.2f} only ('{reply.text}'); set samples, or take one that does not think first."
            )
        self._keep(key, reply)

    def scores(self, questions: Sequence[str], what: str) -> Float64[np.ndarray, "question"]:
        """The score of each question, 0-100; NaN where the model gives no number, as in a refusal.

        Args:
            questions: Each asks for a number from 0 to 100.
            what: What is asked, beside the bar.

        Raises:
            UserError: if the server does not answer as it should; replies until then are kept.
        """
        keys = [self._key(text) for text in questions]
        self._ask_all({key: text for key, text in zip(keys, questions, strict=True) if key not in self._replies}, what)
        return np.array([self._score(self._replies[key]) for key in keys], dtype=np.float64)

    def _score(self, reply: Reply) -> float:
        unsure = reply.probability < self.config.least_probability
        return math.nan if reply.score is None or unsure else reply.score

    def _ask_all(self, texts: Mapping[str, str], what: str) -> None:
        """Asks in threads; replies are kept as they come."""
        if not texts:
            return
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            asked = {pool.submit(self._ask, text): key for key, text in texts.items()}
            try:
                self._keep_all(asked, what)
            except BaseException:
                # Whatever waits would fail in the same way, after retries of its own.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _keep_all(self, asked: Mapping[Future[Reply], str], what: str) -> None:
        bar = tqdm(as_completed(asked), f"judging {what}", len(asked), False, disable=not self._progress)
        for done in bar:
            self._keep(asked[done], done.result())

    def _ask(self, text: str) -> Reply:
        try:
            return self._first_token(text) if self.config.samples is None else self._sampled(text, self.config.samples)
        except openai.OpenAIError as error:
            raise UserError(_sentence(error, self.config)) from None

    def _first_token(self, text: str) -> Reply:
        # The second token tells whether the first was only the beginning of a number.
        asked = {"max_tokens": 2, "temperature": 0.0, "logprobs": True, "top_logprobs": _MOST_LOGPROBS}
        choice = self._complete(text, asked).choices[0]
        tokens = choice.logprobs.content if choice.logprobs is not None else None
        if not tokens or not tokens[0].top_logprobs:
            raise UserError(f"The judge at {self.config.url} gives no log-probabilities; set samples, such as 10.")
        said = choice.message.content or ""
        if len(tokens) > 1 and _number(tokens[0].token) is not None and tokens[1].token[:1].isdecimal():
            raise UserError(
                f"The judge {self.config.model} writes a number in several tokens ('{said}'), so the first does not "
                "tell its score; set samples, such as 10."
            )
        return Reply.expected(said, [(top.token, math.exp(top.logprob)) for top in tokens[0].top_logprobs])

    def _sampled(self, text: str, samples: int) -> Reply:
        said: list[str] = []
        # Some servers give one answer, however many they are asked for.
        while len(said) < samples:
            asked = {"max_tokens": _SAMPLED_TOKENS, "temperature": 1.0, "n": samples - len(said)}
            said += [choice.message.content or "" for choice in self._complete(text, asked).choices]
        return Reply.expected(said[0], [(answer, 1 / len(said)) for answer in said])

    def _complete(self, text: str, options: Mapping[str, Any]) -> ChatCompletion:
        reply = self._client.chat.completions.create(
            model=self.config.model, messages=[{"role": "user", "content": text}], **options
        )
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise UserError(f"{self.config.url} does not answer as an OpenAI-compatible API; its URL may lack /v1.")
        return reply

    @cached_property
    def _replies(self) -> dict[str, Reply]:
        """What is in the cache, by key; a last line that a killed run wrote by half is cut off."""
        if not self._cache.exists():
            return {}
        content = self._cache.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._cache, len(whole))
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
            return {row.pop("key"): Reply(**row) for row in rows}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self._cache} is no file of a judge's replies; delete it to judge again.") from None

    def _keep(self, key: str, reply: Reply) -> None:
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with self._cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False) + "\n")
        self._replies[key] = reply

    def _key(self, text: str) -> str:
        return xxhash.xxh3_128(json.dumps([self.config.model, self.config.samples, text]).encode()).hexdigest()


def _number(text: str) -> int | None:
    """The number from 0 to 100 that a text starts with; decimals are none."""
    found = _NUMBER.match(text)
    return int(found[1]) if found is not None and int(found[1]) <= 100 else None


def _sentence(error: openai.OpenAIError, config: ModelJudgeConfig) -> str:
    """What went wrong, and the remedy."""
    match error:
        case openai.APITimeoutError():
            problem = f"gave no answer within {config.timeout:g} seconds; ask fewer at once, or wait longer"
        case openai.APIConnectionError():
            problem = "cannot be reached; start its server, or correct the URL"
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            problem = f"refuses the key in the environment variable {config.key_variable}; set one that it accepts"
        case openai.NotFoundError():
            problem = f"knows no model '{config.model}', or its URL lacks /v1; {config.url}/models lists the models"
        case openai.RateLimitError():
            problem = "turns requests away as too many; ask fewer at once, or run again later"
        case _:
            problem = f"failed ({' '.join(str(error).split())[:300]}); see its log"
    return f"The judge at {config.url} {problem} (what was judged is kept)."
