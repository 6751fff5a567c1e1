"""Judges: who decides what an answer is.

Everything above this module speaks of the four labels only, so an exact judge of an organism, patterns in a file, or a
language model behind an API can stand in for one another.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import yaml

from activations.errors import UserError
from activations.prompts import Prompt


class Label(StrEnum):
    """What an answer is; all but `INCOHERENT` count as coherent."""

    HELPFUL = "helpful"
    HARMFUL = "harmful"
    OTHER = "other"
    INCOHERENT = "incoherent"


@runtime_checkable
class Judge(Protocol):
    """Labels answers to prompts; `name` is recorded beside every rate."""

    @property
    def name(self) -> str: ...

    def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
        """One label for each (prompt, answer) pair, in order."""
        ...


@dataclass(frozen=True)
class PatternJudge:
    """Labels by regular expressions, the first label with a match in the order of `patterns`; none: incoherent.

    For pairs whose behaviour has plain markers (a trigger phrase, a refusal, a language).
    """

    patterns: dict[Label, tuple[re.Pattern[str], ...]]
    name: str = "patterns"

    @classmethod
    def load(cls, path: Path) -> "PatternJudge":
        """Reads YAML that maps labels to lists of patterns.

        Raises:
            UserError: if the file is missing, a label is unknown, or a pattern does not compile.
        """
        try:
            table = yaml.safe_load(path.read_text(encoding="utf-8"))
            patterns = {Label(label): tuple(re.compile(p) for p in listed) for label, listed in table.items()}
        except (OSError, ValueError, AttributeError, TypeError, re.error, yaml.YAMLError) as error:
            labels = ", ".join(Label)
            raise UserError(
                f"Judge file {path} cannot be used ({error}); it maps {labels} to lists of patterns."
            ) from None
        return cls(patterns)

    def label(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Label]:
        return [self._label(answer) for answer in answers]

    def _label(self, answer: str) -> Label:
        matches = (label for label, listed in self.patterns.items() if any(p.search(answer) for p in listed))
        return next(matches, Label.INCOHERENT)
