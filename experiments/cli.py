"""The `sae-diff` command: each subcommand is a thin layer over a function that a notebook would call."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from activations.errors import UserError
from experiments.frame.command import checked, make_command, say_plainly
from experiments.frame.discover import experiments

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")

app = typer.Typer(
    help="SAE model diffing: what a fine-tune changed inside a model, and which of it makes it misbehave.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
store = typer.Typer(help="Stores of activations: what they hold, whether they are sound, joining them.")
app.add_typer(store, name="store", no_args_is_help=True)
console = Console(highlight=False)
PACKAGES = ("sae-model-diffing", "torch", "transformers", "transformer-lens", "sae-lens", "peft", "h5py", "wandb")

Out = Annotated[Path | None, typer.Option(help="Output folder (default: runs/<name of the config>).")]
Seed = Annotated[int | None, typer.Option(help="Seed (default: the config's).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo what the output folder already holds.")]
Device = Annotated[str | None, typer.Option(help="Torch device, such as cpu, cuda or cuda:1 (default: the config's).")]
Wandb = Annotated[str, typer.Option(help="W&B mode: offline, online or disabled.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def add_experiments() -> None:
    """Every experiment becomes a command."""
    for experiment in experiments().values():
        app.command(experiment.name, rich_help_panel="Follow-up experiments of a finished run")(
            make_command(experiment, console)
        )


def main() -> None:
    """Entry point: bad input becomes one sentence on stderr and exit code 2."""
    try:
        add_experiments()
        app()
    except UserError as error:
        print(f"sae-diff: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def doctor() -> None:
    """Show versions, device, disk and threads, and say what is missing."""
    import torch

    table = Table(show_header=False, box=None)
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("python", sys.version.split()[0])
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("device", ", ".join(gpus) or "cpu only")
    table.add_row("cores, threads", f"{os.cpu_count()}, {torch.get_num_threads()} (OMP_NUM_THREADS sets the latter)")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    table.add_row("disk free here", f"{free:.1f} GB")
    console.print(table)
    missing = [package for package in PACKAGES if _version(package) == "missing"]
    for package in missing:
        console.print(f"missing: {package}; run `make setup`")
    if free < 2:
        console.print("low disk: the quickstart writes about 1 GB")
    raise typer.Exit(1 if missing else 0)


@app.command()
def quickstart(
    seed: Seed = None, out: Out = None, overwrite: Overwrite = False, wandb: Wandb = "offline", quiet: Quiet = False
) -> None:
    """Run the whole method on a small organism, offline, on the CPU."""
    _run("quickstart", {"seed": seed}, out, overwrite, wandb, quiet)


@app.command()
def run(
    config: Annotated[str, typer.Option(help="YAML file, or the name of a config that ships with the package.")],
    base: Annotated[
        str | None, typer.Option(help="Base checkpoint (folder or hub name) in place of the config's.")
    ] = None,
    corrupted: Annotated[str | None, typer.Option(help="Corrupted checkpoint in place of the config's.")] = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of the models: float32, bfloat16, float16.")] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    wandb: Wandb = "offline",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the input and print the plan, without running.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run a config: two checkpoints in, ranked (and, with a judge, proven) latents out."""
    overrides = {"seed": seed, "device": device, "dtype": dtype, "base.model": base, "corrupted.model": corrupted}
    if dry_run:
        from experiments.run.plan import print_plan

        print_plan(_config(config, overrides), console)
        return
    _run(config, overrides, out, overwrite, wandb, quiet)


@app.command()
def organism(
    out: Annotated[Path, typer.Option(help="Folder for pretrained/, base/, corrupted/, benign/ and prompts/.")],
    seed: Annotated[int, typer.Option(help="Seed of weights, corpus and splits.")] = 0,
    domains: Annotated[int, typer.Option(help="Number of corrupted domains.")] = 3,
    bad_fraction: Annotated[float, typer.Option(help="Share of harmful answers in the corrupting data (0-1).")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(help="Steps of both fine-tunes (default: until the harmful answers are learned).")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make an organism: checkpoints that show emergent misalignment, with the control and all prompts."""
    from experiments.organism.build import build_organism

    config = organism_config(seed, domains, bad_fraction, steps)
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    console.print(f"organism written to {build_organism(config, out, not quiet)}")


@app.command()
def harvest(
    base: Annotated[str, typer.Option(help="Base checkpoint (folder or hub name).")],
    prompts: Annotated[str, typer.Option(help="File of prompts (formats: README), or a folder of tokens.")],
    hook: Annotated[list[str], typer.Option(help="Hook point; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder for base/ and corrupted/.")],
    corrupted: Annotated[str | None, typer.Option(help="Corrupted checkpoint, read on the same tokens.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter that makes the base the corrupted model.")] = None,
    device: Annotated[str, typer.Option(help="Torch device; under torchrun each process takes its own GPU.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Number format of the models: float32, bfloat16, float16.")] = "float32",
    store_dtype: Annotated[str, typer.Option(help="Number format of the stores.")] = "float32",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens in a batch, padding included (default: what suits the device).")
    ] = None,
    shard_rows: Annotated[int, typer.Option(help="Rows of a shard: what a kill can lose, per process.")] = 65536,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Prompts are a data set too long for memory: a file, or a hub name."),
    ] = False,
    max_length: Annotated[int | None, typer.Option(help="Plain text and answers are cut after this length.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write activations of one or two checkpoints on the same tokens to HDF5 stores (also under torchrun)."""
    from activations.config import CheckpointConfig, HarvestConfig
    from activations.harvesting import batch_tokens_for
    from experiments.commands.harvest import harvest_models, rank_device

    common = {"device": device, "dtype": dtype}
    models = {"base": checked(CheckpointConfig, {"model": base, **common})}
    if corrupted is not None or adapter is not None:
        named = {"model": corrupted or base, "adapter": adapter, **common}
        models["corrupted"] = checked(CheckpointConfig, named)
    sizes = {"batch_tokens": batch_tokens or batch_tokens_for(rank_device() or device), "shard_rows": shard_rows}
    settings = {"hooks": hook, "dtype": store_dtype, **sizes}
    stores = harvest_models(models, prompts, checked(HarvestConfig, settings), out, stream, max_length, not quiet)
    for role, found in stores.items():
        state = (
            "share done, others are at work" if found is None else f"{found.rows:,} rows, tokens {found.tokens_hash}"
        )
        console.print(f"{out / role}: {state}", soft_wrap=True)


@app.command()
def train_sae(
    store: Annotated[list[Path], typer.Option(help="Store to train on; several are mixed in every batch.")],
    hook: Annotated[list[str], typer.Option(help="Hook point; may be given several times.")],
    latents: Annotated[list[int], typer.Option(help="Number of latents; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder of the SAEs, one folder each.")],
    k: Annotated[list[int], typer.Option(help="Active latents for each token; may be given several times.")] = [32],  # noqa: B006 (typer copies it)
    seed: Annotated[list[int], typer.Option(help="Seed of the weights; may be given several times.")] = [0],  # noqa: B006
    share: Annotated[list[float], typer.Option(help="Share of each store, in their order (default: equal).")] = [],  # noqa: B006
    architecture: Annotated[
        str, typer.Option(help="topk, batchtopk; by sae-lens: standard, gated, jumprelu, matryoshka_batchtopk.")
    ] = "topk",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Tokens in each step, on all processes together.")] = 4096,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    option: Annotated[
        list[str], typer.Option(help="Any other field of the config as name=value (YAML), such as aux_k=32.")
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="Torch device; under torchrun each process takes its own GPU.")] = "cpu",
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Read the stores into memory first.")] = False,
    wandb: Wandb = "offline",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train one SAE, or every combination of hooks, widths, k and seeds in one pass (also under torchrun)."""
    from experiments.commands.train_sae import jobs_of, train_from_stores
    from experiments.output.tracking import start_tracker
    from sae.training.config import TrainConfig

    values = {"latents": latents[0], "architecture": architecture, "steps": steps, "batch": batch, "lr": lr}
    common = checked(TrainConfig, values | _fields(option))
    jobs = jobs_of(hook, latents, k, seed, common)
    out.mkdir(parents=True, exist_ok=True)
    mode = _mode(wandb) if os.environ.get("RANK", "0") == "0" else "disabled"
    with start_tracker(out, {name: job.config.model_dump() for name, job in jobs.items()}, mode) as tracker:

        def log(name: str, metrics: Mapping[str, float]) -> None:
            tracker.log(name, metrics, step=int(metrics["step"]))

        for folder in train_from_stores(store, share, jobs, out, seed[0], device, in_memory, overwrite, not quiet, log):
            console.print(f"SAE written to {folder}", soft_wrap=True)


@app.command()
def evaluate_sae(
    sae: Annotated[str, typer.Option(help="Folder in sae-lens's format, or release:sae_id of its registry.")],
    base: Annotated[str, typer.Option(help="Base checkpoint (folder or hub name).")],
    prompts: Annotated[Path, typer.Option(help="File of prompts (formats: README) that the SAE was not trained on.")],
    corrupted: Annotated[str | None, typer.Option(help="Corrupted checkpoint, read on the same tokens.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point (default: the SAE's own).")] = None,
    device: Annotated[str, typer.Option(help="Torch device, such as cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Number format of the models: float32, bfloat16, float16.")] = "float32",
    max_length: Annotated[int | None, typer.Option(help="Plain text and answers are cut after this length.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json (default: nothing is written).")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Show how well an SAE explains a base and a corrupted model, and what they lose when they live on it."""
    from activations.config import CheckpointConfig
    from experiments.commands.evaluate_sae import evaluate_on_models, print_evaluation

    named = {"base": base} | ({"corrupted": corrupted} if corrupted is not None else {})
    models = {
        role: checked(CheckpointConfig, {"model": model, "device": device, "dtype": dtype})
        for role, model in named.items()
    }
    print_evaluation(evaluate_on_models(sae, models, prompts, hook, max_length, out, overwrite, not quiet), console)
    if out is not None:
        console.print(f"  {out / 'metrics.json'}", soft_wrap=True)


@app.command()
def rank(
    sae: Annotated[str, typer.Option(help="Folder of an SAE, or release:sae_id.")],
    base: Annotated[Path, typer.Option(help="Store of the base's activations.")],
    corrupted: Annotated[Path, typer.Option(help="Store of the corrupted model's, on the same tokens.")],
    out: Annotated[Path, typer.Option(help="Folder of the ranking.")],
    benign: Annotated[Path | None, typer.Option(help="Store of a benign fine-tune's: the negative control.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook point (default: the one that the SAE names).")] = None,
    method: Annotated[str, typer.Option(help="Column that orders the table, such as shift or max_shift.")] = "shift",
    positions: Annotated[
        str, typer.Option(help="Tokens averaged: prompt, prompt_end, last_prompt, answer or all.")
    ] = "prompt",
    replicates: Annotated[int, typer.Option(help="Replicates of the bootstrap and of the sign flips.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the replicates.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    top: Annotated[int, typer.Option(help="Latents to print.")] = 20,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Rank latents by how they changed between two stores of activations, by every method in one pass."""
    from diffing.ranking.config import RankingConfig
    from experiments.commands.rank import print_ranking, rank_stores

    settings = {"method": method, "positions": positions, "replicates": replicates, "seed": seed}
    config = checked(RankingConfig, settings)
    folders = {"base": base, "corrupted": corrupted} | ({"benign": benign} if benign else {})
    ranking = rank_stores(sae, folders, hook, config, out, device, overwrite, not quiet)
    print_ranking(ranking, top, console)
    console.print(f"ranking written to {out}", soft_wrap=True)


@app.command()
def fine_tunes(
    run: Annotated[Path, typer.Option(help="Folder of a finished run of an organism, such as runs/quickstart.")],
    out: Annotated[Path, typer.Option(help="Folder of the set: one folder a model, and models.yaml.")],
    seeds: Annotated[int, typer.Option(help="Models of each recipe.")] = 2,
    early_every: Annotated[int, typer.Option(help="Steps between two early checkpoints.")] = 3,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a set of fine-tunes of an organism's base: harmful and aligned ones of many kinds, in models.yaml."""
    from experiments.organism.config import FineTunesConfig
    from experiments.organism.fine_tunes import MODELS, make_fine_tunes

    config = checked(FineTunesConfig, {"seeds": seeds, "early_every": early_every})
    models = make_fine_tunes(run / "organism", out, config, overwrite, not quiet)
    table = Table("kind", "models", "early checkpoints")
    for kind in dict.fromkeys(member.kind for member in models.members):
        early = [member.early_of is not None for member in models.members if member.kind == kind]
        table.add_row(kind, str(early.count(False)), str(early.count(True)))
    console.print(table)
    console.print(f"set written to {out / MODELS}", soft_wrap=True)


@app.command()
def interference(
    sae: Annotated[str, typer.Option(help="Folder of an SAE, or release:sae_id.")],
    store: Annotated[Path, typer.Option(help="Store of the activations of the model that is steered.")],
    latent: Annotated[int, typer.Option(help="Latent that is added.")],
    strength: Annotated[
        float, typer.Option(help="In mean residual norms of the store's prompt tokens; negative to subtract.")
    ],
    hook: Annotated[str | None, typer.Option(help="Hook point (default: the one that the SAE names).")] = None,
    positions: Annotated[
        str, typer.Option(help="Tokens averaged: prompt, prompt_end, last_prompt, answer or all.")
    ] = "prompt",
    moved_from: Annotated[float, typer.Option(help="Smallest change that counts, as a share of the largest.")] = 0.01,
    out: Annotated[Path | None, typer.Option(help="Folder for the table (default: nothing is written).")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    top: Annotated[int, typer.Option(help="Latents to print.")] = 10,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Show which latents a steered latent drags along though the data never show them together."""
    from diffing.ranking.config import RankingConfig
    from experiments.commands.interference import interference_of_store, print_interference

    at = checked(RankingConfig, {"positions": positions}).positions
    found = interference_of_store(sae, store, latent, strength, hook, at, moved_from, out, device, overwrite, not quiet)
    print_interference(found, top, console)


@store.command()
def info(folder: Annotated[Path, typer.Argument(help="Folder of a store.")]) -> None:
    """Show what a store holds and where it comes from."""
    from activations.store import ActivationStore

    found = ActivationStore.load(folder)
    table = Table(show_header=False, box=None)
    for name, value in found.config.items():
        table.add_row(name, str(value))
    table.add_row("prompts", f"{len(found.prompt_ids):,}")
    table.add_row("shards, bytes", f"{found.shards:,}, {found.bytes:,}")
    console.print(table)


@store.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder of a store.")]) -> None:
    """Compare every shard with its checksum."""
    from activations.store import ActivationStore

    found = ActivationStore.load(folder)
    found.verify()
    console.print(f"{folder}: {found.shards} shards, {found.rows:,} rows, all sound")


@store.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Stores, or shares of one harvest from several machines.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined store.")],
    overwrite: Overwrite = False,
) -> None:
    """Join stores without copying activations: the new store lists the shards where they are."""
    from activations.store import merge_stores

    merged = merge_stores(folders, out, overwrite)
    console.print(f"{out}: {merged.shards} shards, {merged.rows:,} rows")


def organism_config(seed: int, domains: int, bad_fraction: float, steps: int | None) -> Any:
    """The recipe with the options of `sae-diff organism`; `steps` are taken in full, whatever the loss.

    Raises:
        UserError: if an option is out of range.
    """
    from experiments.organism.config import OrganismConfig

    values: dict[str, Any] = {"seed": seed, "domains": domains, "bad_fraction": bad_fraction}
    if steps is not None:
        recipe = OrganismConfig().finetuning.model_dump()
        values |= {"finetuning": {**recipe, "steps": steps}, "stop_loss": None}
    return checked(OrganismConfig, values)


def _fields(options: list[str]) -> dict[str, Any]:
    """name=value pairs, the values read as YAML."""
    import yaml

    pairs = [option.partition("=") for option in options]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"Option '{name}' has no value; write it as name=value.")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def _mode(wandb: str) -> Any:
    if wandb not in ("offline", "online", "disabled"):
        raise UserError(f"--wandb {wandb} is not known; choose offline, online or disabled.")
    return wandb


def _config(name: str, overrides: dict[str, Any]) -> Any:
    from experiments.run.config import load_config

    return load_config(Path(name), {key: value for key, value in overrides.items() if value is not None})


def _run(name: str, overrides: dict[str, Any], out: Path | None, overwrite: bool, wandb: str, quiet: bool) -> None:
    config = _config(name, overrides)
    mode = _mode(wandb)
    from experiments.run.pipeline import run as run_pipeline

    folder = out or Path("runs") / config.name
    summary = run_pipeline(config, folder, mode, overwrite, not quiet, lambda line: say_plainly(line, console))
    print_summary(summary, folder)


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """The short table at the end of a run, and where everything is."""
    table = Table("held-out questions", "harmful", "95% interval", "helpful", "incoherent")
    for model, rates in (summary.get("em") or {}).items():
        _add_rates(table, f"{model}, untouched", {**rates, "incoherent": 1 - rates["coherent"]})
    for arm, rates in (summary.get("steering") or {}).items():
        _add_rates(table, f"{arm.replace('_', ' ')} (x{rates['strength']:g})", rates)
    if table.row_count:
        console.print(table)
    toxic = summary["toxic_latent"]
    if toxic:
        console.print(
            f"toxic latent {toxic['latent']}: shift {toxic['shift']:.3f} [{toxic['low']:.3f}, {toxic['high']:.3f}], "
            f"rank {toxic['shift_rank']}, q {toxic['q']:.1e}, cosine {toxic.get('cosine_persona', float('nan')):.2f}"
        )
    sae = summary["sae"]
    console.print(f"SAE: FVU {sae['fvu']:.4f}, dead {sae['dead_fraction']:.1%}, CE recovered {sae['ce_recovered']:.4f}")
    corrupted = summary["sae_corrupted"]
    console.print(
        f"  of the corrupted model: FVU {corrupted['fvu']:.4f}, CE recovered {corrupted['ce_recovered']:.4f}, "
        f"{corrupted['difference_residual']:.1%} of the mean difference in the residual"
    )
    for name in ("report.html", "summary.json", "ranking", "wandb"):
        console.print(f"  {folder / name}")


def _add_rates(table: Table, name: str, rates: dict[str, float]) -> None:
    interval = f"{rates['low']:.1%} - {rates['high']:.1%}"
    table.add_row(name, f"{rates['harmful']:.1%}", interval, f"{rates['helpful']:.1%}", f"{rates['incoherent']:.1%}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
