"""Choices between treatments: which ablations there are, and which option does most at a bearable cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from diffing.steering.config import Operation
from diffing.steering.transfer import Reach, Treatment

ABLATIONS = (Operation.ABLATE, Operation.ABLATE_TO_MEAN)
Key = TypeVar("Key")


@runtime_checkable
class HasCost(Protocol):
    """What a treatment costs."""

    @property
    def extra_incoherent(self) -> float:
        """Incoherent answers (share) beyond those of the untouched model."""
        ...


Cost = TypeVar("Cost", bound=HasCost)


def ablations_of(hooks: Sequence[str]) -> list[Treatment]:
    """Both ablations at each layer, of each layer's vector at all layers, and of each layer's own at all layers."""
    return [
        *(Treatment(op, reach, hook) for op in ABLATIONS for reach in (Reach.ONE, Reach.EVERYWHERE) for hook in hooks),
        *(Treatment(op, Reach.LAYER_WISE) for op in ABLATIONS),
    ]


def best_within(options: Mapping[Key, Sequence[Cost]], wanted: Callable[[Cost], float], budget: float) -> Key:
    """The option with the most of `wanted` in the mean of its outcomes among those within the budget of incoherence.

    If none is within it, the one with the fewest incoherent answers.
    """
    extra = {key: sum(o.extra_incoherent for o in found) / len(found) for key, found in options.items()}
    within = [key for key in options if extra[key] <= budget]
    if not within:
        return min(options, key=lambda key: extra[key])
    return max(within, key=lambda key: sum(map(wanted, options[key])) / len(options[key]))
