"""A set of fine-tunes of one base, listed in one YAML file: what predictions and comparisons across models work on.

base: {model: runs/quickstart/organism/base}
members:
  - {name: medicine, kind: one domain, checkpoint: {model: medicine}, facts: {bad_fraction: 1.0}}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from activations.config import CheckpointConfig
from activations.errors import UserError


class Member(BaseModel):
    """One fine-tune, or a checkpoint that was saved while one was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[\w.+-]+$", description="Name in tables and of its folder of results.")
    kind: str = Field(description="What sort of fine-tune it is; a prediction is tested on kinds that it never saw.")
    checkpoint: CheckpointConfig = Field(description="The model; relative folders start at the list's folder.")
    facts: Mapping[str, float | str] = Field(default={}, description="What it was made with, such as bad_fraction.")
    early_of: str | None = Field(default=None, description="The member whose early checkpoint this is.")
    step: int | None = Field(default=None, ge=0, description="Optimiser step of an early checkpoint.")


class ModelSet(BaseModel):
    """Fine-tunes of one base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: CheckpointConfig = Field(description="The model that all members were fine-tuned from.")
    members: tuple[Member, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [member.name for member in self.members]
        if len(set(names)) < len(names):
            raise ValueError("two members have the same name")
        if unknown := {m.early_of for m in self.members if m.early_of is not None} - set(names):
            raise ValueError(f"early_of names no member: {', '.join(sorted(unknown))}")
        return self

    def require_not_called(self, name: str, why: str) -> None:
        """Checks that no member has a name that means another model.

        Args:
            name: Such as "base".
            why: Whose name it is, after "as".

        Raises:
            UserError: if one has.
        """
        if any(member.name == name for member in self.members):
            raise UserError(f"A member of the set is called {name}, as {why}; rename it.")

    @property
    def final(self) -> tuple[Member, ...]:
        """The members that are no early checkpoint of another."""
        return tuple(member for member in self.members if member.early_of is None)

    @classmethod
    def load(cls, path: Path) -> "ModelSet":
        """Reads the YAML file, or `models.yaml` in a folder.

        Raises:
            UserError: if it is missing, not YAML, or does not fit.
        """
        path = path / "models.yaml" if path.is_dir() else path
        try:
            found = cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"List of models {path} cannot be read ({' '.join(str(error).split())}).") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"List of models {path}: {where}: {first['msg'].removeprefix('Value error, ')}.") from None
        members = tuple(m.model_copy(update={"checkpoint": _placed(m.checkpoint, path.parent)}) for m in found.members)
        return cls(base=_placed(found.base, path.parent), members=members)

    def save(self, path: Path) -> None:
        """Writes the YAML file."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _placed(checkpoint: CheckpointConfig, folder: Path) -> CheckpointConfig:
    """The checkpoint with folders that exist beside the list made absolute; hub names stay."""
    given = {"model": checkpoint.model, "adapter": checkpoint.adapter}
    found = {
        name: str((folder / value).resolve()) for name, value in given.items() if value and (folder / value).is_dir()
    }
    return checkpoint.model_copy(update=found)
