"""How a run measures behaviour."""

from diffing.behavior.contrast import AnswerContrast
from diffing.behavior.judge import Judge, PatternJudge
from diffing.behavior.measure import Behavior, SampledAnswers
from experiments.organism.judge import OrganismJudge
from experiments.run.config import RunConfig


def make_behavior(config: RunConfig) -> Behavior:
    """How the config measures behaviour: answers sampled as for steering and judged, or given answers compared."""
    if config.judge is not None and config.judge.kind == "contrast" and config.judge.file is not None:
        return AnswerContrast.load(config.judge.file)
    assert config.steering is not None
    return SampledAnswers(make_judge(config), config.steering.sampling.model_copy(update={"seed": config.seed}))


def make_judge(config: RunConfig) -> Judge:
    """The judge that the config names."""
    if config.judge is not None and config.judge.kind == "patterns" and config.judge.file is not None:
        return PatternJudge.load(config.judge.file)
    assert config.prompts.selection is not None  # RunConfig checks that whatever is judged has its questions
    return OrganismJudge.load(config.prompts.selection.parent)
