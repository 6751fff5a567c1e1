"""What is kept of one model: directions of traits at every place, how well they hold, and mean activations."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from activations.artefact import finish_artefact, open_folder, publish, read_config
from activations.errors import UserError
from diffing.directions.persona_directions import PersonaDirections
from diffing.personality.config import ExtractionConfig
from diffing.personality.held_out import FEWEST_QUESTIONS, Layers, best_hooks, held_out_tables
from diffing.personality.trait_means import QuestionMeans

MODEL_KIND = "trait directions of a model"
DIRECTIONS, ACTIVATIONS = "directions", "activations.safetensors"
TABLES = ("reliability", "probes", "layers", "pairs")


@dataclass(frozen=True)
class ModelSpace:
    """What `trait-directions` kept of one model.

    Attributes:
        name: Of the model.
        config: How it was measured: "positions", "hooks", "best_hook" by positions, "kept" by trait, ...
        tables: The model's part of every table.
        tensors: `rows(...)`, `ranking(...)` and `differences(...)` read them.
        folder: Of the result with all models.
    """

    name: str
    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    tensors: Mapping[str, Tensor]
    folder: Path

    @classmethod
    def load(cls, out: Path, name: str) -> "ModelSpace":
        """Reads a measured model.

        Args:
            out: Folder of the result with all models.
            name: Of the model.

        Raises:
            UserError: if it was not measured to the end.
        """
        folder = out / "models" / name
        config = read_config(folder, MODEL_KIND)
        tables = {table: pd.read_parquet(folder / f"{table}.parquet") for table in TABLES}
        return cls(name, config, tables, load_file(folder / ACTIVATIONS), out)

    def require_of(self, fingerprint: str) -> None:
        """Checks that this was measured on a model.

        Args:
            fingerprint: Of the model (`Checkpoint.fingerprint`).

        Raises:
            UserError: if it was measured on another one.
        """
        if self.config["fingerprint"] != fingerprint:
            raise UserError(
                f"{self.folder} holds directions of another {self.name} model; make them again with `sae-diff "
                "trait-directions`."
            )

    def directions(self, positions: str, hook: str) -> PersonaDirections:
        """Trait -> direction."""
        return PersonaDirections.load(directions_folder(self.folder, self.name, positions, hook))

    def rows(self, positions: str, hook: str) -> Tensor:
        """Mean activations of prompts of all traits [row d_model]."""
        return self.tensors[f"rows {positions} {hook}"]

    def ranking(self, hook: str) -> Tensor:
        """Mean activation over the tokens of each ranking prompt [prompt d_model]."""
        return self.tensors[f"ranking {hook}"]

    def differences(self, trait: str, positions: str, hook: str) -> Float64[np.ndarray, "question d_model"]:
        """Difference of the poles for every question of a trait; NaN where no pair of answers was kept."""
        return self.tensors[f"differences {trait} {positions} {hook}"].double().numpy()


def directions_folder(out: Path, model: str, positions: str, hook: str) -> Path:
    """Where `PersonaDirections` of a model lie."""
    return out / DIRECTIONS / model / positions / hook


@dataclass(frozen=True)
class MeasuredModel:
    """What was measured of a model, before it is a `ModelSpace`.

    Attributes:
        name: Of the model.
        traits: By trait, its questions' means at all positions and hooks.
        ranking: By hook, mean activation over the tokens of each ranking prompt.
        made: How the model was measured: "checkpoint", "positions", "hooks", "kept", ...
    """

    name: str
    traits: Mapping[str, Layers]
    ranking: Mapping[str, Float64[np.ndarray, "prompt d_model"]]
    made: Mapping[str, Any]

    def save(self, out: Path, config: ExtractionConfig, seed: int) -> None:
        """Writes the model's directions, the tables of how well they hold, and mean activations.

        Args:
            out: Folder of the result with all models.
            config: How directions are extracted.
            seed: Of halves, folds and the rows kept.

        Raises:
            UserError: if no trait has enough questions anywhere.
        """
        folder, made = out / "models" / self.name, self.made
        open_folder(folder, overwrite=True)
        tables = held_out_tables(self.traits, config, seed)
        tables["pairs"] = pd.DataFrame([{"trait": trait, **counts} for trait, counts in made["kept"].items()])
        for table, rows in tables.items():
            rows.to_parquet(folder / f"{table}.parquet", index=False)
        tensors = {f"ranking {hook}": _float(rows) for hook, rows in self.ranking.items()}
        for at, hook in next(iter(self.traits.values())):
            here = {trait: layers[at, hook] for trait, layers in self.traits.items()}
            if any(means.questions >= FEWEST_QUESTIONS for means in here.values()):
                _save_directions(directions_folder(out, self.name, at, hook), here, hook, {**made, "positions": at})
                tensors |= _place_tensors(f"{at} {hook}", here, config.rows, seed)
        temporary = folder / f".{ACTIVATIONS}.tmp"
        save_file(tensors, temporary)
        publish(temporary, folder / ACTIVATIONS)
        best = best_hooks(tables["layers"])
        # Where no trait has a direction, as of answers that never show the contrast, nothing was measured.
        measured = [at for at in made["positions"] if at in best]
        finish_artefact(folder, {"kind": MODEL_KIND, **made, "positions": measured, "best_hook": best})


def _save_directions(folder: Path, means: Mapping[str, QuestionMeans], hook: str, made: Mapping[str, Any]) -> None:
    """Directions of the traits with enough questions; the others are named beside them."""
    usable = {trait: m for trait, m in means.items() if m.questions >= FEWEST_QUESTIONS}
    vectors = {trait: torch.from_numpy(np.nanmean(m.differences, axis=0)).float() for trait, m in usable.items()}
    questions = {trait: m.questions for trait, m in means.items()}
    left_out = sorted(set(means) - set(usable))
    config = {**made, "questions": questions, "left_out": left_out}
    PersonaDirections(vectors, hook, config).save(folder, overwrite=True)


def _place_tensors(place: str, means: Mapping[str, QuestionMeans], rows: int, seed: int) -> dict[str, Tensor]:
    """Some mean activations at a place, and the difference of the poles for every question of each trait."""
    kept = {f"differences {trait} {place}": _float(m.differences) for trait, m in means.items()}
    return {f"rows {place}": _float(_some_rows(means, rows, seed)), **kept}


def _some_rows(means: Mapping[str, QuestionMeans], count: int, seed: int) -> Float64[np.ndarray, "row d_model"]:
    """A random choice of the questions' means, of all traits and both poles."""
    rows = np.concatenate([pole for m in means.values() for pole in (m.positive, m.negative)])
    rows = rows[~np.isnan(rows).any(1)]
    return np.random.default_rng(seed).permutation(rows)[:count]


def _float(rows: Float64[np.ndarray, "row d_model"]) -> Tensor:
    return torch.from_numpy(rows).float().contiguous()
