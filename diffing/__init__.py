"""What changed between two models: latent statistics and ranking, directions, behaviour and steering."""

from typing import TYPE_CHECKING

from activations.lazy import lazy_names

if TYPE_CHECKING:
    from diffing.behavior.config import ModelJudgeConfig, SamplingConfig
    from diffing.behavior.contrast import AnswerContrast
    from diffing.behavior.judge import Label, PatternJudge
    from diffing.behavior.measure import SampledAnswers
    from diffing.behavior.model_judge import ModelJudge
    from diffing.behavior.rates import BehaviorScores, score
    from diffing.behavior.sampling import sample_answers
    from diffing.directions.decompose import decompose
    from diffing.directions.extract import extract_directions
    from diffing.directions.persona_directions import PersonaDirections
    from diffing.interventions import AblateDirection, AblateLatent, Add, Cap
    from diffing.kl import mean_kl
    from diffing.ranking.activation_means import residual_norm
    from diffing.ranking.config import RankingConfig
    from diffing.ranking.examples import top_examples
    from diffing.ranking.feature_ranking import FeatureRanking
    from diffing.ranking.interference import interference
    from diffing.ranking.rank import rank_latents
    from diffing.ranking.residual import unexplained_difference
    from diffing.steering.config import ProofConfig
    from diffing.steering.prevention import LatentPenalty, PreventativeSteering
    from diffing.steering.proof import prove
    from diffing.traits.pairs import contrastive_prompts, judged_pairs
    from diffing.traits.trait_set import load_traits
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "diffing.behavior.config": ["ModelJudgeConfig", "SamplingConfig"],
            "diffing.behavior.contrast": ["AnswerContrast"],
            "diffing.behavior.judge": ["Label", "PatternJudge"],
            "diffing.behavior.measure": ["SampledAnswers"],
            "diffing.behavior.model_judge": ["ModelJudge"],
            "diffing.behavior.rates": ["BehaviorScores", "score"],
            "diffing.behavior.sampling": ["sample_answers"],
            "diffing.directions.decompose": ["decompose"],
            "diffing.directions.extract": ["extract_directions"],
            "diffing.directions.persona_directions": ["PersonaDirections"],
            "diffing.kl": ["mean_kl"],
            "diffing.ranking.config": ["RankingConfig"],
            "diffing.ranking.examples": ["top_examples"],
            "diffing.ranking.feature_ranking": ["FeatureRanking"],
            "diffing.ranking.interference": ["interference"],
            "diffing.ranking.rank": ["rank_latents"],
            "diffing.ranking.residual": ["unexplained_difference"],
            "diffing.ranking.activation_means": ["residual_norm"],
            "diffing.steering.config": ["ProofConfig"],
            "diffing.interventions": ["AblateDirection", "AblateLatent", "Add", "Cap"],
            "diffing.steering.prevention": ["LatentPenalty", "PreventativeSteering"],
            "diffing.steering.proof": ["prove"],
            "diffing.traits.pairs": ["contrastive_prompts", "judged_pairs"],
            "diffing.traits.trait_set": ["load_traits"],
        },
    )

__all__ = [
    "AblateDirection",
    "AblateLatent",
    "Add",
    "AnswerContrast",
    "BehaviorScores",
    "Cap",
    "FeatureRanking",
    "Label",
    "LatentPenalty",
    "ModelJudge",
    "ModelJudgeConfig",
    "PatternJudge",
    "PersonaDirections",
    "PreventativeSteering",
    "ProofConfig",
    "RankingConfig",
    "SampledAnswers",
    "SamplingConfig",
    "contrastive_prompts",
    "decompose",
    "extract_directions",
    "interference",
    "judged_pairs",
    "load_traits",
    "mean_kl",
    "prove",
    "rank_latents",
    "residual_norm",
    "sample_answers",
    "score",
    "top_examples",
    "unexplained_difference",
]
