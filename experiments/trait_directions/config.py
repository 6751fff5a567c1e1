"""How directions of traits are extracted, as options of the command."""

from diffing.personality.config import ExtractionConfig
from experiments.frame.experiment import ExperimentConfig


class TraitDirectionsConfig(ExtractionConfig, ExperimentConfig):
    """How directions of traits are extracted."""
