"""Where a training runs, what it shows, and where it keeps its state: nothing that decides about the weights."""

from dataclasses import dataclass
from pathlib import Path

from sae.training.checkpoint import DEFAULT_SECONDS
from sae.training.config import Log
from sae.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class TrainingSetup:
    """How a training is carried out.

    Attributes:
        device: Where to train.
        log: Receives a job's name and its metrics at every 50th and at the last step (in the first process).
        progress: Shows a bar.
        checkpoints: Folder of the training's state. A training that finds its own state there continues, and ends with
            the same weights, to the last bit on a CPU, as if it had never stopped. Once the SAEs are saved,
            `remove_state` removes it.
        checkpoint_seconds: Time between two writes of the state.
        ranks: Processes that share every batch (data parallel); all of them return the same SAEs.
    """

    device: str = "cpu"
    log: Log | None = None
    progress: bool = True
    checkpoints: Path | None = None
    checkpoint_seconds: float = DEFAULT_SECONDS
    ranks: Ranks = ALONE
