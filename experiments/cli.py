"""The `sae-diff` command: fixed commands, and one for every experiment that is found."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console

from activations.artefact import read_config
from activations.errors import UserError
from activations.prompt_files import load_prompts
from diffing.ranking.config import InterferenceConfig, RankingConfig
from experiments.commands import doctor, store
from experiments.commands.requests import (
    EvaluateRequest,
    FineTunesRequest,
    HarvestRequest,
    InterferenceRequest,
    OrganismRequest,
    RankRequest,
    RunRequest,
    TrainRequest,
)
from experiments.frame.command import Part, checked, command_of, experiment_command
from experiments.frame.discover import experiments
from sae.training.config import TrainConfig

app = typer.Typer(
    help="SAE model diffing: what a fine-tune changed inside a model, and which of it makes it misbehave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(highlight=False)
Given = Mapping[str, Any]
ACTIVATION_STORE = "activation_store"  # `kind` of a store of activations
# What `train-sae` takes of the training config; the rest it takes several values of, or otherwise.
TRAINED_WITH = (
    *("architecture", "steps", "batch", "lr", "warmup", "decay", "clip"),
    *("centre", "aux_k", "aux_coefficient", "dead_after", "encode_dtype"),
)
# Of a real model there are more tokens than of an organism.
TRAINING_DEFAULTS = {"steps": 10_000, "batch": 4096, "lr": 1e-3}


def main() -> None:
    """Entry point: bad input becomes one sentence on stderr and exit code 2."""
    try:
        _add_commands()
        app()
    except UserError as error:
        print(f"sae-diff: {error}", file=sys.stderr)
        sys.exit(2)


def _add_commands() -> None:
    if app.registered_commands:
        return
    app.add_typer(store.app, name="store", no_args_is_help=True)
    app.command("doctor")(doctor.doctor)
    quickstart = {"seed", "out", "overwrite", "wandb", "quiet"}
    app.command("quickstart")(command_of(_QUICKSTART, [Part(RunRequest, quickstart)], _quickstart))
    app.command("run")(command_of(_RUN, [Part(RunRequest)], _run))
    app.command("organism")(command_of(_ORGANISM, [Part(OrganismRequest)], _organism))
    app.command("fine-tunes")(command_of(_FINE_TUNES, [Part(FineTunesRequest)], _fine_tunes))
    app.command("harvest")(command_of(_HARVEST, [Part(HarvestRequest)], _harvest))
    training = [Part(TrainRequest), Part(TrainConfig, TRAINED_WITH, TRAINING_DEFAULTS)]
    app.command("train-sae")(command_of(_TRAIN, training, _train))
    app.command("evaluate-sae")(command_of(_EVALUATE, [Part(EvaluateRequest)], _evaluate))
    ranking = [Part(RankRequest), Part(RankingConfig)]
    app.command("rank")(command_of(_RANK, ranking, _rank))
    app.command("interference")(
        command_of(_INTERFERENCE, [Part(InterferenceRequest), Part(InterferenceConfig)], _interference)
    )
    for experiment in experiments().values():
        app.command(experiment.name, rich_help_panel="Follow-up experiments of a finished run")(
            experiment_command(experiment, console)
        )


_QUICKSTART = "Run the whole method on a small organism, offline, on the CPU."
_RUN = "Run a config: two checkpoints in, ranked (and, with a judge, proven) latents out."
_ORGANISM = "Make an organism: checkpoints that show emergent misalignment, with the control and all prompts."
_FINE_TUNES = "Make a set of fine-tunes of an organism's base: harmful and aligned ones of many kinds, in models.yaml."
_HARVEST = "Write activations of one or two checkpoints on the same tokens to HDF5 stores (also under torchrun)."
_TRAIN = "Train one SAE, or every combination of hooks, widths, k and seeds in one pass (also under torchrun)."
_EVALUATE = "Show how well an SAE explains a base and a corrupted model, and what they lose when it is spliced in."
_RANK = "Rank latents by how they changed between two stores of activations, by every method in one pass."
_INTERFERENCE = "Show which latents a steered latent co-activates though the data never show them together."


def _quickstart(values: Given) -> None:
    _run({**values, "config": "quickstart"})


def _run(values: Given) -> None:
    request = checked(RunRequest, values)
    from experiments.commands.run import run_config

    run_config(request, console)


def _organism(values: Given) -> None:
    request = checked(OrganismRequest, values)
    from experiments.commands.organism import make_organism

    make_organism(request, console)


def _fine_tunes(values: Given) -> None:
    request = checked(FineTunesRequest, values)
    from experiments.commands.organism import make_set

    make_set(request, console)


def _harvest(values: Given) -> None:
    request = checked(HarvestRequest, values)
    _require_prompts(request.prompts, request.stream)
    from experiments.commands.harvest import harvest_models, print_stores

    print_stores(harvest_models(request), request.out, console)


def _train(values: Given, config: Given) -> None:
    request = checked(TrainRequest, values)
    common = checked(TrainConfig, {**config, **_pairs(request.option), "latents": request.latents[0]})
    for folder in request.store:
        read_config(folder, ACTIVATION_STORE)
    from experiments.commands.train_sae import train_from_stores

    for folder in train_from_stores(request, common):
        console.print(f"SAE written to {folder}", soft_wrap=True)


def _evaluate(values: Given) -> None:
    request = checked(EvaluateRequest, values)
    load_prompts(request.prompts)
    from experiments.commands.evaluate_sae import evaluate_on_models, print_evaluation

    print_evaluation(evaluate_on_models(request), console)
    if request.out is not None:
        console.print(f"  {request.out / 'metrics.json'}", soft_wrap=True)


def _rank(values: Given, config: Given) -> None:
    request, settings = checked(RankRequest, values), checked(RankingConfig, config)
    for folder in (request.base, request.corrupted, *request.null, *([request.benign] if request.benign else [])):
        read_config(folder, ACTIVATION_STORE)
    from experiments.commands.rank import print_ranking, rank_stores

    print_ranking(rank_stores(request, settings), request.top, console)
    console.print(f"ranking written to {request.out}", soft_wrap=True)


def _interference(values: Given, config: Given) -> None:
    request, settings = checked(InterferenceRequest, values), checked(InterferenceConfig, config)
    read_config(request.store, ACTIVATION_STORE)
    from experiments.commands.interference import interference_of_store, print_interference

    print_interference(interference_of_store(request, settings), request.top, console)


def _require_prompts(prompts: str, stream: bool) -> None:
    """What can be seen of prompts before a tokenizer is loaded."""
    if not stream and not Path(prompts).is_dir():
        load_prompts(Path(prompts))


def _pairs(options: Sequence[str]) -> dict[str, Any]:
    """name=value pairs, the values read as YAML."""
    pairs = [option.partition("=") for option in options]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"Option '{name}' has no value; write it as name=value.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


if __name__ == "__main__":
    main()
