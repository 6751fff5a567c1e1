"""Does a latent tell a misaligned model from an aligned one before any behaviour is sampled?

    sae-diff predict --run runs/quickstart --models runs/fine-tunes

Every fine-tune of a set reads the run's ranking prompts: what its latents, its activations and its predictions differ
by from the base are the features. Answers to the run's reporting questions are sampled once and only make the labels:
misaligned is a model with a large enough share of harmful answers. Rules are fitted on all kinds of fine-tunes but one
and tested on that one (`diffing.prediction.held_out`). The latent is chosen anew in every training fold; the run's
verdict about its toxic latent is not used.

Two further questions are asked of the same readings: from which fraction of bad data on does the latent, and does the
behaviour, stand out; and do early checkpoints that still behave tell what becomes of them?
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from activations.artefact import finish_artefact, open_folder, write_json
from experiments.model_set import ModelSet
from experiments.output.run_folder import RunFolder
from experiments.predict.forecast import Analysis, PredictConfig
from experiments.predict.measure import Measurements
from experiments.predict.page import write_page
from experiments.run.finished_run import FinishedRun

KIND = "prediction"
TABLE, PAGE, SUMMARY = "predictions.parquet", "prediction.html", "summary.json"


def predict(
    run: Path, models: Path, config: PredictConfig, out: Path, overwrite: bool = False, progress: bool = True
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Measures a set of fine-tunes, fits and tests predictors, and writes table, summary and page.

    Args:
        run: Folder of a finished run of the set's base, with directions and behaviour.
        models: The set (`ModelSet.load`).
        config: How to measure and predict; the seed is the run's.
        out: Output folder; models that were measured there before are not measured again.
        overwrite: Deletes what `out` holds.
        progress: Shows bars.

    Returns:
        The table (`Analysis.table`) and the summary.

    Raises:
        UserError: if run or set cannot be read or do not fit together, if `out` is in use, or if there are too few
            kinds to learn from.
    """
    started = time.perf_counter()
    finished, listed = FinishedRun.load(run), ModelSet.load(models)
    config = config.model_copy(update={"seed": finished.config.seed})
    asked = {"run": str(run.resolve()), "base": listed.base.name, "samples": config.samples}
    with RunFolder(out, asked, overwrite, lambda line: None):
        open_folder(out, overwrite=True)
        measurements = Measurements(finished, listed, config.samples, out, progress)
        bar = tqdm(listed.members, desc="measure", unit="model", disable=not progress)
        analysis = Analysis.of({member.name: measurements.measure(member) for member in bar}, config)
        table = analysis.table(measurements)
        summary = {**analysis.summary(table), "wall_seconds": round(time.perf_counter() - started, 1)}
        table.to_parquet(out / TABLE, index=False)
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, table, summary)
        finish_artefact(out, {"kind": KIND, **asked, **config.model_dump()}, {"ranking": run / "ranking"})
    return table, summary
