"""What an experiment states; everything else (command, folder, resume, tables, page, tracking) the frame does.

An experiment is a follow-up of a finished run. It lives in one folder, `experiments/<name>/`, whose `experiment.py`
ends with `EXPERIMENT = <its class>()`; the command line finds it there. This module imports nothing heavy, so that
help and errors about options need not wait for torch.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from experiments.output.tables import Section

if TYPE_CHECKING:
    import pandas as pd

    from experiments.frame.lab import Lab
    from experiments.output.figures import PaperFigure


class Need(StrEnum):
    """What an experiment needs beside a finished run."""

    ORGANISM = auto()
    """The run made its own checkpoints, so they can be trained again."""
    BEHAVIOR = auto()
    """The run measured behaviour in any way."""
    SAMPLED_ANSWERS = auto()
    """The run judged sampled answers to conversations."""
    TOXIC_LATENT = auto()
    """The run found a toxic latent."""
    FINE_TUNES = auto()
    """A set of fine-tunes of the run's base (`--models`)."""
    TRAIT_DIRECTIONS = auto()
    """What `trait-directions` wrote for the run."""
    TRAITS = auto()
    """Traits and, where there is one, their judge."""


class ExperimentConfig(BaseModel):
    """Settings of an experiment: fields, defaults and descriptions are its options and their help."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=ExperimentConfig)


@dataclass(frozen=True)
class Measured:
    """What an experiment measured.

    Attributes:
        tables: Saved as `<name>.parquet`.
        facts: What summary and figures need beyond the tables; not saved.
        config: What `config.json` records beside the settings, for those who read the result.
    """

    tables: Mapping[str, "pd.DataFrame"]
    facts: Any = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A finished experiment.

    Attributes:
        experiment: Which.
        lab: What it was measured with.
        measured: Tables, and what else was measured.
        summary: Content of `summary.json`.
    """

    experiment: "Experiment[Any]"
    lab: "Lab[Any]"
    measured: Measured
    summary: Mapping[str, Any]

    @property
    def tables(self) -> Mapping[str, "pd.DataFrame"]:
        return self.measured.tables

    @property
    def facts(self) -> Any:
        return self.measured.facts

    @property
    def sentences(self) -> Sequence[str]:
        """What was found."""
        return self.experiment.sentences(self)

    @property
    def sections(self) -> Sequence[Section]:
        """The result's tables for people."""
        return self.experiment.sections(self)

    def _repr_html_(self) -> str:
        """Shown in a notebook: sentences and the tables that the terminal prints, too."""
        from experiments.output.page import fragment

        return fragment(self.sentences, [section for section in self.sections if section.printed])


class Experiment(ABC, Generic[C]):
    """One question that is asked of a finished run. The class's docstring is the long text of its help.

    Attributes:
        name: Its command; the default output folder is `<run>-<name>`.
        question: In one sentence, for help and page.
        config: Its settings.
        needs: What it cannot do without.
        takes: What it uses where it is given.
        may_change: Fields of the config, and inputs ("models"), that a later call into the same folder may give
            another value: what was measured does not depend on them. Any other change is refused.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    config: ClassVar[type[ExperimentConfig]]
    needs: ClassVar[frozenset[Need]] = frozenset()
    takes: ClassVar[frozenset[Need]] = frozenset()
    may_change: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def description(cls) -> str:
        """The long text of its help."""
        return inspect.cleandoc(cls.__doc__ or cls.question)

    @abstractmethod
    def measure(self, lab: "Lab[C]") -> Measured:
        """Measures; what an earlier call left in `lab.out` is used again.

        Raises:
            UserError: if something given does not fit.
        """

    @abstractmethod
    def summarise(self, lab: "Lab[C]", measured: Measured) -> dict[str, Any]:
        """The numbers to quote, as `summary.json` holds them."""

    def sentences(self, result: Result) -> list[str]:
        """What was found, in plain sentences."""
        return []

    def sections(self, result: Result) -> list[Section]:
        """Tables for terminal and page."""
        return []

    def figures(self, result: Result) -> "list[PaperFigure]":
        """Figures of the page; drawn inside the frame's style."""
        return []
