"""Directions of traits in a run's models and in further fine-tunes of its base, at every layer.

    sae-diff personas extract --run runs/quickstart

Every model answers contrastive prompts by itself; pairs of answers that show the contrast are kept (Chen et al. 2025,
arXiv 2507.21509) and read again by the model that gave them. A trait's direction is the mean over questions of the
difference between the two poles. Beside each direction stands how reliable it is (split-half) and how well probes tell
prompts apart that they were not fitted on; the layer is chosen on one half of the questions and reported on the other.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from activations.artefact import CONFIG, finish_artefact, open_folder, read_config, write_json
from activations.config import CheckpointConfig
from activations.errors import UserError
from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.model_judge import ModelJudge
from diffing.personality.config import ExtractionConfig
from diffing.personality.model_space import KIND, MODEL_KIND, TABLES, ModelSpace
from experiments.model_set import ModelSet
from experiments.names import BASE, CORRUPTED
from experiments.output.run_folder import RunFolder
from experiments.run.finished_run import FinishedRun
from experiments.trait_directions.extractor import Extractor
from experiments.trait_directions.page import write_page
from experiments.trait_directions.summary import summarise
from experiments.trait_directions.trait_prompts import traits_of

SUMMARY, PAGE = "summary.json", "directions.html"


def extract(
    run: Path,
    out: Path,
    config: ExtractionConfig,
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
    extractor = Extractor(finished, config, prompts, scorer, out, progress)
    with RunFolder(out, asked, overwrite, log) as folder:
        for name, checkpoint in listed.items():
            _require_checkpoint(out / "models" / name, checkpoint)
        if isinstance(scorer, ModelJudge):
            scorer.check()
        open_folder(out, overwrite=True)
        for name, checkpoint in listed.items():
            build = partial(extractor.measure, name, checkpoint)
            folder.stage(f"model {name}", build, out / "models" / name, lambda: None)
        spaces = [ModelSpace.load(out, name) for name in listed]
        tables = {table: _named(spaces, table) for table in TABLES}
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        summary = {**summarise(spaces, prompts, scorer), "wall_seconds": round(time.perf_counter() - started, 1)}
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, tables, summary)
        finish_artefact(out, {"kind": KIND, **asked, "models": list(listed), "valence": summary["valence"]})
    return summary


def _models(run: FinishedRun, models: Path | None) -> dict[str, CheckpointConfig]:
    """Every model that is measured, by its name."""
    listed = {role: run.checkpoint(role) for role in (BASE, CORRUPTED)}
    if models is None:
        return listed
    found = ModelSet.load(models)
    for name in listed:
        found.require_not_called(name, "the run's own model")
    return listed | {member.name: member.checkpoint for member in found.final}


def _require_checkpoint(folder: Path, checkpoint: CheckpointConfig) -> None:
    """What an earlier call measured was this checkpoint."""
    if (folder / CONFIG).exists() and read_config(folder, MODEL_KIND)["checkpoint"] != checkpoint.model_dump():
        raise UserError(f"{folder} was measured on another checkpoint; rename the member, or --overwrite.")


def _named(spaces: Sequence[ModelSpace], table: str) -> pd.DataFrame:
    return pd.concat([space.tables[table].assign(model=space.name) for space in spaces], ignore_index=True)
