"""Taking a direction out of models that it was not found in, at one layer or at all of them.

Soligo et al. (2025, arXiv 2506.11618) ablate layer-wise (each layer's own direction at its layer) and one layer's
direction at every layer, also in other fine-tunes. One layer alone, the variant that puts the base's mean projection
back, and subtraction are here beside them: how many layers a direction must be taken out of depends on the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from activations.checkpoint import Checkpoint
from activations.prompts import PROMPT_ROLES
from activations.source import ActivationSource
from diffing.behavior.judge import Label
from diffing.behavior.measure import Behavior
from diffing.behavior.rates import LabelCounts
from diffing.interventions import AblateDirection
from diffing.ranking.activation_means import residual_norm
from diffing.statistics.bootstrap import resampled_ratio
from diffing.statistics.intervals import Estimate, percentile_interval
from diffing.steering.arms import Arm, Cell
from diffing.steering.config import Operation
from diffing.steering.experiment import Bench, QuestionSet, run_cells

Direction = Mapping[str, Float[Tensor, "d_model"]]  # by hook: a unit vector at every layer


class Reach(StrEnum):
    """At which layers a treatment acts, and with which layer's vector."""

    ONE = "one layer"
    EVERYWHERE = "one vector at all layers"
    LAYER_WISE = "each layer's own"


@dataclass(frozen=True)
class Treatment:
    """What is done with a direction.

    Attributes:
        operation: Ablations reach any layers; addition and subtraction act at one.
        reach: Where.
        hook: Whose vector is taken; empty for `LAYER_WISE`.
        strength: In mean residual norms of the base; 0 for ablations.
    """

    operation: Operation
    reach: Reach
    hook: str = ""
    strength: float = 0.0

    def units(self, direction: Direction) -> dict[str, Float[Tensor, "d_model"]]:
        """The vector that is used at each hook where the treatment acts."""
        if self.reach == Reach.LAYER_WISE:
            return dict(direction)
        where = direction if self.reach == Reach.EVERYWHERE else (self.hook,)
        return dict.fromkeys(where, direction[self.hook])


@dataclass(frozen=True)
class Treated:
    """One treatment with one direction; `name` tells the direction apart in transcripts."""

    name: str
    direction: Direction
    treatment: Treatment


@dataclass(frozen=True)
class Layers:
    """What treatments at several hooks share.

    Attributes:
        benches: By hook.
        base_means: By hook, the base's mean activation over prompt tokens.
    """

    benches: Mapping[str, Bench]
    base_means: Mapping[str, Float[Tensor, "d_model"]]

    @classmethod
    def of(cls, base: ActivationSource, sae: SAE, behavior: Behavior) -> "Layers":
        """At every hook of the base's activations on prompts."""
        benches = {hook: Bench(hook, residual_norm(base, hook), sae, behavior) for hook in base.hooks}
        return cls(benches, {hook: base.read(hook, PROMPT_ROLES).double().mean(0).float() for hook in base.hooks})

    def arm(self, name: str, hook: str, unit: Float[Tensor, "d_model"]) -> Arm:
        """A unit vector as an arm at one hook."""
        return Arm(name, "direction", unit, base_mean=float(unit @ self.base_means[hook]))


def run_treatments(
    layers: Layers,
    checkpoint: Checkpoint,
    treated: Sequence[Treated],
    half: QuestionSet,
    folder: Path,
    progress: bool = True,
) -> list[LabelCounts]:
    """Observes the behaviour under every treatment; what `folder` holds already is not observed again.

    Args:
        layers: What the treatments share.
        checkpoint: The model that is treated.
        treated: Directions with what is done with them.
        half: The questions.
        folder: Of the transcripts, for this model and half alone.
        progress: Whether to show a bar.

    Returns:
        Label counts in the order of `treated`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, LabelCounts] = {}
    with tqdm(
        total=len(treated), desc=f"treat {checkpoint.role} ({half.name})", disable=not progress, leave=False
    ) as bar:
        for (reach, hook), places in _groups(treated).items():
            chosen = [treated[place] for place in places]
            transcripts = folder / f"{' '.join(filter(None, (reach, hook)))}.jsonl"
            run = _at_one_layer if reach == Reach.ONE else _at_all_layers
            found |= zip(places, run(layers, checkpoint, chosen, half, transcripts), strict=True)
            bar.update(len(places))
    return [found[place] for place in range(len(treated))]


def share_removed(pairs: Sequence[tuple[LabelCounts, LabelCounts]], label: Label = Label.HARMFUL) -> Estimate:
    """Mean over pairs of (1 - rate of `label` when treated / rate when untouched).

    All arms answered the same questions; the bootstrap draws the same ones for all of them.

    Args:
        pairs: Label counts of an untouched model and of the same model treated.
        label: What is to be removed.

    Raises:
        ValueError: if an untouched model never gives the label.
    """
    column = list(Label).index(label)
    rates = np.array([[counts[:, column] / counts.sum(1) for counts in pair] for pair in pairs])  # pair arm question
    if not (rates[:, 0].sum(1) > 0).all():
        raise ValueError(f"Expected {label} answers of every untouched model")
    # A draw of questions that an untouched model answers well has nothing to remove.
    draws = np.mean([1 - resampled_ratio(after, before) for before, after in rates], axis=0)
    return Estimate(float((1 - rates[:, 1].sum(1) / rates[:, 0].sum(1)).mean()), *percentile_interval(draws))


def _groups(treated: Sequence[Treated]) -> dict[tuple[Reach, str], list[int]]:
    """Places of the treatments that share a file of transcripts."""
    groups: dict[tuple[Reach, str], list[int]] = {}
    for place, one in enumerate(treated):
        groups.setdefault((one.treatment.reach, one.treatment.hook), []).append(place)
    return groups


def _at_one_layer(
    layers: Layers, checkpoint: Checkpoint, treated: Sequence[Treated], half: QuestionSet, transcripts: Path
) -> list[LabelCounts]:
    """All of them in batched generations."""
    hook = treated[0].treatment.hook
    arms = [layers.arm(one.name, hook, one.direction[hook]) for one in treated]
    cells = [Cell(a, one.treatment.operation, one.treatment.strength) for a, one in zip(arms, treated, strict=True)]
    results = run_cells(layers.benches[hook], checkpoint, cells, half, transcripts, progress=False)
    return [result.counts for result in results]


def _at_all_layers(
    layers: Layers, checkpoint: Checkpoint, treated: Sequence[Treated], half: QuestionSet, transcripts: Path
) -> list[LabelCounts]:
    """Likewise: a cell acts at one hook, so its arm holds the vectors of all hooks, and `_AllLayers` deals them out."""
    cells = []
    for one in treated:
        if one.treatment.operation not in (Operation.ABLATE, Operation.ABLATE_TO_MEAN):
            raise ValueError(f"Expected an ablation at several layers, got {one.treatment.operation}")
        units = one.treatment.units(one.direction)
        # Of the base's mean, all is put back.
        arm = Arm(one.name, "direction", torch.cat([units[hook] for hook in layers.benches]), base_mean=1.0)
        cells.append(Cell(arm, one.treatment.operation))
    loaded = (checkpoint.config, checkpoint.role, checkpoint.bridge, checkpoint.tokenizer, checkpoint.fingerprint)
    dealing, bench = _AllLayers(*loaded, layers.base_means), next(iter(layers.benches.values()))
    return [r.counts for r in run_cells(bench, dealing, cells, half, transcripts, progress=False)]


@dataclass(frozen=True, eq=False)
class _AllLayers(Checkpoint):
    """A checkpoint in which an ablation of several layers' vectors, joined end to end, acts at each of those layers.

    Its `means` say which share of the base's mean projection is put back at each layer.
    """

    base_means: Mapping[str, Float[Tensor, "d_model"]]

    @contextmanager
    def hooks(self, functions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
        dealt: dict[str, Callable[[Tensor], Tensor | None]] = {}
        for ablation in functions.values():
            assert isinstance(ablation, AblateDirection)
            parts = ablation.units.chunk(len(self.base_means), dim=1)
            for (hook, mean), units in zip(self.base_means.items(), parts, strict=True):
                dealt[hook] = AblateDirection(units, ablation.means * (units @ mean.to(units)))
        with super().hooks(dealt):
            yield
