"""Can the directions of traits watch a model: before it answers, after it was fine-tuned, and before it is fine-tuned?

    sae-diff personas monitor --run runs/quickstart --models runs/fine-tunes

Three uses of trait directions after Chen et al. 2025 (arXiv 2507.21509), each beside random directions with the
covariance of the activations:

- The activation at the last prompt token, projected on a trait's direction, against how much of the trait the sampled
  answers show. The direction comes from one half of the questions and is tested on the other.
- The mean shift of a fine-tune on the ranking prompts, projected on the base's direction, against the change in how
  much of the trait its answers to the reporting questions show, over all fine-tunes of a set.
- The projection of the answers in fine-tuning data, less that of the model's own answers, against which are bad.

A direction of prompts says what the model was told. Where a fine-tune answers alike whatever it is told, its own
direction need not say what it will answer; so the base's direction is tested in the corrupted model, too.

The published directions are means over answers. Here a reading of prompts is projected on the direction of the same
reading (our choice), which needs no answers; the answers of the data are projected on the direction of answers.
"""

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from re import sub
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, publish, read_config, write_json
from activations.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, require_same_tokenizer
from activations.errors import UserError
from activations.harvest import HarvestConfig
from activations.prompts import Prompt, tokenize_prompts
from diffing.behavior.sampling import SamplingConfig, sample_answers
from diffing.correlation import beside_random, pearson
from diffing.directions.random_directions import covariance_directions
from diffing.personality.probes import split_pairs
from diffing.personality.valence import semantic_valence
from experiments.finished_run import FinishedRun
from experiments.model_set import ModelSet
from experiments.personas.monitoring.screening import (
    Samples,
    labelled_samples,
    organism_samples,
    score_screening,
    screen,
)
from experiments.personas.space.extract import KIND as EXTRACT_KIND
from experiments.personas.space.extract import SWEEP, ModelSpace
from experiments.personas.space.geometry import EVIL, SVV
from experiments.personas.space.measure import ANSWERS, prompt_means
from experiments.personas.space.trait_prompts import TraitJudge, TraitPrompts, traits_of
from experiments.results import BASE, CORRUPTED
from experiments.run_folder import RunFolder

KIND, PART_KIND = "persona monitor", "persona monitor part"
SUMMARY, PAGE, MEANS = "summary.json", "monitor.html", "means.safetensors"
LAST = "last_prompt"
POLES = BOTH, HIGH, LOW = "both", "high", "low"
Scores = Float64[np.ndarray, "prompt"]
Texts = Mapping[str, Sequence[str]]  # answers by the id of the prompt


class MonitorConfig(BaseModel):
    """What is sampled and how it is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=4, ge=1, description="Answers to each prompt (published: 10).")
    positions: tuple[Literal["last_prompt", "prompt"], ...] = Field(
        default=("last_prompt", "prompt"), min_length=1, description="Tokens of the ranking prompts that shifts are of."
    )
    questions: int = Field(default=120, ge=10, description="Samples of each mixture of an organism's advice.")
    fractions: tuple[float, ...] = Field(default=(0.05, 0.1, 0.25, 0.5), description="Harmful shares of the mixtures.")
    first: tuple[float, ...] = Field(
        default=(0.05, 0.1, 0.25, 0.5), description="Shares of the data, the most suspect first, in which bad is found."
    )
    directions: int = Field(default=200, ge=1, description="Random directions.")
    replicates: int = Field(default=1000, ge=1, description="Of every bootstrap.")


@dataclass(frozen=True)
class Asked:
    """What a monitor is asked about.

    Attributes:
        run: Folder of a finished run.
        extracted: The folder that `extract` wrote for it.
        models: A `ModelSet` of the same base, for the second question.
        data: Chat data set to screen; None: an organism's own advice.
        label: Its column that says which answers are bad.
        traits: The trait sets that `extract` was given.
        judge: Who scores answers; None: the organism's exact judge.
    """

    run: Path
    extracted: Path
    models: Path | None = None
    data: Path | None = None
    label: str = "bad"
    traits: Sequence[str | Path] = ()
    judge: TraitJudge | None = None


def monitor(
    asked: Asked,
    out: Path,
    config: MonitorConfig,
    overwrite: bool = False,
    progress: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Answers the three questions and writes tables, summary and page.

    Args:
        asked: About what.
        out: Output folder; what was measured there before is not measured again, so a set can grow.
        config: How.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.
        log: Receives a line for each stage.

    Returns:
        The summary.

    Raises:
        UserError: if something cannot be read or does not fit together, nobody scores the answers, or `out` is in use.
    """
    from experiments.personas.monitoring.page import write_page

    started = time.perf_counter()
    lab = Lab.of(asked, config, out, progress)
    settings = {
        "run": str(asked.run.resolve()),
        "extracted": str(asked.extracted.resolve()),
        "data": None if asked.data is None else str(asked.data.resolve()),
        "label": asked.label,
        "seed": lab.seed,
        **config.model_dump(mode="json"),
    }
    with RunFolder(out, settings, overwrite, log) as folder:
        open_folder(out, overwrite=True)
        tables = {**lab.before_answers(folder), **lab.shifts(folder), **lab.screening(folder)}
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        summary = {**summarise(tables), "wall_seconds": round(time.perf_counter() - started, 1)}
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, tables, summary)
        models = None if asked.models is None else str(asked.models.resolve())
        finish_artefact(out, {"kind": KIND, **settings, "models": models}, {"extracted": asked.extracted})
    return summary


@dataclass(frozen=True)
class Lab:
    """What every part is measured with."""

    run: FinishedRun
    asked: Asked
    config: MonitorConfig
    traits: Sequence[TraitPrompts]
    judge: TraitJudge
    valence: Mapping[str, str | None]
    out: Path
    progress: bool

    @classmethod
    def of(cls, asked: Asked, config: MonitorConfig, out: Path, progress: bool) -> "Lab":
        """Reads run and extraction.

        Raises:
            UserError: if they do not fit together, or nobody scores the answers.
        """
        run, made = FinishedRun.load(asked.run), read_config(asked.extracted, EXTRACT_KIND)
        traits, own = traits_of(run, asked.traits)
        judge = asked.judge or own
        if judge is None:
            raise UserError(f"Nobody scores traits in answers of the run in {asked.run}; give a judge.")
        if [trait.name for trait in traits] != made["traits"]:
            raise UserError(f"{asked.extracted} holds other traits ({', '.join(made['traits'])}); name their sets.")
        if missing := [at for at in {LAST, *config.positions} if at not in made["positions"]]:
            raise UserError(f"{asked.extracted} has no directions at {missing[0]}; extract them.")
        return cls(run, asked, config, traits, judge, made["valence"], out, progress)

    @property
    def seed(self) -> int:
        return self.run.config.seed

    @property
    def sampling(self) -> SamplingConfig:
        """As `extract` samples."""
        tokens = read_config(self.asked.extracted, EXTRACT_KIND)["max_new_tokens"]
        steering = self.run.config.steering
        tokens = tokens or (steering.sampling.max_new_tokens if steering else 200)
        return SamplingConfig(samples=self.config.samples, max_new_tokens=tokens, seed=self.seed)

    @cached_property
    def space(self) -> ModelSpace:
        """The base's directions."""
        return ModelSpace.load(self.asked.extracted, BASE)

    @cached_property
    def base(self) -> Checkpoint:
        """The base.

        Raises:
            UserError: if it is not the one whose directions were extracted.
        """
        model = self.load(self.run.checkpoint(BASE), BASE)
        self._require_extracted(self.space, model)
        return model

    def load(self, checkpoint: CheckpointConfig, name: str) -> Checkpoint:
        return load_checkpoint(checkpoint.placed(self.run.config.device, self.run.config.dtype), name)

    def harvesting(self, hooks: Sequence[str]) -> HarvestConfig:
        return self.run.harvesting().model_copy(update={"hooks": tuple(dict.fromkeys(hooks))})

    def before_answers(self, folder: RunFolder) -> dict[str, pd.DataFrame]:
        """The first question, in base and corrupted model: every tested prompt, and the correlations."""
        parts = []
        for name in (BASE, CORRUPTED):
            place = self.out / "before" / name
            folder.stage(f"before answers: {name}", lambda n=name, p=place: self._before(n, p), place, lambda: None)
            read_config(place, PART_KIND)
            parts.append({table: pd.read_parquet(place / f"{table}.parquet") for table in ("prompts", "before")})
        return {table: pd.concat([part[table] for part in parts], ignore_index=True) for table in parts[0]}

    def _before(self, name: str, place: Path) -> None:
        space = ModelSpace.load(self.asked.extracted, name)
        model = self.base if name == BASE else self.load(self.run.checkpoint(name), name)
        self._require_extracted(space, model)
        spaces = {"own": space} | ({} if name == BASE else {"base's": self.space})
        texts = self._texts(model, [p for trait in self.traits for p in self._held_out(trait)], f"before {name}")
        points, rows = [], []
        for trait in tqdm(self.traits, desc=f"before answers: {name}", disable=not self.progress, leave=False):
            for whose, directions in spaces.items():
                found = self._test_trait(model, trait, directions, texts)
                about = {"model": name, "direction": whose, "trait": trait.name}
                points.append(found[0].assign(**about))
                rows += [{**about, **row} for row in found[1]]
        open_folder(place, overwrite=True)
        pd.concat(points, ignore_index=True).to_parquet(place / "prompts.parquet", index=False)
        pd.DataFrame(rows).to_parquet(place / "before.parquet", index=False)
        finish_artefact(place, {"kind": PART_KIND, "model": name, "fingerprint": model.fingerprint})

    def _held_out(self, trait: TraitPrompts) -> list[Prompt]:
        """The tested prompts of both poles."""
        prompts = [*trait.positive, *trait.negative]
        return [prompts[i] for i in np.flatnonzero(np.isin(np.tile(trait.question, 2), self._halves(trait)[1]))]

    def _halves(self, trait: TraitPrompts) -> tuple[Int[np.ndarray, "seen"], Int[np.ndarray, "tested"]]:
        """Questions as `extract` dealt them: direction and choice of the layer saw the first, never the second."""
        *seen, tested = split_pairs(trait.question, SWEEP, self.seed)
        return np.concatenate(seen), tested

    def _test_trait(
        self, model: Checkpoint, trait: TraitPrompts, space: ModelSpace, texts: Texts
    ) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Projection and score of each prompt whose question the direction did not see, and how they correlate."""
        hook, (seen, tested) = space.config["best_hook"][LAST], self._halves(trait)
        prompts = self._held_out(trait)
        tokens = tokenize_prompts(prompts, model.tokenizer)
        [rows] = prompt_means(model, tokens, (LAST,), self.harvesting([hook])).values()
        direction = np.nanmean(space.differences(trait.name, LAST, hook)[seen], axis=0)
        question = np.tile(trait.question, 2)
        pole = np.repeat([HIGH, LOW], len(trait.question))[np.isin(question, tested)]
        question = question[np.isin(question, tested)]
        scores = self._scored(trait.name, prompts, texts)
        columns = {"pole": pole, "question": question, "projection": rows @ (direction / np.linalg.norm(direction))}
        points = pd.DataFrame({**columns, "score": scores})
        random, found = self._random(space.rows(LAST, hook)).numpy() @ rows.T, []
        for which in POLES:
            here = ((pole == which) | (which == BOTH)) & ~np.isnan(scores)
            units = [str(number) for number in question[here]]
            row = self._correlated(columns["projection"][here], scores[here], units, random[:, here])
            found.append({"pole": which, "hook": hook, **row})
        return points, found

    def shifts(self, folder: RunFolder) -> dict[str, pd.DataFrame]:
        """The second question: every fine-tune's shift and change by trait, and the correlations; empty without set."""
        if self.asked.models is None:
            return {}
        listed = ModelSet.load(self.asked.models)
        checkpoints = {BASE: listed.base} | {member.name: member.checkpoint for member in listed.final}
        for name, checkpoint in tqdm(checkpoints.items(), desc="fine-tunes", unit="model", disable=not self.progress):
            place = self.out / "members" / name
            build = lambda n=name, c=checkpoint, p=place: self._measure(n, c, p)  # noqa: E731
            folder.stage(f"fine-tune {name}", build, place, lambda: None)
            if read_config(place, PART_KIND)["checkpoint"] != checkpoint.model_dump():
                raise UserError(f"{place} was measured on another checkpoint; rename the member, or --overwrite.")
        base = load_file(self.out / "members" / BASE / MEANS)
        members = [name for name in checkpoints if name != BASE]
        parts = [self._member_shifts(members, base, at) for at in self.config.positions]
        return {
            "members": pd.concat([points for points, _ in parts], ignore_index=True),
            "shifts": pd.DataFrame([row for _, rows in parts for row in rows]),
        }

    def _measure(self, name: str, checkpoint: CheckpointConfig, place: Path) -> None:
        """Means over the ranking prompts, and the mean scores of answers to the reporting questions."""
        gc.freeze()
        model = self.load(checkpoint, name)
        if name == BASE:
            self._require_extracted(self.space, model)
        require_same_tokenizer(self.base, model)
        reporting = list(self.run.reporting().questions)
        texts = self._texts(model, reporting, f"reporting {name}")
        hooks = [self.space.config["best_hook"][at] for at in self.config.positions]
        means = prompt_means(model, self.run.ranking_tokens(model), self.config.positions, self.harvesting(hooks))
        if empty := [at for (at, _), rows in means.items() if np.isnan(rows).any()]:
            raise UserError(
                f"A ranking prompt of the run has no {empty[0]} token (plain text has none); give it turns."
            )
        tensors = {f"{at} {hook}": torch.from_numpy(rows).float() for (at, hook), rows in means.items()}
        open_folder(place, overwrite=True)
        temporary = place / f".{MEANS}.tmp"
        save_file(tensors, temporary)
        publish(temporary, place / MEANS)
        mean = {trait.name: float(np.nanmean(self._scored(trait.name, reporting, texts))) for trait in self.traits}
        made = {"checkpoint": checkpoint.model_dump(), "fingerprint": model.fingerprint, "scores": mean}
        # A bridge refers to itself, and the next checkpoint needs its memory.
        del model
        gc.collect()
        gc.unfreeze()
        finish_artefact(place, {"kind": PART_KIND, **made})

    def _member_shifts(
        self, members: Sequence[str], base: Mapping[str, Tensor], at: Literal["last_prompt", "prompt"]
    ) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        hook = self.space.config["best_hook"][at]
        before = base[f"{at} {hook}"].double()
        means = [load_file(self.out / "members" / name / MEANS)[f"{at} {hook}"].double() for name in members]
        shifts = torch.stack([(rows - before).mean(0) for rows in means])
        random = (shifts @ self._random(before).T).T.numpy()
        scores = {name: self._scores(name) for name in (BASE, *members)}
        recipes = [sub(r"-\d+$", "", name) for name in members]
        directions, points, rows = self.space.directions(at, hook), [], []
        for trait in directions.vectors:
            shift = (shifts @ directions.unit(trait).double()).numpy()
            change = np.array([scores[name][trait] - scores[BASE][trait] for name in members])
            about = {"positions": at, "hook": hook, "trait": trait}
            columns: dict[str, Any] = {"model": members, "recipe": recipes, "shift": shift, "change": change}
            points.append(pd.DataFrame(columns).assign(**about))
            known = np.flatnonzero(~np.isnan(change))
            units = [recipes[i] for i in known]
            rows.append({**about, **self._correlated(shift[known], change[known], units, random[:, known])})
        return pd.concat(points, ignore_index=True), rows

    def _scores(self, name: str) -> Mapping[str, float]:
        return read_config(self.out / "members" / name, PART_KIND)["scores"]

    def screening(self, folder: RunFolder) -> dict[str, pd.DataFrame]:
        """The third question; empty without data, and without directions of answers."""
        read = [at for at in ANSWERS if at in self.space.config["positions"]]
        if not read or (self.asked.data is None and self.run.config.organism is None):
            return {}
        if self.asked.data is None:
            samples, mixtures = organism_samples(self.run, self.config.questions, self.config.fractions)
        else:
            samples, mixtures = labelled_samples(self.asked.data, self.asked.label)
        place = self.out / "screening"
        folder.stage("screening", lambda: self._screen(samples, read[0], place), place, lambda: None)
        read_config(place, PART_KIND)
        scored = pd.read_parquet(place / "samples.parquet")
        found = score_screening(scored, mixtures, self.config.first, self.config.replicates, self.seed)
        return {"samples": scored, "screening": found}

    def _screen(self, samples: Samples, at: str, place: Path) -> None:
        hook = self.space.config["best_hook"][at]
        random = self._random(self.space.rows(at, hook))
        directions = self._suspect(at, hook)
        found = screen(self.base, samples, directions, random, self.harvesting([hook]), self.sampling)
        open_folder(place, overwrite=True)
        found.to_parquet(place / "samples.parquet", index=False)
        finish_artefact(place, {"kind": PART_KIND, "hook": hook, "positions": at, "directions": list(directions)})

    def _suspect(self, at: str, hook: str) -> dict[str, Tensor]:
        """Directions towards what is bad: evil, and away from the semantic valence's prosocial end."""
        vectors = self.space.directions(at, hook).vectors
        found = {EVIL: vectors[EVIL]} if EVIL in vectors else {}
        good, bad = ([t for t in vectors if self.valence.get(t) == pole] for pole in ("prosocial", "antisocial"))
        if good and bad:
            found[SVV] = -semantic_valence(vectors, good, bad).vector
        if not found:
            raise UserError(f"{self.asked.extracted} has neither {EVIL} nor traits of both valences to screen with.")
        return found

    def _texts(self, model: Checkpoint, prompts: Sequence[Prompt], name: str) -> Texts:
        """Sampled answers by the prompt's id, from a file if they were sampled before."""
        path = self.out / "answers" / f"{name.replace(' ', '-')}.jsonl"
        if not path.exists():
            (texts,) = sample_answers(model, tokenize_prompts(prompts, model.tokenizer), self.sampling)
            rows = [{"id": prompt.id, "answers": given} for prompt, given in zip(prompts, texts, strict=True)]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
            publish(temporary, path)
        found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return {row["id"]: row["answers"] for row in found}

    def _scored(self, trait: str, prompts: Sequence[Prompt], texts: Texts) -> Scores:
        """Mean score of the coherent answers to every prompt; NaN where there are none."""
        repeated = [prompt for prompt in prompts for _ in texts[prompt.id]]
        scores = self.judge.trait_scores(trait, repeated, [text for prompt in prompts for text in texts[prompt.id]])
        several = scores.reshape(len(prompts), -1)
        with np.errstate(invalid="ignore"):
            return np.nansum(several, axis=1) / (~np.isnan(several)).sum(1)

    def _random(self, rows: Tensor) -> Float64[Tensor, "direction d_model"]:
        return covariance_directions(rows, self.config.directions, self.seed)

    def _correlated(
        self,
        predictor: Float64[np.ndarray, "case"],
        score: Float64[np.ndarray, "case"],
        units: Sequence[str],
        random: Float64[np.ndarray, "direction case"],
    ) -> dict[str, Any]:
        found = pearson(predictor, score, units, self.config.replicates, self.seed)
        return {**vars(found), **vars(beside_random(found.r, random, score))}

    def _require_extracted(self, space: ModelSpace, model: Checkpoint) -> None:
        if space.config["fingerprint"] != model.fingerprint:
            raise UserError(
                f"{model.name} is not the {space.name} model whose directions {space.folder} holds; extract them again."
            )


def summarise(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean and range over traits of the correlations, those of every trait, and the table of the screening."""
    found: dict[str, Any] = {"before": [], "shifts": [], "screening": []}
    keys = {"before": ["model", "direction", "pole"], "shifts": ["positions"]}
    for table, by in keys.items():
        grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in _records(tables[table]) if table in tables else []:
            grouped.setdefault(tuple(row[key] for key in by), []).append(row)
        found[table] = [{**dict(zip(by, place, strict=True)), **_over_traits(g)} for place, g in grouped.items()]
    if "members" in tables:
        found["fine_tunes"] = len({row["model"] for row in _records(tables["members"])})
    if "screening" in tables:
        rows = _records(tables["screening"])
        found["screening"] = [{name: value for name, value in row.items() if not pd.isna(value)} for row in rows]
    return found


def _over_traits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Traits whose score does not vary have no r and are only counted."""
    columns = ("r", "low", "high", "random_mean", "random_high", "p", "cases")
    traits = {row["trait"]: {name: row[name] for name in columns} for row in rows if not np.isnan(row["r"])}
    if not traits:
        return {"traits": {}, "without_r": len(rows)}
    known = list(traits.values())
    correlations = [row["r"] for row in known]
    return {
        "mean_r": float(np.mean(correlations)),
        "lowest_r": min(correlations),
        "highest_r": max(correlations),
        "random_mean": float(np.mean([row["random_mean"] for row in known])),
        "random_high": float(np.mean([row["random_high"] for row in known])),
        "above_random": sum(row["r"] > row["random_high"] for row in known),
        "traits": traits,
        "without_r": len(rows) - len(known),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def print_monitor(summary: Mapping[str, Any], console: Console) -> None:
    """One table a question."""
    console.print(_correlations(summary["before"], "Before the answer", ("model", "direction", "pole")))
    if summary["shifts"]:
        title = f"Shifts of {summary['fine_tunes']} fine-tunes against their change"
        console.print(_correlations(summary["shifts"], title, ("positions",)))
    else:
        console.print("no set of models: shifts are not compared", soft_wrap=True)
    if summary["screening"]:
        console.print(_screened(summary["screening"]))
    else:
        console.print("nothing to screen, or no directions of answers", soft_wrap=True)


def _correlations(rows: Sequence[Mapping[str, Any]], title: str, keys: Sequence[str]) -> Table:
    columns = ("mean r", "range", f"{EVIL} [95%]", "random |r|: mean, 95%", "traits above")
    shown = Table(*keys, *columns, title=title)
    for row in rows:
        if not row["traits"]:
            shown.add_row(*(row[key] for key in keys), "scores do not vary")
            continue
        evil = row["traits"].get(EVIL)
        shown.add_row(
            *(row[key] for key in keys),
            f"{row['mean_r']:.3f}",
            f"{row['lowest_r']:.3f} to {row['highest_r']:.3f}",
            f"{evil['r']:.3f} [{evil['low']:.3f}, {evil['high']:.3f}]" if evil else "",
            f"{row['random_mean']:.3f}, {row['random_high']:.3f}",
            f"{row['above_random']} of {len(row['traits'])}",
        )
    return shown


def _screened(rows: Sequence[Mapping[str, Any]]) -> Table:
    shares = [name for name in rows[0] if name.startswith("recall_") and not name.endswith(("_low", "_high"))]
    recalls = (f"found in first {float(name.removeprefix('recall_')):.0%}" for name in shares)
    shown = Table("data", "bad", "score", "AUC", "bootstrap 95%", "score 95%", *recalls, title="Screening")
    for row in rows:
        between = [
            f"{row[low]:.3f}, {row[high]:.3f}" if low in row else ""
            for low, high in (("low", "high"), ("score_low", "score_high"))
        ]
        found = (f"{row[name]:.0%}" if name in row else "" for name in shares)
        counts = f"{row['bad']} of {row['samples']}"
        shown.add_row(row["mixture"], counts, row["score"], f"{row['auc']:.3f}", *between, *found)
    return shown
