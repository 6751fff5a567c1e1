"""The state of a training on disk, so that a killed one continues as if nothing had happened."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from activations.artefact import publish
from activations.errors import UserError

FILE = "training.safetensors"
DEFAULT_SECONDS = 120.0


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: the steps that were done, and tensors by name."""

    steps: int
    tensors: Mapping[str, Tensor]


class TrainingCheckpoint:
    """One file, replaced in one step: at any moment it holds the state after some step, whole.

    Args:
        folder: Where the file lies.
        identity: What is trained on what; JSON. A file of another training is refused.
        seconds: Time between two writes.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], seconds: float = DEFAULT_SECONDS) -> None:
        self._file, self._identity = folder / FILE, json.dumps(identity, sort_keys=True)
        self._seconds, self._written = seconds, time.monotonic()

    def load(self) -> Saved | None:
        """The last state written; None if there is none.

        Raises:
            UserError: if the file is damaged, or is of another training.
        """
        if not self._file.exists():
            return None
        try:
            with safe_open(self._file, "pt") as file:
                known = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self._file} is damaged ({error}); remove it to train from the beginning.") from None
        if known.get("identity") != self._identity:
            raise UserError(
                f"{self._file} is the state of another training (other settings or activations); choose another "
                "folder, or remove it."
            )
        return Saved(int(known["steps"]), tensors)

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes the state after `steps` steps."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".{FILE}.tmp")
        # Copies: the optimiser's tensors may share memory, which safetensors refuses.
        held = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(held, temporary, {"identity": self._identity, "steps": str(steps)})
        publish(temporary, self._file)
        self._written = time.monotonic()


def remove_state(folder: Path) -> None:
    """Removes the state that a training left in `folder`: what was trained is saved."""
    (folder / FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
