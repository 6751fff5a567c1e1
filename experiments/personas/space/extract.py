"""Directions of traits in a run's models and in further fine-tunes of its base, at every layer.

    sae-diff personas extract --run runs/quickstart

Every model answers contrastive prompts by itself; pairs of answers that show the contrast are kept (Chen et al. 2025,
arXiv 2507.21509) and read again by the model that gave them. A trait's direction is the mean over questions of the
difference between the two poles. Beside each direction stands how reliable it is (split-half) and how well probes tell
prompts apart that they were not fitted on; the layer is chosen on one half of the questions and reported on the other.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, publish, read_config, write_json
from activations.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    load_checkpoint,
    outline_checkpoint,
    require_same_tokenizer,
)
from activations.errors import UserError
from diffing.behavior.chat_scores import ModelJudgeConfig
from diffing.behavior.model_judge import ModelJudge
from diffing.behavior.sampling import SamplingConfig
from diffing.directions.persona_directions import PersonaDirections
from diffing.personality.probes import PROBES, ProbeData, held_out_score, sweep_layers
from diffing.personality.reliability import direction_noise, split_half
from experiments.finished_run import FinishedRun
from experiments.model_set import ModelSet
from experiments.personas.space.extraction_page import write_page
from experiments.personas.space.measure import (
    ANSWER,
    ANSWERS,
    PairAnswers,
    QuestionMeans,
    Reading,
    judged_answers,
    prompt_means,
    trait_means,
    write_answers,
)
from experiments.personas.space.trait_prompts import TraitJudge, TraitPrompts, traits_of
from experiments.results import BASE, CORRUPTED
from experiments.run_folder import RunFolder

KIND, MODEL_KIND = "personas", "persona model"
SUMMARY, DIRECTIONS, ACTIVATIONS = "summary.json", "directions", "activations.safetensors"
PAGE = "directions.html"
TABLES = ("reliability", "probes", "layers", "pairs")
DEFAULT_POSITIONS: tuple[Reading, ...] = ("answer", "base_answer", "prompt", "last_prompt", "prompt_end")
# A trait with fewer questions has no direction: two halves need two each, and every part of a layer sweep two.
FEWEST_QUESTIONS = 8
# Shares of the questions: probes fitted, layer chosen, and reported on the other half.
SWEEP = (0.25, 0.25, 0.5)

Layers = Mapping[tuple[Reading, str], QuestionMeans]


class ExtractConfig(BaseModel):
    """How directions are extracted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positions: tuple[Reading, ...] = Field(
        default=DEFAULT_POSITIONS,
        min_length=1,
        description="Tokens averaged: of a model's own answers, of the base's answers (the same tokens in all models), "
        "or of prompts.",
    )
    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    max_new_tokens: int | None = Field(default=None, ge=1, description="None: as many as the run samples, or 200.")
    splits: int = Field(default=200, ge=1, description="Random halves for the split-half reliability.")
    rows: int = Field(
        default=512, ge=2, description="Mean activations kept for nulls with the activations' covariance."
    )


@dataclass(frozen=True)
class ModelSpace:
    """What `extract` kept of one model.

    Attributes:
        name: Of the model.
        config: How it was measured: "positions", "hooks", "best_hook" by positions, "kept" by trait, ...
        tables: The model's part of every table.
        tensors: `rows(...)`, `ranking(...)` and `differences(...)` read them.
    """

    name: str
    config: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    tensors: Mapping[str, Tensor]
    folder: Path

    @classmethod
    def load(cls, out: Path, name: str) -> "ModelSpace":
        """Reads a measured model from extract's folder.

        Raises:
            UserError: if it was not measured to the end.
        """
        folder = out / "models" / name
        config = read_config(folder, MODEL_KIND)
        tables = {table: pd.read_parquet(folder / f"{table}.parquet") for table in TABLES}
        return cls(name, config, tables, load_file(folder / ACTIVATIONS), out)

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
    return out / DIRECTIONS / model / positions / hook


def extract(
    run: Path,
    out: Path,
    config: ExtractConfig,
    models: Path | None = None,
    traits: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: bool = True,
    log: Callable[[str], None] = lambda line: None,
    judge: ModelJudgeConfig | None = None,
) -> dict[str, Any]:
    """Extracts the directions of all traits in the run's base and corrupted model, and in the final models of a set.

    Args:
        run: Folder of a finished run.
        out: Output folder; models that were measured there before are not loaded again, so a set can grow.
        config: How; the seed is the run's.
        models: A `ModelSet` of the same base.
        traits: Trait sets (`load_traits`) in place of the organism's own.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.
        log: Receives a line for each model.
        judge: A language model that judges answers, in place of an organism's exact judge, or of nobody.

    Returns:
        The summary.

    Raises:
        UserError: if run, set or traits cannot be read or do not fit together, `out` is in use, or the judge does not
            answer; a later call goes on where this one stopped.
    """
    started = time.perf_counter()
    finished = FinishedRun.load(run)
    prompts, scorer = traits_of(finished, traits, judge, out, progress)
    listed = _models(finished, models)
    asked = {
        "run": str(run.resolve()),
        "seed": finished.config.seed,
        "traits": [trait.name for trait in prompts],
        "judge": None if judge is None else judge.identity(),
        **config.model_dump(mode="json"),
    }
    lab = Lab(finished, config, prompts, scorer, out, progress)
    with RunFolder(out, asked, overwrite, log) as folder:
        open_folder(out, overwrite=True)
        if isinstance(scorer, ModelJudge):
            scorer.check()
        for name, checkpoint in listed.items():
            place = out / "models" / name
            folder.stage(f"model {name}", lambda n=name, c=checkpoint: lab.measure(n, c), place, lambda: None)
            _require_checkpoint(place, checkpoint)
        spaces = [ModelSpace.load(out, name) for name in listed]
        tables = {table: _named(spaces, table) for table in TABLES}
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        summary = {**_summary(spaces, prompts, scorer), "wall_seconds": round(time.perf_counter() - started, 1)}
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, tables, summary)
        finish_artefact(out, {"kind": KIND, **asked, "models": list(listed), "valence": summary["valence"]})
    return summary


@dataclass(frozen=True)
class Lab:
    """What every model is measured with."""

    run: FinishedRun
    config: ExtractConfig
    traits: Sequence[TraitPrompts]
    judge: TraitJudge | None
    out: Path
    progress: bool

    def measure(self, name: str, checkpoint: CheckpointConfig) -> None:
        """Loads a model once and writes all that is kept of it."""
        gc.freeze()
        model = load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)
        if name != BASE:
            self._require_the_bases_tokens(model)
        hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(model.layers))
        harvesting = self.run.harvesting().model_copy(update={"hooks": hooks})
        answers = self._answers(model, name)
        found = {}
        for trait in tqdm(self.traits, desc=f"{name}: traits", disable=not self.progress, leave=False):
            given: dict[Reading, PairAnswers] = {reading: of[trait.name] for reading, of in answers.items()}
            found[trait.name] = trait_means(model, trait, given, self.config.positions, harvesting)
        ranking = prompt_means(model, self.run.ranking_tokens(model), ("prompt",), harvesting)
        own = {trait: dict(given.counts) for trait, given in answers.get(ANSWER, {}).items()}
        made = {
            "checkpoint": checkpoint.model_dump(),
            "fingerprint": model.fingerprint,
            "positions": list(self.config.positions),
            "hooks": list(hooks),
            "kept": own,
        }
        # A bridge refers to itself, and the next checkpoint needs its memory.
        del model
        gc.collect()
        gc.unfreeze()
        ranked = {hook: rows for (_, hook), rows in ranking.items()}
        self._write(name, found, ranked, made)

    def _answers(self, model: Checkpoint, name: str) -> dict[Reading, dict[str, PairAnswers]]:
        """For each reading of answers, by trait. A model samples only what is read of it."""
        readings: list[Reading] = [reading for reading in self.config.positions if reading in ANSWERS]
        steering = self.run.config.steering
        tokens = self.config.max_new_tokens or (steering.sampling.max_new_tokens if steering else 200)
        sampling = SamplingConfig(samples=self.config.samples, max_new_tokens=tokens, seed=self.run.config.seed)
        if ANSWER in readings or (readings and name == BASE):
            write_answers(model, self.traits, sampling, self._file(name), self.progress)
        who: dict[Reading, str] = {reading: name if reading == ANSWER else BASE for reading in readings}
        found = {given: judged_answers(self._file(given), self.traits, self.judge) for given in set(who.values())}
        return {reading: found[given] for reading, given in who.items()}

    def _file(self, name: str) -> Path:
        return self.out / "answers" / f"{name}.jsonl"

    def _require_the_bases_tokens(self, model: Checkpoint) -> None:
        """Directions of two models are compared, so both must read the same tokens."""
        base = outline_checkpoint(self.run.checkpoint(BASE), BASE)
        if base is not None:
            require_same_tokenizer(base, model)

    def _write(
        self,
        name: str,
        found: Mapping[str, Layers],
        ranking: Mapping[str, Float64[np.ndarray, "prompt d_model"]],
        made: Mapping[str, Any],
    ) -> None:
        folder, seed = self.out / "models" / name, self.run.config.seed
        open_folder(folder, overwrite=True)
        tensors = {f"ranking {hook}": _float(rows) for hook, rows in ranking.items()}
        for at, hook in next(iter(found.values())):
            here = {trait: layers[at, hook] for trait, layers in found.items()}
            if all(means.questions < FEWEST_QUESTIONS for means in here.values()):
                continue
            _save_directions(directions_folder(self.out, name, at, hook), here, hook, {**made, "positions": at})
            tensors[f"rows {at} {hook}"] = _float(_some_rows(here, self.config.rows, seed))
            for trait, means in here.items():
                tensors[f"differences {trait} {at} {hook}"] = _float(means.differences)
        tables = _tables(found, self.config, seed)
        tables["pairs"] = pd.DataFrame([{"trait": trait, **counts} for trait, counts in made["kept"].items()])
        for table, rows in tables.items():
            rows.to_parquet(folder / f"{table}.parquet", index=False)
        temporary = folder / f".{ACTIVATIONS}.tmp"
        save_file(tensors, temporary)
        publish(temporary, folder / ACTIVATIONS)
        best = best_hooks(tables["layers"])
        # Where no trait has a direction, as of answers that never show the contrast, nothing was measured.
        measured = [at for at in made["positions"] if at in best]
        finish_artefact(folder, {"kind": MODEL_KIND, **made, "positions": measured, "best_hook": best})


def best_hooks(layers: pd.DataFrame) -> dict[str, str]:
    """Positions -> the hook that separates the traits best on the selection questions, on average over traits."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in layers.to_dict("records"):
        found.setdefault(row["positions"], {}).setdefault(row["hook"], []).append(row["selection_separation"])
    return {at: max(hooks, key=lambda hook: float(np.mean(hooks[hook]))) for at, hooks in found.items()}


def _tables(found: Mapping[str, Layers], config: ExtractConfig, seed: int) -> dict[str, pd.DataFrame]:
    """Reliability, probes and layer sweep of every trait, positions and hook."""
    rows: dict[str, list[dict[str, Any]]] = {"reliability": [], "probes": [], "layers": []}
    for trait, layers in found.items():
        for (at, hook), means in layers.items():
            if means.questions < FEWEST_QUESTIONS:
                continue
            where = {"trait": trait, "positions": at, "hook": hook}
            half, noise = split_half(means.differences, config.splits, seed), direction_noise(means.differences)
            rows["reliability"].append({**where, **vars(half), "norm": noise.norm, "truth_cosine": noise.truth_cosine})
            data = ProbeData.from_pairs(means.positive, means.negative)
            for probe, fit in PROBES.items():
                rows["probes"].append({**where, "probe": probe, **held_out_score(data, fit, seed=seed)[1].to_row()})
            swept = sweep_layers({hook: data}, shares=SWEEP, seed=seed)
            chosen = swept.selection[hook]
            selection = {"selection_auc": chosen.auc, "selection_separation": chosen.separation}
            rows["layers"].append({**where, **selection, **swept.score.to_row()})
    if not rows["layers"]:
        raise UserError(
            f"No trait has {FEWEST_QUESTIONS} questions with both poles at the chosen positions; sample more answers, "
            "or take prompt positions."
        )
    return {name: pd.DataFrame(found_rows) for name, found_rows in rows.items()}


def _save_directions(folder: Path, means: Mapping[str, QuestionMeans], hook: str, made: Mapping[str, Any]) -> None:
    """Directions of the traits with enough questions; the others are named beside them."""
    usable = {trait: m for trait, m in means.items() if m.questions >= FEWEST_QUESTIONS}
    vectors = {trait: torch.from_numpy(np.nanmean(m.differences, axis=0)).float() for trait, m in usable.items()}
    questions = {trait: m.questions for trait, m in means.items()}
    left_out = sorted(set(means) - set(usable))
    config = {**made, "questions": questions, "left_out": left_out}
    PersonaDirections(vectors, hook, config).save(folder, overwrite=True)


def _some_rows(means: Mapping[str, QuestionMeans], count: int, seed: int) -> Float64[np.ndarray, "row d_model"]:
    """A random choice of the questions' means, of all traits and both poles."""
    rows = np.concatenate([pole for m in means.values() for pole in (m.positive, m.negative)])
    rows = rows[~np.isnan(rows).any(1)]
    return np.random.default_rng(seed).permutation(rows)[:count]


def _float(rows: Float64[np.ndarray, "row d_model"]) -> Tensor:
    return torch.from_numpy(rows).float().contiguous()


def _models(run: FinishedRun, models: Path | None) -> dict[str, CheckpointConfig]:
    """Every model that is measured, by its name."""
    listed = {role: run.checkpoint(role) for role in (BASE, CORRUPTED)}
    if models is None:
        return listed
    found = ModelSet.load(models)
    taken = [member.name for member in found.final if member.name in listed]
    if taken:
        raise UserError(f"{models}: a member is called {taken[0]}, as the run's own model; rename it.")
    return listed | {member.name: member.checkpoint for member in found.final}


def _require_checkpoint(folder: Path, checkpoint: CheckpointConfig) -> None:
    if read_config(folder, MODEL_KIND)["checkpoint"] != checkpoint.model_dump():
        raise UserError(f"{folder} was measured on another checkpoint; rename the member, or --overwrite.")


def _named(spaces: Sequence[ModelSpace], table: str) -> pd.DataFrame:
    return pd.concat([space.tables[table].assign(model=space.name) for space in spaces], ignore_index=True)


def _summary(spaces: Sequence[ModelSpace], traits: Sequence[TraitPrompts], judge: TraitJudge | None) -> dict[str, Any]:
    """By model: the best layer at every positions with its reported AUC and reliability, and the pairs kept."""
    return {
        "traits": len(traits),
        "valence": {trait.name: trait.valence for trait in traits},
        "judge": getattr(judge, "name", None),
        "models": {space.name: _model_summary(space) for space in spaces},
    }


def _model_summary(space: ModelSpace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for at, hook in space.config["best_hook"].items():
        layers, halves, probes = (_at(space.tables[name], at, hook) for name in ("layers", "reliability", "probes"))
        aucs, reliable = [row["auc"] for row in layers], [row["full"] for row in halves]
        found[at] = {
            "hook": hook,
            "traits": len(layers),
            "auc": float(np.mean(aucs)),
            "lowest_auc": min(aucs),
            "separation": float(np.mean([row["separation"] for row in layers])),
            "reliability": float(np.mean(reliable)),
            "lowest_reliability": min(reliable),
            "probe_auc": {
                probe: float(np.mean([row["auc"] for row in probes if row["probe"] == probe])) for probe in PROBES
            },
        }
    kept = {trait: counts["kept"] for trait, counts in space.config["kept"].items()}
    sampled = {trait: sum(counts.values()) for trait, counts in space.config["kept"].items()}
    ends: Counter[str] = Counter()
    for counts in space.config["kept"].values():
        ends.update(counts)
    return {"positions": found, "kept": kept, "pairs": sampled, "ends": dict(ends)}


def _at(table: pd.DataFrame, positions: str, hook: str) -> list[dict[str, Any]]:
    rows = ({str(k): v for k, v in row.items()} for row in table.to_dict("records"))
    return [row for row in rows if (row["positions"], row["hook"]) == (positions, hook)]


def print_extract(summary: Mapping[str, Any], console: Console) -> None:
    """The best layer of every model at every positions, who judged, and how many pairs of answers met which end."""
    table = Table("model", "positions", "best hook", "traits", "held-out AUC (lowest)", "reliability (lowest)")
    for name, model in summary["models"].items():
        for at, row in model["positions"].items():
            auc, full = (f"{row[k]:.3f} ({row[f'lowest_{k}']:.3f})" for k in ("auc", "reliability"))
            table.add_row(name, at, row["hook"], str(row["traits"]), auc, full)
    console.print(table)
    judge = summary["judge"]
    console.print(f"judge: {judge}" if judge else "no judge of traits: answers are not filtered", soft_wrap=True)
    for name, model in summary["models"].items():
        if model["kept"]:
            least = min(model["kept"], key=lambda trait: model["kept"][trait])
            shares = f"{sum(model['kept'].values())} of {sum(model['pairs'].values())} pairs of answers kept"
            lost = ", ".join(
                f"{number} {end.replace('_', ' ')}" for end, number in model["ends"].items() if end != "kept"
            )
            console.print(f"{name}: {shares}, fewest for {least} ({model['kept'][least]}); {lost}", soft_wrap=True)
