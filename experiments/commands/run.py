"""A whole run, and the short table at its end (`sae-diff run`, `sae-diff quickstart`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.commands.requests import RunRequest
from experiments.frame.command import say_plainly
from experiments.run.config import load_config


def run_config(request: RunRequest, console: Console) -> None:
    """Runs a config, or prints its plan.

    Raises:
        UserError: for a config or input that cannot be read or does not fit together.
    """
    config = load_config(Path(request.config), request.overrides)
    if request.dry_run:
        from experiments.run.plan import print_plan

        print_plan(config, console)
        return
    from experiments.run.checks import check_files

    check_files(config)
    from experiments.run.pipeline import run

    folder = request.out or Path("runs") / config.name
    options = {"wandb": request.wandb, "overwrite": request.overwrite, "progress": not request.quiet}
    print_summary(run(config, folder, log=lambda line: say_plainly(line, console), **options), folder, console)


def print_summary(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
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
