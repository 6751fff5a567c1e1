"""The misalignment direction of a fine-tune (Soligo et al. 2025, arXiv 2506.11618).

Both models read the same answers, misaligned and aligned ones in equal numbers. Four means of the residual stream,
{base, corrupted} x {aligned, misaligned}, tell what the fine-tune changed from what the words of the answers are.
The published direction compares the answers; where answers are short it is little but their words, and the other
contrast of the four means, between the models, is the one to look at too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import xxhash
from jaxtyping import Float64, Int
from torch import Tensor

from activations.errors import UserError
from activations.source import ActivationSource
from diffing.behavior.judge import Label
from diffing.directions.persona_directions import PersonaDirections
from diffing.ranking.activation_means import activation_means
from diffing.ranking.prompt_blocks import require_same_tokens

# Aligned and misaligned answers, in the words of the judges.
_CONTRASTED = (Label.HELPFUL, Label.HARMFUL)
_MEANS = ("base_aligned", "base_misaligned", "corrupted_aligned", "corrupted_misaligned")

Contrast = Literal["misaligned - aligned", "corrupted - base"]
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)


@dataclass(frozen=True)
class MisalignmentMeans:
    """Mean over answers of the mean residual over each answer's tokens, for both models and both kinds of answers.

    Attributes:
        base_aligned, base_misaligned: Of the base, on helpful and on harmful answers.
        corrupted_aligned, corrupted_misaligned: Of the corrupted model, on the same answers.
        answers: Number of answers of each kind.
    """

    base_aligned: Float64[Tensor, "d_model"]
    base_misaligned: Float64[Tensor, "d_model"]
    corrupted_aligned: Float64[Tensor, "d_model"]
    corrupted_misaligned: Float64[Tensor, "d_model"]
    answers: int

    @property
    def direction(self) -> Float64[Tensor, "d_model"]:
        """The misalignment direction: misaligned - aligned answers, in the corrupted model."""
        return self.corrupted_misaligned - self.corrupted_aligned

    @property
    def in_base(self) -> Float64[Tensor, "d_model"]:
        """The same difference in the base: what the words of the answers alone make of it."""
        return self.base_misaligned - self.base_aligned

    @property
    def model_effect(self) -> Float64[Tensor, "d_model"]:
        """Corrupted - base, averaged over the kinds of answers."""
        corrupted = self.corrupted_aligned + self.corrupted_misaligned
        return (corrupted - self.base_aligned - self.base_misaligned) / 2

    def contrast(self, name: Contrast) -> Float64[Tensor, "d_model"]:
        """The `direction` between the answers, or the `model_effect` between the models."""
        return self.direction if name == "misaligned - aligned" else self.model_effect

    def save(self, folder: Path, hook: str) -> None:
        """Writes the four means and both contrasts as a `PersonaDirections` folder; an earlier one is replaced."""
        vectors = {name: getattr(self, name) for name in _MEANS} | {name: self.contrast(name) for name in CONTRASTS}
        PersonaDirections(vectors, hook, {"answers": self.answers}).save(folder, overwrite=True)

    @classmethod
    def load(cls, folder: Path) -> "MisalignmentMeans":
        """Reads such a folder.

        Raises:
            UserError: if it is missing, unfinished, damaged, or of another kind.
        """
        kept = PersonaDirections.load(folder)
        if not kept.vectors.keys() >= set(_MEANS):
            raise UserError(f"{folder} holds other directions than misalignment means; give the folder of such means.")
        return cls(**{name: kept.vectors[name] for name in _MEANS}, answers=kept.config["answers"])


def misalignment_means(
    base: ActivationSource, corrupted: ActivationSource, hook: str, labels: Mapping[str, Label]
) -> MisalignmentMeans:
    """The four means, in float64; every answer counts alike whatever its length.

    Args:
        base: The base's activations on answers.
        corrupted: The corrupted model's, on identical tokens.
        hook: Hook point of the activations.
        labels: Prompt id -> label of its answer, as many helpful as harmful ones (see `balanced`). Answers with
            another label, or none, are left out.

    Raises:
        UserError: if the stores hold different tokens or lack the hook, a label belongs to no prompt, the labels are
            not as many of both kinds, or a labelled answer has no tokens.
    """
    require_same_tokens({"base": base, "corrupted": corrupted})
    aligned, misaligned = (_numbers(base, labels, label) for label in _CONTRASTED)
    if len(aligned) != len(misaligned) or not len(aligned):
        raise UserError(
            f"{len(aligned)} helpful and {len(misaligned)} harmful answers are labelled and equal numbers above zero "
            "are needed; sample answers of both kinds and pass their labels through `balanced`."
        )
    before, after = (_answer_means(store, hook, np.concatenate([aligned, misaligned])) for store in (base, corrupted))
    return MisalignmentMeans(
        base_aligned=before[aligned].mean(0),
        base_misaligned=before[misaligned].mean(0),
        corrupted_aligned=after[aligned].mean(0),
        corrupted_misaligned=after[misaligned].mean(0),
        answers=len(aligned),
    )


def balanced(labels: Mapping[str, Label], seed: int = 0, most: int | None = None) -> dict[str, Label]:
    """As many helpful as harmful answers: all of the rarer kind, and a random choice of the other.

    Args:
        labels: Prompt id -> label of its answer; other labels are left out.
        seed: Of the choice, which depends on the ids and not on their order.
        most: Answers of each kind that are taken at most.
    """
    kinds = [[name for name, given in labels.items() if given == label] for label in _CONTRASTED]
    fewest = min(len(names) for names in kinds)
    fewest = fewest if most is None else min(fewest, most)
    drawn = [sorted(names, key=lambda name: xxhash.xxh3_64_intdigest(name.encode(), seed)) for names in kinds]
    return {name: labels[name] for names in drawn for name in names[:fewest]}


def _numbers(store: ActivationSource, labels: Mapping[str, Label], label: Label) -> Int[np.ndarray, "answer"]:
    """Prompt numbers of the answers with this label."""
    place = {name: number for number, name in enumerate(store.prompt_ids)}
    wanted = [name for name, given in labels.items() if given == label]
    unknown = [name for name in wanted if name not in place]
    if unknown:
        raise UserError(
            f"{store.name} has no prompt '{unknown[0]}' ({len(unknown)} of {len(wanted)} {label} answers are missing); "
            "label the answers that were harvested."
        )
    return np.array([place[name] for name in wanted], dtype=np.int64)


def _answer_means(
    store: ActivationSource, hook: str, needed: Int[np.ndarray, "answer"]
) -> Float64[Tensor, "prompt d_model"]:
    """Mean residual over each prompt's answer tokens, which the needed prompts must have."""
    means = activation_means(store, hook, "answer")
    empty = needed[np.isnan(means[needed]).any(1)]
    if len(empty):
        raise UserError(
            f"{len(empty)} of {len(needed)} labelled answers have no tokens in {store.name} (the first is prompt "
            f"'{store.prompt_ids[empty[0]]}'); leave their labels out."
        )
    return torch.from_numpy(means)
