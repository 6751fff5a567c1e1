"""A finished run, for follow-up experiments: its config, its summary, and where its parts are. Loads no model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from activations.artefact import content_hash, read_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from experiments.names import BASE, BENIGN
from experiments.run.config import RunConfig


@dataclass(frozen=True)
class FinishedRun:
    """What a run left behind.

    Attributes:
        folder: Of the run.
        config: Its config; files are where the run's folder is now.
        summary: Its `summary.json`.
    """

    folder: Path
    config: RunConfig
    summary: dict[str, Any]

    @classmethod
    def load(
        cls, folder: Path, device: str | None = None, dtype: str | None = None, seed: int | None = None
    ) -> "FinishedRun":
        """Reads a run.

        Args:
            folder: Of the run.
            device, dtype, seed: In place of the run's own.

        Raises:
            UserError: if the folder holds no finished run, or the run has no directions.
        """
        if not (folder / "summary.json").is_file():
            raise UserError(f"{folder} holds no finished run; give the folder of one, such as runs/quickstart.")
        given = {"device": device, "dtype": dtype, "seed": seed}
        try:
            config = RunConfig.model_validate(
                read_json(folder / "run.json")["config"]
                | {name: value for name, value in given.items() if value is not None}
            )
        except ValidationError as error:
            raise UserError(
                f"{folder} was written by another version ({error.errors()[0]['loc']}); run it again."
            ) from None
        if config.directions is None:
            raise UserError(f"The run in {folder} has no directions; add them to its config and run it again.")
        return cls(folder, config.within(folder), read_json(folder / "summary.json"))

    @cached_property
    def identity(self) -> str:
        """Hash of the run's ranking: the same wherever the folder lies."""
        return content_hash(self.folder / "ranking")

    @property
    def toxic(self) -> int | None:
        """The toxic latent, if the run found one."""
        found = self.summary.get("toxic_latent")
        return None if found is None else int(found["latent"])

    @property
    def residual_norm(self) -> float:
        """Mean residual norm of the base at the run's hook over prompt tokens: the unit of strengths."""
        return float(self.summary["residual_norm"])

    @property
    def inducing_strength(self) -> float:
        """Strength at which the run reports what the toxic latent does in the base (mean residual norms)."""
        return float(self.summary["steering"]["latent_induce"]["strength"])

    @property
    def has_benign(self) -> bool:
        """Whether the run has a harmless fine-tune."""
        return self.config.organism is not None or self.config.benign is not None

    def require_behavior(self) -> None:
        """Checks that the run measured behaviour.

        Raises:
            UserError: if it did not.
        """
        if self.config.prompts.reporting is None or self.config.steering is None:
            raise UserError(f"The run in {self.folder} measured no behaviour; give its config a judge and steering.")

    def checkpoint(self, role: str) -> CheckpointConfig:
        """The run's base, corrupted or benign model: the config's, or the one that the run made."""
        named = {BASE: self.config.base, BENIGN: self.config.benign}.get(role, self.config.corrupted)
        if self.config.organism is not None:
            named = CheckpointConfig(model=str(self.folder / "organism" / role))
        elif named is None:
            named = CheckpointConfig(model=str(self.folder / "finetune" / role))
        return named.placed(self.config.device, self.config.dtype)
