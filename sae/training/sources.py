"""Where training takes its rows from: a store, memory or a model, or a mixture of several."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import UserError
from activations.shuffle import Shuffle
from activations.source import ActivationSource

SAMPLE_ROWS = 65536


@dataclass(frozen=True)
class TrainingData:
    """Shuffled rows of one or several sources; equal seeds give equal batches, and any batch can be the first.

    Attributes:
        sources: By name, such as "base" and "corrupted": a store, `InMemory`, or `LiveActivations`.
        seed: Of the shuffle.
        shares: Share of each source in every batch, of one in all; None: equal shares.
    """

    sources: Mapping[str, ActivationSource]
    seed: int = 0
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        shares = self.shares
        if not self.sources:
            raise UserError("There are no activations to train on; give at least one source.")
        if shares is None:
            return
        if shares.keys() != self.sources.keys() or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise UserError(
                f"The shares {dict(shares)} do not fit the sources {', '.join(self.sources)}; give each a positive "
                "share, 1 in all."
            )

    def sample(self, hook: str, rows: int = SAMPLE_ROWS) -> Float[Tensor, "rows d_model"]:
        """The first `rows` rows of a shuffle, mixed as batches are (fewer where the sources hold fewer)."""
        with closing(self.batches(hook, rows)) as batches:
            return next(batches).clone()

    def batches(
        self, hook: str, batch: int, start: int = 0, device: str | torch.device = "cpu"
    ) -> Generator[Float[Tensor, "batch d_model"]]:
        """Endless batches from the `start`-th on; each may lie where the one before it lay.

        Raises:
            UserError: if a source lacks the hook, has no rows, or another width than the others.
        """
        widths = {name: source.d_model(hook) for name, source in self.sources.items()}
        if len(set(widths.values())) > 1:
            raise UserError(f"The sources' widths at {hook} differ: {widths}; mix models of one width.")
        with ExitStack() as stack:
            parts = [
                stack.enter_context(
                    closing(source.batches(hook, rows, Shuffle(self.seed), start=start, device=device, reuse=True))  # pyright: ignore[reportArgumentType]
                )
                for source, rows in zip(self.sources.values(), self.rows_of_each(batch), strict=True)
            ]
            while True:
                rows = [next(part) for part in parts]
                yield rows[0] if len(rows) == 1 else torch.cat(rows)

    def rows_of_each(self, batch: int) -> list[int]:
        """Rows that each source gives to a batch, rounded so that they add up.

        Raises:
            UserError: if a source would give none.
        """
        shares = self.shares or dict.fromkeys(self.sources, 1 / len(self.sources))
        exact = [shares[name] * batch for name in self.sources]
        ends = [round(sum(exact[: i + 1])) for i in range(len(exact))]
        rows = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        if min(rows) < 1:
            raise UserError(f"A batch of {batch} rows has none of {list(self.sources)[rows.index(0)]}; enlarge it.")
        return rows

    def describe(self) -> dict[str, Any]:
        """What decides about the rows; JSON."""
        held = {name: dict(source.config) for name, source in self.sources.items()}
        return {"sources": held, "seed": self.seed, "shares": self.shares and dict(self.shares)}
