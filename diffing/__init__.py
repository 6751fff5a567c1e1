"""What changed between two models: latent statistics and ranking, directions, behaviour and steering."""

from diffing.ranking.feature_ranking import FeatureRanking

__all__ = ["FeatureRanking"]
