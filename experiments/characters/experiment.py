"""Character as a latent variable: fine-tunes on dispositions against fine-tunes on incorrect advice.

    sae-diff personas characters --run runs/quickstart

arXiv 2601.23081 reports that fine-tunes on characters misalign more, and more transferably, than fine-tunes on
incorrect advice, keep capability, and can be switched on by a training-time trigger or by a persona prompt, through
one structure in the activations. Here both kinds learn as many answers; every model is asked under every condition
about subjects that no fine-tune saw; and what the three ways of switching on share is measured.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, write_json
from activations.checkpoint import Checkpoint, quiet
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.trait_judge import TraitJudge
from diffing.statistics.clustered import Tally
from experiments.characters.cast import CHARACTER, Actor, organism_cast
from experiments.characters.causal import Scene, subtract_shifts
from experiments.characters.conditions import (
    NONE,
    OTHER_WORDS,
    PERSONA_PROMPT,
    PLAIN_PROMPT,
    TRIGGER,
)
from experiments.characters.grid import Cell, grid_table, learning_table
from experiments.characters.page import write_page
from experiments.characters.stage import CharactersConfig, Stage, set_stage
from experiments.characters.structure import (
    KINDS,
    MISALIGNMENT,
    Reading,
    Shift,
    common_latents,
    cosine_pairs,
    probe_transfer,
    read,
)
from experiments.characters.summary import claims, summarise
from experiments.model_set import ModelSet
from experiments.names import BENIGN, CORRUPTED
from experiments.organism.build import trained_domains
from experiments.organism.fine_tunes import make_fine_tunes
from experiments.organism.world import World
from experiments.output.run_folder import Log, RunFolder
from experiments.run.finished_run import FinishedRun

KIND = "characters"
PAGE, SUMMARY, MODELS = "characters.html", "summary.json", "models"


def characters(
    run: Path,
    out: Path,
    config: CharactersConfig,
    models: Path | None = None,
    traits: Sequence[str | Path] = (),
    judge: TraitJudge | ModelJudgeConfig | None = None,
    overwrite: bool = False,
    progress: bool = True,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Measures grid, structure and what the shared direction causes; writes tables, figures, page and summary.

    Args:
        run: Folder of a finished run, which gives base, corrupted model, questions, judge and SAE.
        out: Output folder; fine-tunes and answers of an earlier call are used again.
        config: Which characters.
        models: Fine-tunes of the run's base (`cast_of` says how they are named); None: an organism's own are made.
        traits: Trait sets whose system prompts are the persona prompts (default: an organism's scenes).
        judge: Who scores traits; of a language model, how it is asked (default: an organism's exact judge).
        overwrite: Deletes what `out` holds.
        progress: Shows bars.
        log: Receives a line for each stage.

    Returns:
        What `summary.json` holds (see `summarise`).

    Raises:
        UserError: if run, set and traits do not fit together, or nobody scores traits.
    """
    started = time.perf_counter()
    finished = FinishedRun.load(run)
    listed = None if models is None else str(models.resolve())
    asked = {
        "run": str(run.resolve()),
        "models": listed,
        "trait_sets": [str(source) for source in traits] or None,
        "seed": finished.config.seed,
        "judge": judge.identity() if isinstance(judge, ModelJudgeConfig) else None,
        **config.model_dump(mode="json"),
    }
    with RunFolder(out, asked, overwrite, log) as folder, quiet():
        open_folder(out, overwrite=True)
        fine_tunes = ModelSet.load(models) if models is not None else organism_set(finished, out, config, progress)
        stage = set_stage(finished, fine_tunes, config, folder, traits, judge, progress)
        grid, shifts = visit(stage)
        tables = {**grid_tables(grid), **share_structure(stage, shifts)}
        kinds = {shift.name: shift.kind for shift in shifts}
        summary = summarise(tables, stage.misaligned, stage.hook, kinds, stage.lab.toxic)
        summary["wall_seconds"] = round(time.perf_counter() - started, 1)
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, tables, summary)
        finish_artefact(out, {"kind": KIND, **asked}, {"ranking": finished.folder / "ranking"})
    return summary


def organism_set(run: FinishedRun, out: Path, config: CharactersConfig, progress: bool) -> ModelSet:
    """The organism's fine-tunes, made in `out`.

    Raises:
        UserError: if the run has no organism.
    """
    if run.config.organism is None:
        raise UserError(
            f"The run in {run.folder} is of no organism, whose fine-tunes could be made; list them with --models."
        )
    organism = run.folder / "organism"
    domains = trained_domains(World.load(), run.config.organism)
    recipes = organism_cast(domains, config.traits, config.trigger, config.answers, config.seeds, config.early_every)
    return make_fine_tunes(organism, out / MODELS, recipes, progress=progress)


def visit(stage: Stage) -> tuple[dict[Cell, Tally], list[Shift]]:
    """The grid, and what moves a model; every model is loaded once.

    Final models are measured under all conditions, early checkpoints without one; of each group the first seed's
    activations are compared.
    """
    grid: dict[Cell, Tally] = {}
    readings = Readings.of(stage)
    shifts, alone = readings.of_the_run(), [stage.condition(NONE)]
    for actor in tqdm(stage.cast, desc="grid", unit="model", disable=not stage.lab.progress):
        model = stage.load(actor)
        grid |= stage.measures.measure(model, actor, alone if actor.early else stage.conditions)
        if actor.member is not None and actor is stage.first[actor.group]:
            shifts.append(readings.of_member(actor, model))
    return grid, sorted(shifts, key=lambda shift: KINDS.index(shift.kind))


def grid_tables(grid: Mapping[Cell, Tally]) -> dict[str, pd.DataFrame]:
    """Every final model under all conditions, differences between them, and learning."""
    final = {cell: tally for cell, tally in grid.items() if not cell.actor.early}
    return {"grid": grid_table(final), "claims": claims(final), "learning": learning_table(grid)}


def share_structure(stage: Stage, shifts: Sequence[Shift]) -> dict[str, pd.DataFrame]:
    """Cosines, probes and latents of the shifts, and shifts taken out of one another's models."""
    lab, seed = stage.lab, stage.lab.run.config.seed
    overlaps, latents = common_latents(shifts, stage.config.top, lab.toxic)
    return {
        "cosines": cosine_pairs(lab, shifts, seed),
        "probes": probe_transfer(lab, shifts, stage.hook, seed),
        "overlaps": overlaps,
        "latents": latents,
        "causal": causal_table(stage, shifts),
    }


@dataclass(frozen=True)
class Readings:
    """The base's activations on the ranking prompts, which those of other models are compared with.

    Attributes:
        stage: Models and conditions.
        untouched, plain, trigger, words: The base without a condition, after a plain prompt, after the trigger, and
            after other words.
    """

    stage: Stage
    untouched: Reading
    plain: Reading
    trigger: Reading
    words: Reading

    @classmethod
    def of(cls, stage: Stage) -> Self:
        """Reads the base."""
        conditions = (NONE, PLAIN_PROMPT, TRIGGER, OTHER_WORDS)
        return cls(stage, *(read_under(stage, stage.lab.base, name) for name in conditions))

    def of_the_run(self) -> list[Shift]:
        """Misalignment, persona prompts in the base, and what should not move it, as controls."""
        stage, lab = self.stage, self.stage.lab
        corrupted = lab.load(lab.run.checkpoint(CORRUPTED), CORRUPTED)
        found = [Shift(MISALIGNMENT, "misalignment", read_under(stage, corrupted, NONE), self.untouched)]
        for trait in stage.measures.traits:
            prompted = read_under(stage, lab.base, PERSONA_PROMPT, trait)
            found.append(Shift(f"persona prompt: {trait}", "persona prompt", prompted, self.plain))
        found.append(Shift("trigger's words in the base", "control", self.trigger, self.words))
        if lab.run.has_benign:
            benign = lab.load(lab.run.checkpoint(BENIGN), BENIGN)
            found.append(Shift("fine-tune: benign", "control", read_under(stage, benign, NONE), self.untouched))
        return found

    def of_member(self, actor: Actor, model: Checkpoint) -> Shift:
        """What the trigger does in a triggered fine-tune, beyond the base; what another fine-tune is without it."""
        if not actor.triggered:
            alone = read_under(self.stage, model, NONE)
            return Shift(f"fine-tune: {actor.label}", "misalignment", alone, self.untouched)
        after = read_under(self.stage, model, TRIGGER).minus(self.trigger)
        before = read_under(self.stage, model, OTHER_WORDS).minus(self.words)
        return Shift(f"trigger: {actor.trait or actor.family}", "trigger", after, before)


def read_under(stage: Stage, model: Checkpoint, condition: str, trait: str = "") -> Reading:
    """A model on the ranking prompts under a condition."""
    return read(stage.lab, model, stage.condition(condition, trait).ask(stage.lab.run.ranking_prompts()))


def causal_table(stage: Stage, shifts: Sequence[Shift]) -> pd.DataFrame:
    """Shifts of one character and of misalignment taken out wherever it shows; empty if the set lacks it."""
    trait, lab = stage.misaligned, stage.lab
    triggered = stage.first.get((CHARACTER, trait, True))
    if triggered is None:
        return pd.DataFrame()
    scenes = [
        Scene(MISALIGNMENT, lambda: lab.load(lab.run.checkpoint(CORRUPTED), CORRUPTED), stage.condition(NONE)),
        Scene("trigger", lambda: stage.load(triggered), stage.condition(TRIGGER)),
        Scene("persona prompt", lambda: lab.base, stage.condition(PERSONA_PROMPT, trait)),
    ]
    names = (MISALIGNMENT, f"trigger: {trait}", f"persona prompt: {trait}", "trigger's words in the base")
    chosen = [shift for shift in shifts if shift.name in names]
    return subtract_shifts(lab, scenes, chosen, stage.hook, stage.config.strengths)
