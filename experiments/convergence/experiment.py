"""Do fine-tunes of one base misalign along one direction, and does taking it out of one repair another?

    sae-diff convergence --run runs/quickstart --models runs/fine-tunes

For a few misaligned fine-tunes of different kinds (Soligo et al. 2025, arXiv 2506.11618): the four means {model} x
{answers} at every layer, both contrasts of them, and the cosines between fine-tunes; ablation, subtraction and
addition at every layer; each direction taken out of every model; B of rank-1 adapters beside the directions. Members,
operation, layers and strength are chosen on the selection questions; rates are those of the reporting questions where
a table does not say otherwise.
"""

import time
from pathlib import Path
from typing import Any

import pandas as pd

from activations.artefact import finish_artefact, write_json
from activations.checkpoint import quiet
from experiments.convergence.compare import compare_adapters, compare_directions
from experiments.convergence.config import FINE_TUNE, HARMLESS, ConvergenceConfig
from experiments.convergence.members import choose_members, find_means, sources_of
from experiments.convergence.page import write_page
from experiments.convergence.summary import summarise
from experiments.convergence.treat import choose_treatments, sweep, transfer
from experiments.frame.lab import Lab
from experiments.model_set import ModelSet
from experiments.output.run_folder import Log, RunFolder
from experiments.run.finished_run import FinishedRun

KIND = "convergence"
PAGE, SUMMARY = "convergence.html", "summary.json"


def convergence(
    run: FinishedRun, models: ModelSet, config: ConvergenceConfig, out: RunFolder, progress: bool = True
) -> dict[str, Any]:
    """Measures and writes everything; answers that an earlier call sampled are used again.

    Returns:
        What `summary.json` holds (see `summarise`).

    Raises:
        UserError: as `Lab` and `choose_members` do.
    """
    started = time.perf_counter()
    lab = Lab(run, models, config, out, progress)
    tuned, harmless = choose_members(lab, models)
    means = {one.name: find_means(lab, one, tuned[0]) for one in (*tuned, *harmless)}
    sources = [source for one in tuned for source in sources_of(one.name, FINE_TUNE, means[one.name])]
    sources += [source for one in harmless for source in sources_of(one.name, HARMLESS, means[one.name])]
    swept = sweep(lab, tuned, sources)
    chosen = choose_treatments(swept, config.budget)
    transferred = transfer(lab, tuned, sources, chosen)
    tables = {
        "cosines": compare_directions(lab, sources, means),
        "sweep": pd.DataFrame([outcome.row() for outcome in swept]),
        "transfer": pd.DataFrame([outcome.row() for outcome in transferred]),
        "adapters": compare_adapters(lab, models, sources),
    }
    for name, table in tables.items():
        table.to_parquet(out.folder / f"{name}.parquet", index=False)
    base = lab.untouched(lab.base, lab.reporting)
    kinds = {one.name: one.member.kind for one in tuned}
    summary = summarise(kinds, base, tables["cosines"], tables["adapters"], transferred, chosen)
    summary["wall_seconds"] = round(time.perf_counter() - started, 1)
    write_json(out.folder / SUMMARY, summary)
    write_page(out.folder / PAGE, tables, summary, run.config.hook)
    made = {"kind": KIND, **config.model_dump(mode="json"), "hooks": list(lab.hooks)}
    finish_artefact(out.folder, made, {"ranking": run.folder / "ranking"})
    return summary


def write_convergence(
    run: Path, models: Path, config: ConvergenceConfig, out: Path, overwrite: bool, progress: bool, log: Log
) -> dict[str, Any]:
    """`convergence` of a run and a set in a folder; with `overwrite` an earlier one is replaced."""
    loaded, fine_tunes = FinishedRun.load(run), ModelSet.load(models)
    made = {"run": str(run.resolve()), "models": fine_tunes.model_dump(mode="json"), **config.model_dump(mode="json")}
    with RunFolder(out, made, overwrite, log) as folder, quiet():
        return convergence(loaded, fine_tunes, config, folder, progress)
