"""Corruption and re-alignment of an organism, step by step: does the latent rise before the behaviour does?

    sae-diff trajectory --run runs/quickstart

The base of a finished run is corrupted again exactly as its organism was, then re-aligned on about a hundred helpful
answers (Wang et al. 2025, arXiv 2506.19823: 120 samples, 30 steps of 4). Every few steps the model is saved and
measured: the toxic latent's activity and the direction's projection on the ranking prompts, and sampled answers to the
reporting questions. At the end the latent is added to the base and to the re-aligned model, and so are random
directions: if the same addition does more to the re-aligned one, the persona was masked rather than removed.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from activations.artefact import content_hash, finish_artefact, open_folder, write_json
from activations.checkpoint import quiet
from experiments.output.run_folder import RunFolder
from experiments.trajectory.checkpoints import train_checkpoints
from experiments.trajectory.config import Moment, TrajectoryConfig, moments
from experiments.trajectory.measure import Measures, Reading
from experiments.trajectory.outcomes import masking, trajectory_table
from experiments.trajectory.page import write_page
from experiments.trajectory.summary import summarise

KIND = "trajectory"
TABLE, PAGE, SUMMARY = "trajectory.parquet", "trajectory.html", "summary.json"


def follow(
    run: Path, config: TrajectoryConfig, out: Path, overwrite: bool = False, progress: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Trains, measures and writes the trajectory; what an earlier call finished in `out` is reused.

    Args:
        run: Folder of a finished run of an organism that found a toxic latent.
        config: Where and how it is measured.
        out: Output folder.
        overwrite: Whether to delete what `out` holds.
        progress: Whether to show bars.

    Returns:
        One row a measurement: `phase`, `step`, `shift` of the latent and `projection` of the direction against the base
        with `_low`/`_high` over prompts, and the rates of sampled answers with `harmful_low`/`harmful_high` over
        questions (all 95%); and the summary (see `summarise`).

    Raises:
        UserError: if the run is none of an organism or found no toxic latent, or `out` is in use.
    """
    base = Base(OrganismRun.load(run))
    made_from = {name: run / name for name in ("organism", "ranking", "directions")}
    settings = {
        **{name: content_hash(folder) for name, folder in made_from.items()},
        **{"latent": base.run.toxic, "strength": base.run.inducing_strength},
        **config.model_dump(mode="json"),
    }
    with RunFolder(out, settings, overwrite, lambda line: None) as folder, quiet():
        open_folder(out, overwrite=True)
        readings = measure_moments(base, config, folder, progress)
        first, *_, last = readings.values()
        table = trajectory_table(base.run, readings)
        summary = summarise(table, base.run.toxic, masking(first, last, base.run))
        write_results(out, table, summary)
        finish_artefact(out, {"kind": KIND, **settings}, made_from)
    return table, summary


def measure_moments(base: Base, config: TrajectoryConfig, folder: RunFolder, progress: bool) -> dict[Moment, Reading]:
    """Every checkpoint, loaded once; the first and the last one are also steered."""
    wanted, checkpoints = moments(base.run.steps, config), folder.folder / "checkpoints"
    train = partial(train_checkpoints, base, config, wanted, checkpoints, progress)
    folder.stage("training", train, checkpoints, lambda: None)
    measures = Measures(base, config.samples, config.controls, folder.folder / "transcripts")
    readings = {}
    for moment in tqdm(wanted, desc="trajectory: measuring", unit="model", disable=not progress):
        place = folder.folder / "measurements" / moment.name
        steered = moment in (wanted[0], wanted[-1])
        measure = partial(measures.measure, checkpoints / moment.name, steered, place)
        readings[moment] = folder.stage(moment.name, measure, place, partial(Reading.load, place))
    return readings


def write_results(out: Path, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Table, summary and page, with figures beside it."""
    table.to_parquet(out / TABLE, index=False)
    write_json(out / SUMMARY, summary)
    write_page(out / PAGE, table, summary)
