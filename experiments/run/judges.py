"""How a run can measure behaviour. Another judge is one more entry of `JUDGES`; what it needs is imported when made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffing.behavior.judge import Judge
    from diffing.behavior.measure import Behavior
    from experiments.run.config import RunConfig


@dataclass(frozen=True)
class JudgeKind:
    """A way to measure behaviour, by the name that `judge.kind` of a config has.

    Attributes:
        meaning: For help.
        make: Makes it from a config whose `judge` is of this kind.
        file: What `judge.file` holds; None: the kind has no file.
        samples: Whether it labels sampled answers.
    """

    meaning: str
    make: "Callable[[RunConfig], Behavior]"
    file: str | None = None
    samples: bool = True


def make_behavior(config: "RunConfig") -> "Behavior":
    """How the config measures behaviour.

    Raises:
        UserError: if the judge's file cannot be used.
    """
    assert config.judge is not None  # RunConfig checks that whatever is judged has a judge
    return JUDGES[config.judge.kind].make(config)


def _sampled(config: "RunConfig", judge: "Judge") -> "Behavior":
    """Answers sampled as for steering, and labelled."""
    from diffing.behavior.measure import SampledAnswers

    assert config.steering is not None
    return SampledAnswers(judge, config.steering.sampling.model_copy(update={"seed": config.seed}))


def _organism(config: "RunConfig") -> "Behavior":
    from experiments.organism.judge import OrganismJudge

    assert config.prompts.selection is not None  # RunConfig checks that whatever is judged has its questions
    return _sampled(config, OrganismJudge.load(config.prompts.selection.parent))


def _patterns(config: "RunConfig") -> "Behavior":
    from diffing.behavior.judge import PatternJudge

    assert config.judge is not None
    assert config.judge.file is not None
    return _sampled(config, PatternJudge.load(config.judge.file))


def _contrast(config: "RunConfig") -> "Behavior":
    from diffing.behavior.contrast import AnswerContrast

    assert config.judge is not None
    assert config.judge.file is not None
    return AnswerContrast.load(config.judge.file)


JUDGES: dict[str, JudgeKind] = {
    "organism": JudgeKind("the organism's exact judge", _organism),
    "patterns": JudgeKind("regular expressions in a file", _patterns, file="YAML of label -> regular expressions"),
    "contrast": JudgeKind(
        "likelihoods of given answers, nothing sampled",
        _contrast,
        file="JSONL of id, harmful and helpful",
        samples=False,
    ),
}
