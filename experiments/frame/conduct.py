"""Conducts an experiment: checks, measures, and writes tables, summary, page, provenance and W&B run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from activations.artefact import content_hash, finish_artefact, open_folder, write_json
from diffing.traits import load_traits
from experiments.frame.discover import find_experiment
from experiments.frame.experiment import Experiment, ExperimentConfig, Need, Result
from experiments.frame.inputs import Inputs, Options, load_models, open_run
from experiments.names import BASE
from experiments.output.run_folder import Log, RunFolder
from experiments.run.finished_run import FinishedRun

PAGE, SUMMARY = "report.html", "summary.json"


def conduct(
    experiment: str | Experiment[Any],
    inputs: Inputs,
    config: ExperimentConfig | None = None,
    options: Options | None = None,
    log: Log = lambda line: None,
) -> Result:
    """Conducts an experiment; what an earlier call into the same folder measured is used again.

    Args:
        experiment: Its name, or itself.
        inputs: What it is about.
        config: Its settings (default: those of the experiment).
        options: Output folder, device, seed, ...
        log: Receives a line a stage.

    Returns:
        The result, which is also written: `<table>.parquet`, `summary.json`, `report.html`, `figures/`.

    Raises:
        UserError: if what it needs is missing or does not fit together, or the output folder is in use.
    """
    found = find_experiment(experiment) if isinstance(experiment, str) else experiment
    settings, options = config or found.config(), options or Options()
    run = open_run(found, inputs, options)
    out = options.out or inputs.run.with_name(f"{inputs.run.name}-{found.name}")
    asked = _identity(found, run, inputs, settings)
    fixed = {key: value for key, value in asked.items() if key not in found.may_change}
    # What follows imports torch; all that can be said without it has been said.
    from activations.checkpoint import quiet
    from experiments.frame.lab import Lab

    with RunFolder(out, fixed, options.overwrite, log) as folder, quiet():
        started = time.perf_counter()
        lab = Lab(run, inputs, settings, folder, progress=not options.quiet)
        open_folder(out, overwrite=True)
        measured = found.measure(lab)
        result = Result(found, lab, measured, found.summarise(lab, measured))
        result = _write(result, round(time.perf_counter() - started, 1))
        finish_artefact(out, {"kind": found.name, **asked, **measured.config}, _parents(found, run, inputs))
    _track(result, options, log)
    return result


def _identity(
    experiment: Experiment[Any], run: FinishedRun, inputs: Inputs, config: ExperimentConfig
) -> dict[str, Any]:
    """What the result depends on. A run that was moved is still the same run."""
    wanted = experiment.needs | experiment.takes
    found: dict[str, Any] = {"run": run.identity, "seed": run.config.seed}
    if Need.FINE_TUNES in wanted:
        found["models"] = None if inputs.models is None else load_models(inputs).model_dump(mode="json")
    if Need.TRAIT_DIRECTIONS in wanted:
        folder = inputs.directions_folder
        found["trait_directions"] = [content_hash(folder / part / BASE) for part in ("models", "directions")]
    if Need.TRAITS in wanted:
        named = load_traits(inputs.traits).traits if inputs.traits else ()
        contents = {trait.name: xxhash.xxh3_128_hexdigest(trait.model_dump_json().encode()) for trait in named}
        found |= {"traits": contents, "judge": inputs.judge.identity() if inputs.judge else None}
    values = config.model_dump(mode="json")
    if clash := sorted(set(values) & set(found)):
        raise ValueError(f"Config of {experiment.name} has fields with the names of inputs: {', '.join(clash)}.")
    return {**found, **values}


def _write(result: Result, seconds: float) -> Result:
    """Tables, summary and page, with figures beside it; returns the result with its seconds."""
    from experiments.output.figures import style
    from experiments.output.page import Page

    out, experiment = result.lab.out.folder, result.experiment
    for name, table in result.tables.items():
        table.to_parquet(out / f"{name}.parquet", index=False)
    summary: Mapping[str, Any] = {**result.summary, "wall_seconds": seconds}
    write_json(out / SUMMARY, dict(summary))
    done = Result(experiment, result.lab, result.measured, summary)
    with style():
        figures = experiment.figures(done)
    title = experiment.name.replace("-", " ").capitalize()
    Page(title, experiment.question, done.sentences, figures, done.sections).write(out / PAGE)
    return done


def _parents(experiment: Experiment[Any], run: FinishedRun, inputs: Inputs) -> dict[str, Path]:
    parents = {"ranking": run.folder / "ranking"}
    if Need.TRAIT_DIRECTIONS in experiment.needs | experiment.takes:
        parents["trait_directions"] = inputs.directions_folder / "models" / BASE
    return parents


def _track(result: Result, options: Options, log: Log) -> None:
    from experiments.output.tracking import track_result

    if options.wandb == "disabled":
        return
    if sync := track_result(result.lab.out.folder, result.experiment.name, options.wandb):
        log(f"to upload the W&B run: {sync}")
