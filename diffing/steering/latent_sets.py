"""Sets of latents that are steered together, as one vector: does a few latents' share of the shift make the behaviour?

A set's vector is the part of the models' mean difference that its latents carry: the sum over the set of shift times
decoder row. A *joint* set takes the latents with the largest parts all at once; a *greedy* set grows by the latent that
serves behaviour best beside those it already has. No published recipe is followed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from activations.errors import UserError
from diffing.steering.arms import Arm, Kind

Score = Callable[[Sequence[Arm]], Sequence[float]]


@dataclass(frozen=True)
class Parts:
    """What single latents carry of the mean difference.

    Attributes:
        latents: Their indices, largest part first.
        vectors: Shift times decoder row of each.
    """

    latents: tuple[int, ...]
    vectors: Float[Tensor, "latent d_model"]

    @classmethod
    def of(cls, sae: SAE, ranking: pd.DataFrame, top: int) -> "Parts":
        """Parts of the `top` latents by absolute shift; latents that fell take away from the difference.

        Args:
            sae: Where decoder rows come from.
            ranking: The table of the ranking.
            top: Number of latents.
        """
        first = ranking.nsmallest(top, "rank")
        latents, shifts = torch.tensor(first["latent"].tolist()), torch.tensor(first["shift"].tolist()).double()
        vectors = sae.W_dec.detach().cpu()[latents].double() * shifts[:, None]
        order = vectors.norm(dim=1).argsort(descending=True, stable=True)
        return cls(tuple(latents[order].tolist()), vectors[order])

    def arm(self, places: Sequence[int], name: str, kind: Kind = "latent_set") -> Arm:
        """The latents at these places, steered together.

        Raises:
            UserError: if their parts cancel.
        """
        vector = self.vectors[list(places)].sum(0)
        if vector.norm() <= 1e-9 * self.vectors[list(places)].norm():
            raise UserError(f"The parts of {name} cancel, so there is nothing to steer with; choose other latents.")
        return Arm(name, kind, (vector / vector.norm()).float())

    def joint(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Places of the sets of the largest parts, by name."""
        return {f"joint {size}": tuple(range(size)) for size in sizes if size <= len(self.latents)}

    def greedy(self, size: int, score: Score) -> dict[str, tuple[int, ...]]:
        """Places of the sets that grow by the candidate with the best score; ties go to the larger part.

        Args:
            size: Of the largest set.
            score: How good each of some arms is; called once for each size.
        """
        chosen: tuple[int, ...] = ()
        found: dict[str, tuple[int, ...]] = {}
        for _ in range(min(size, len(self.latents))):
            candidates = [(*chosen, place) for place in range(len(self.latents)) if place not in chosen]
            names = ["+".join(str(self.latents[place]) for place in places) for places in candidates]
            scores = score([self.arm(places, name) for places, name in zip(candidates, names, strict=True)])
            chosen = candidates[max(range(len(scores)), key=lambda i: scores[i])]
            found[f"greedy {len(chosen)}"] = chosen
        return found


def random_sets(sae: SAE, parts: Parts, size: int, count: int, seed: int, exclude: Mapping[int, object]) -> list[Arm]:
    """Controls of a set: as many other latents, with the same lengths of their parts in the same order.

    Args:
        sae: Where decoder rows come from.
        parts: Whose first `size` parts give the lengths.
        size: Latents in each set.
        count: Number of sets.
        seed: Of the choice.
        exclude: Latents that are treatments.

    Raises:
        UserError: if too few latents are left.
    """
    others = torch.tensor([i for i in range(sae.cfg.d_sae) if i not in exclude])
    if len(others) < size:
        raise UserError(f"The SAE has {len(others)} latents that are not steered; a control set needs {size}.")
    generator = torch.Generator().manual_seed(seed)
    lengths = parts.vectors[:size].norm(dim=1)
    rows = torch.nn.functional.normalize(sae.W_dec.detach().cpu().double(), dim=1)
    made = []
    for number in range(count):
        drawn = others[torch.randperm(len(others), generator=generator)[:size]]
        vector = (rows[drawn] * lengths[:, None]).sum(0)
        made.append(Arm(f"random set {number}", "decoder_row", (vector / vector.norm()).float()))
    return made
