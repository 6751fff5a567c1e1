"""Can the directions of traits watch a model: before it answers, after it was fine-tuned, and before it is fine-tuned?

    sae-diff personas monitor --run runs/quickstart --models runs/fine-tunes

Three uses of trait directions after Chen et al. 2025 (arXiv 2507.21509), each beside random directions with the
covariance of the activations:

- The activation at the last prompt token, projected on a trait's direction, against how much of the trait the sampled
  answers show. The direction comes from one half of the questions and is tested on the other.
- The mean shift of a fine-tune on the ranking prompts, projected on the base's direction, against the change in how
  much of the trait its answers to the reporting questions show, over all fine-tunes of a set.
- The projection of the answers in fine-tuning data, less that of the model's own answers, against which are bad.

The published directions are means over answers. Here a reading of prompts is projected on the direction of the same
reading (our choice), which needs no answers; the answers of the data are projected on the direction of answers.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from activations.artefact import finish_artefact, open_folder, write_json
from diffing.behavior.config import ModelJudgeConfig
from diffing.behavior.model_judge import ModelJudge
from experiments.monitor.before_answers import before_answers
from experiments.monitor.config import Asked, MonitorConfig
from experiments.monitor.lab import MonitorLab
from experiments.monitor.page import write_page
from experiments.monitor.screening import screening
from experiments.monitor.shifts import shifts
from experiments.monitor.summary import summarise
from experiments.output.run_folder import RunFolder

KIND = "persona monitor"
SUMMARY, PAGE = "summary.json", "monitor.html"


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
    started = time.perf_counter()
    lab = MonitorLab.of(asked, config, out, progress)
    settings = {
        "run": str(asked.run.resolve()),
        "extracted": str(asked.extracted.resolve()),
        "data": None if asked.data is None else str(asked.data.resolve()),
        "label": asked.label,
        "seed": lab.seed,
        "judge": asked.judge.identity() if isinstance(asked.judge, ModelJudgeConfig) else None,
        **config.model_dump(mode="json"),
    }
    with RunFolder(out, settings, overwrite, log) as folder:
        if isinstance(lab.judge, ModelJudge):
            lab.judge.check()
        open_folder(out, overwrite=True)
        tables = {**before_answers(lab, folder), **shifts(lab, folder), **screening(lab, folder)}
        for name, table in tables.items():
            table.to_parquet(out / f"{name}.parquet", index=False)
        summary = {**summarise(tables), "wall_seconds": round(time.perf_counter() - started, 1)}
        write_json(out / SUMMARY, summary)
        write_page(out / PAGE, tables, summary)
        models = None if asked.models is None else str(asked.models.resolve())
        finish_artefact(out, {"kind": KIND, **settings, "models": models}, {"extracted": asked.extracted})
    return summary
