"""What is measured of a checkpoint, and how it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.artefact import finish_artefact
from diffing.behavior.rates import LabelCounts

KIND = "trajectory measurement"
SHIFT, PROJECTION = QUANTITIES = ("shift", "projection")
UNTOUCHED = "untouched"
_FILE = "measurement.safetensors"


@dataclass(frozen=True)
class CheckpointReading:
    """What was measured of a checkpoint.

    Attributes:
        quantities: The latent's mean activity on each ranking prompt, and the projection of the prompt's mean
            activation on the direction; in the order of `QUANTITIES`, which are differences of these.
        counts: Label counts of the answers to the reporting questions, by arm: untouched and, if asked for, steered.
    """

    quantities: Float64[Tensor, "prompt 2"]
    counts: Mapping[str, LabelCounts]

    def save(self, folder: Path) -> None:
        """Writes it; `folder` is then a finished artefact."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = {arm: torch.from_numpy(counts) for arm, counts in self.counts.items()}
        save_file({"quantities": self.quantities, **counts}, folder / _FILE)
        finish_artefact(folder, {"kind": KIND})

    @classmethod
    def load(cls, folder: Path) -> "CheckpointReading":
        """Reads what `save` wrote."""
        tensors = load_file(folder / _FILE)
        return cls(tensors.pop("quantities"), {arm: counts.numpy() for arm, counts in tensors.items()})
